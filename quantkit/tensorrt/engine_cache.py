"""Engines kept by what they were built from, so that the same build is done once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantkit
from quantkit.errors import ExportError
from quantkit.files import replacing
from quantkit.interfaces import Finding, Severity
from quantkit.onnx.facts import read_proto
from quantkit.tensorrt import trust
from quantkit.tensorrt.engine_record import EngineRecord
from quantkit.tensorrt.fingerprint import Fingerprint


def engine_key(
    model: Path, fingerprint: Fingerprint, *, built_by: str, gpu: str, options: Mapping[str, Any]
) -> str:
    """What two builds have in common whose engines are interchangeable.

    Reports quote the plan, which lies in the file's metadata and is no part of the fingerprint: so
    that counts as well.

    Args:
        model: the ONNX file.
        fingerprint: of it.
        built_by: the SDK and its version.
        gpu: its name and compute capability.
        options: all that is chosen, as JSON can hold it.
    """
    proto = read_proto(model)
    told = [sorted((p.key, p.value) for p in proto.metadata_props)]
    told += [[(p.key, p.value) for p in node.metadata_props] for node in proto.graph.node]
    parts = [
        fingerprint.graph,
        fingerprint.weights,
        hashlib.sha256(repr(told).encode()).hexdigest(),
        built_by,
        gpu,
        quantkit.__version__,
        options,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class EngineCache:
    """A folder of engines, each with its record beside it.

    Attributes:
        folder: made when the first engine is kept.
        trusted: engines are taken whoever built them.
    """

    folder: Path
    trusted: bool = False

    def path(self, key: str) -> Path:
        """Where an engine is kept."""
        return self.folder / f"{key}.engine"

    def find(self, key: str) -> EngineRecord | None:
        """The record of an engine that is there, whole, and was built here or is trusted."""
        engine = self.path(key)
        record = EngineRecord.read(engine)
        if record is None or not engine.is_file():
            return None
        if not (self.trusted or trust.is_known(record.sha256)):
            return None
        return record if trust.hash_file(engine) == record.sha256 else None

    def take(self, key: str, partial: Path) -> None:
        """Copy an engine that was found to ``partial``."""
        shutil.copyfile(self.path(key), partial)

    def keep(self, key: str, engine: Path, record: EngineRecord) -> list[Finding]:
        """Copy an engine into the folder; a warning where that fails, and no more."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(key)) as temporary:
                shutil.copyfile(engine, temporary)
            record.write(self.path(key))
        except (OSError, ExportError) as error:
            return [_not_kept(self.folder, str(error))]
        return []


def _not_kept(folder: Path, why: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="engine-not-kept",
        where=str(folder),
        why=f"The engine was built, and not kept for the next time: {why}.",
        fix="Name a folder that you may write to, on a disk with room.",
    )
