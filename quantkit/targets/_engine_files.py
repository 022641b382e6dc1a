"""Writes engines: whole, with a record of what they are, and from the cache where it has one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import quantkit
from quantkit.errors import TargetError
from quantkit.interfaces import Finding, Inspection, Severity
from quantkit.tensorrt.engine_cache import EngineCache
from quantkit.tensorrt.engine_record import EngineRecord, place, remember
from quantkit.tensorrt.fingerprint import Fingerprint
from quantkit.tensorrt.trust import hash_file


@dataclass(frozen=True, kw_only=True)
class Order:
    """An engine that is wanted.

    Attributes:
        model: the ONNX file.
        output: the file to write.
        gpu: what it is built for, such as ``NVIDIA A40 (8.6)``.
        options: what is chosen, as JSON can hold it.
        cache: where engines are kept; ``None`` to keep none.
        key: of this engine there.
        fingerprint: of the file, where it is known already.
    """

    model: Path
    output: Path
    gpu: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: EngineCache | None = None
    key: str = ""
    fingerprint: Fingerprint | None = None


def require_folder(output: Path | None) -> None:
    """Tell before a build, not after it, that its result has no place to be.

    Raises:
        TargetError: it is to lie in a folder that does not exist.
    """
    if output is not None and not output.parent.is_dir():
        raise TargetError(f"cannot write {output}: its folder does not exist; make it first")


def deliver(order: Order, make: Callable[[Path], tuple[Inspection, str]]) -> Inspection:
    """Write the engine, from the cache where it is there.

    Args:
        order: what is wanted.
        make: builds it into a file, and says what became of it and what built it; raises where
            nothing was built.

    Raises:
        ExportError: it cannot be written.
    """
    # In the folder of the output: only within one file system is a rename atomic.
    partial = order.output.with_name(f".{order.output.name}.{os.getpid()}.partial")
    try:
        kept = order.cache and order.cache.find(order.key)
        if order.cache and kept:
            order.cache.take(order.key, partial)
            place(partial, order.output, kept)
            findings = (*kept.findings, _from_cache(order))
            return Inspection(target=kept.built_by, layers=kept.layers, findings=findings)
        inspection, built_by = make(partial)
        record = EngineRecord(
            sha256=hash_file(partial),
            model=order.fingerprint or Fingerprint.of(order.model),
            built_by=built_by,
            gpu=order.gpu,
            quantkit=quantkit.__version__,
            options=order.options,
            seconds=inspection.seconds,
            layers=inspection.layers,
            findings=inspection.findings,
        )
        notes = remember(order.output, record)
        if order.cache:
            notes += order.cache.keep(order.key, partial, record)
        place(partial, order.output, record)
        return replace(inspection, findings=(*inspection.findings, *notes))
    finally:
        partial.unlink(missing_ok=True)


def _from_cache(order: Order) -> Finding:
    assert order.cache is not None
    return Finding(
        severity=Severity.INFO,
        code="engine-from-cache",
        where=order.output.name,
        why=f"It was built before, and comes from {order.cache.path(order.key)}.",
        fix="Delete that file to build it again.",
    )
