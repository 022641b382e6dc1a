"""What a file is to the target that it is checked for: its kind, its names, its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantkit.comparing import Feed, NotRunError, Reference, compare, compare_runs
from quantkit.errors import ModelFileError
from quantkit.interfaces import Inspection, Target
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.parity import OutputParity
from quantkit.program.reading import read_facts
from quantkit.targets.inductor import Inductor


def require_kind(path: Path, place: Target) -> None:
    """Refuse a program where ONNX is read, and the reverse.

    Raises:
        ModelFileError: it is of the other kind.
    """
    name = type(place).__module__.rpartition(".")[2]
    if place.reads == "pt2" and path.suffix == ".onnx":
        raise ModelFileError(
            f"{path}: the target {name} reads programs, not ONNX; write a .pt2 file (export_pt2, "
            "quantize -o net.pt2), or choose another target"
        )
    if place.reads == "onnx" and path.suffix == ".pt2":
        raise ModelFileError(
            f"{path}: the target {name} reads ONNX files; write one (export_onnx, quantize -o "
            "net.onnx), or choose the target inductor or torch_tensorrt"
        )


def facts_of(path: Path, place: Target) -> FileFacts:
    """What the file tells of itself.

    Raises:
        ModelFileError: there is no such file, or it is no such file.
    """
    return FileFacts.of(path) if place.reads == "onnx" else read_facts(path)


def parity(
    path: Path,
    place: Target,
    inspection: Inspection,
    facts: FileFacts,
    reference: Reference,
    data: Iterable[Any],
) -> tuple[tuple[OutputParity, ...], int]:
    """Its outputs beside those of a reference: ONNX in ONNX Runtime, a program on the target.

    Raises:
        NotRunError: it does not run.
        DataError: the data do not fit the reference or the file.
        TargetError: the file fails on the data.
    """
    if place.reads == "onnx":
        return compare(path, reference, data)
    if not inspection.ok:
        raise NotRunError("the target does not run it")
    compiled = place.opened(path, inspection) if isinstance(place, Inductor) else None

    def run(feed: Feed) -> tuple[list[Any], list[Any]]:
        outputs = place.run(path, [feed])[0] if compiled is None else compiled(feed)
        return outputs, outputs  # there is no mode beside this one

    return compare_runs(facts, run, reference, data)
