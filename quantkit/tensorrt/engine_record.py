"""What an engine was built from, by what and where: the file beside it, ``<engine>.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import ExportError
from quantkit.files import replacing
from quantkit.interfaces import Finding, LayerCoverage, Severity
from quantkit.tensorrt import trust
from quantkit.tensorrt.fingerprint import Fingerprint


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The facts of one engine.

    Attributes:
        sha256: of the engine itself, so that one put in its place is noticed.
        model: the fingerprint of the ONNX file.
        built_by: such as ``tensorrt 10.13.3``.
        gpu: that it was built for, such as ``NVIDIA A40 (8.6)``.
        quantkit: its version.
        options: what was chosen.
        seconds: how long the build took.
        layers: how each layer runs.
        findings: what the build had to tell.
    """

    sha256: str
    model: Fingerprint
    built_by: str
    gpu: str
    quantkit: str
    options: Mapping[str, Any]
    seconds: float
    layers: tuple[LayerCoverage, ...] = ()
    findings: tuple[Finding, ...] = ()

    @staticmethod
    def path(engine: Path) -> Path:
        """Where the record of an engine lies."""
        return engine.with_name(f"{engine.name}.json")

    @classmethod
    def read(cls, engine: Path) -> EngineRecord | None:
        """The record of an engine; ``None`` where there is none, or none that is understood."""
        try:
            plain = json.loads(cls.path(engine).read_bytes())
            plain["model"] = Fingerprint(**plain["model"])
            plain["layers"] = tuple(LayerCoverage(**layer) for layer in plain["layers"])
            plain["findings"] = tuple(
                Finding(**{**finding, "severity": Severity(finding["severity"])})
                for finding in plain["findings"]
            )
            return cls(**plain)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self, engine: Path) -> None:
        """Put the record beside its engine, whole or not at all."""
        with replacing(self.path(engine)) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def remember(engine: Path, record: EngineRecord) -> list[Finding]:
    """Note that an engine was built here; a warning where nothing can be noted."""
    facts = {"engine": str(engine.resolve()), "built_by": record.built_by, "gpu": record.gpu}
    try:
        trust.remember(record.sha256, facts)
    except (OSError, ExportError) as error:
        return [_not_remembered(engine, str(error))]
    return []


def place(partial: Path, output: Path, record: EngineRecord) -> None:
    """Put a whole engine in its place, and its record beside it.

    Args:
        partial: the engine, in the folder of ``output``.
        output: where it belongs; what is there is replaced.
        record: of the engine.

    Raises:
        ExportError: ``output`` cannot be written.
    """
    try:
        partial.replace(output)
    except OSError as error:
        raise ExportError(
            f"{output}: cannot be written ({error.strerror}); check the disk, and that it is no "
            "folder"
        ) from error
    record.write(output)


def _not_remembered(output: Path, why: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="engine-not-remembered",
        where=output.name,
        why=f"Nothing records that it was built here, so it is not loaded without trust: {why}.",
        fix=f"Set {trust.STATE} to a folder that you may write to, and build it again.",
    )
