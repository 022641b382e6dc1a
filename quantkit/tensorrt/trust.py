"""Which engines may be loaded: those that this user has built here, and those that are vouched for.

An engine is code: loading one runs what is in it, on the GPU and on the host
(https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/security.html). So each engine that
is built leaves a record in a folder of the user's own, under its SHA-256, and what has no record
there is not loaded. That is worth as much as the folder is: who can write to it can do anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from quantkit.errors import ModelFileError, TargetError
from quantkit.files import replacing

#: The environment variable that names another folder.
STATE = "QUANTKIT_STATE"


def state_folder() -> Path:
    """Where records are kept: ``$QUANTKIT_STATE``, else the platform's folder for such things.

    On Linux that is ``$XDG_STATE_HOME/quantkit``, or ``~/.local/state/quantkit``.
    """
    if named := os.environ.get(STATE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "quantkit"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "quantkit"


def remember(sha256: str, facts: Mapping[str, object]) -> None:
    """Record that an engine was built here; ``facts`` are for people.

    Raises:
        OSError: the folder cannot be written to.
        ExportError: likewise.
    """
    record = _record(sha256)
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(record) as temporary:
        told = {"sha256": sha256, "host": platform.node(), **facts}
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def is_known(sha256: str) -> bool:
    """Whether an engine was built here."""
    return _record(sha256).is_file()


def read_trusted(engine: Path, *, trusted: bool) -> bytes:
    """The engine in a file, if it may be loaded; the very bytes that were checked.

    Args:
        engine: the file.
        trusted: the user vouches for it.

    Raises:
        ModelFileError: it cannot be read.
        TargetError: it was not built here, and nobody vouches for it.
    """
    try:
        data = engine.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{engine}: cannot be read ({error.strerror}); give an engine, as build writes it, or "
            "the ONNX file that it is built from"
        ) from error
    if not trusted and not is_known(hashlib.sha256(data).hexdigest()):
        raise TargetError(
            f"{engine} is not loaded: no record says that it was built here (an engine is code: "
            "loading it runs what is in it); build it here from its ONNX file, or say that you "
            "trust whoever built it: trust_engine=True"
        )
    return data


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(sha256: str) -> Path:
    return state_folder() / "engines" / f"{sha256}.json"
