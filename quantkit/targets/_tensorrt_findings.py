"""What is known of a file before TensorRT has built it, and what a build leaves to be said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from quantkit.interfaces import Finding, Severity
from quantkit.targets._engine_source import Source


def route(source: Source, *, calibrated: bool) -> Iterator[Finding]:
    """Whether the file is one for a calibrator, or one for none."""
    if source.has_qdq and calibrated:
        yield Finding(
            severity=Severity.ERROR,
            code="calibrator-ignored",
            where=source.path.name,
            why="It holds Q/DQ, and TensorRT ignores a calibrator then.",
            fix="Build it without a calibrator, or calibrate the float file it was made from.",
        )
    if not source.has_qdq and not calibrated:
        yield Finding(
            severity=Severity.WARNING,
            code="float-model",
            where=source.path.name,
            why="It holds no Q/DQ, and no calibrator is set: all of it runs in float.",
            fix="Quantize it with quantkit, or set a calibrator (before TensorRT 11).",
        )


def not_covered(model: Path, why: str) -> Finding:
    """That nobody tells what runs in INT8: a build alone does not show it."""
    return Finding(
        severity=Severity.INFO,
        code="coverage-unknown",
        where=model.name,
        why=f"Which kernel each layer got is not known: {why}.",
        fix="Check it with the target tensorrt_rtx, which tells how each layer runs.",
    )


def not_parsed(model: Path, why: str) -> Finding:
    """That the parser of TensorRT has not seen the file, and why."""
    return Finding(
        severity=Severity.WARNING,
        code="not-parsed",
        where=model.name,
        why=f"TensorRT has not seen it: {why}.",
        fix="Check it with the target tensorrt_rtx, which has the same parser and needs no GPU.",
    )


def not_cached(model: Path, why: str) -> Finding:
    """That a cache of engines was given, and this engine is not kept in it."""
    return Finding(
        severity=Severity.INFO,
        code="engine-not-cached",
        where=model.name,
        why=f"The engine is not kept in the cache: {why}.",
        fix="Leave engine_cache out, or give what is missing.",
    )


def timing(notes: Mapping[str, str]) -> Iterator[Finding]:
    """What became of the timing cache, where it is not as it should be."""
    if path := notes.get("timing-cache-ignored"):
        yield Finding(
            severity=Severity.WARNING,
            code="timing-cache-ignored",
            where=Path(path).name,
            why="It holds no timings of this GPU and this version of TensorRT: it was neither used "
            "nor changed.",
            fix="Name another file: each GPU and each version needs its own.",
        )
    if why := notes.get("timing-cache-not-written"):
        yield Finding(
            severity=Severity.WARNING,
            code="timing-cache-not-written",
            where="timing cache",
            why=f"The timings of this build were not kept: {why}.",
            fix="Name a file in a folder that you may write to.",
        )
