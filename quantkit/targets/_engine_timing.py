"""The file in which a builder keeps how fast each kernel was, so that the next build asks less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import ExportError
from quantkit.files import replacing

if TYPE_CHECKING:
    import tensorrt as api

    from quantkit.targets._engine_request import Send


@dataclass(frozen=True)
class TimingFile:
    """A timing cache that a builder uses, and the file that it came from.

    Attributes:
        path: of the file.
        read: what the file held; empty where there was none.
        cache: the SDK's object, which lives as long as the build.
    """

    path: Path
    read: bytes
    cache: api.ITimingCache

    def save(self, config: api.IBuilderConfig, send: Send) -> None:
        """Write what is known now, with what another build has written meanwhile."""
        cache = config.get_timing_cache() or self.cache
        there = _read(self.path)
        if there not in (b"", self.read):
            other = config.create_timing_cache(there)
            if other is not None:
                cache.combine(other, False)
        text = bytes(cache.serialize())
        if text == there:
            return
        try:
            with replacing(self.path) as temporary:
                temporary.write_bytes(text)
        except ExportError as error:
            send("note", code="timing-cache-not-written", why=str(error))


def attach(config: api.IBuilderConfig, path: Path, send: Send) -> TimingFile | None:
    """Let a build use the cache in a file, or an empty one where there is no file yet.

    A file that is none, or one of another GPU or version, is left as it is: ``None``.
    """
    stored = _read(path)
    cache = config.create_timing_cache(stored)
    if cache is not None and stored:
        # The SDK answers what it does not understand with an empty cache.
        blank = config.create_timing_cache(b"")
        empty = b"" if blank is None else bytes(blank.serialize())
        if stored != empty and bytes(cache.serialize()) == empty:
            cache = None
    if cache is None or not config.set_timing_cache(cache, False):
        send("note", code="timing-cache-ignored", why=str(path))
        return None
    return TimingFile(path, stored, cache)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
