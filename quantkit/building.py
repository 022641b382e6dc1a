"""``build``: the file that a target deploys; what can be refused is, before its SDK starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from quantkit import hardware, nvtx
from quantkit.checking import find_target, with_reasons
from quantkit.checking_files import facts_of, require_kind
from quantkit.errors import ModelFileError
from quantkit.interfaces import Finding, Inspection, Target
from quantkit.onnx.formats import formats_of
from quantkit.onnx.half import Precision, to_half
from quantkit.targets._rtx_findings import refuse_errors


@nvtx.phase("build")
def build(
    model: Path | str,
    output: Path | str,
    target: str | Target = "tensorrt_rtx",
    *,
    precision: Precision | None = None,
) -> Inspection:
    """Write the file that ``target`` deploys, and tell how each layer of it runs.

    Args:
        model: the file that the target reads: ONNX, or a program of ``export_pt2``.
        output: the file to write; it is replaced only by a whole one.
        target: a name or a target with its options.
        precision: put the float part of an ONNX file in half first, as ``to_half`` does without
            data; by default it is built as it is.

    Raises:
        ModelFileError: there is no such model file.
        TargetError: the target refuses the model, its GPU lacks a format of it, or ``output``
            cannot be written.
        MissingDependencyError: the target's SDK is not installed.
    """
    path, place = Path(model), find_target(target)
    require_kind(path, place)
    _require_formats(path, place)
    with _in_half(path, precision) as (made, notes):
        inspection = place.build(made, Path(output))
    return replace(
        inspection,
        layers=with_reasons(inspection.layers, facts_of(path, place)),
        findings=(*inspection.findings, *notes),
    )


@contextmanager
def _in_half(path: Path, precision: Precision | None) -> Iterator[tuple[Path, tuple[Finding, ...]]]:
    """The file with its float part in half, while it is built, and what was found meanwhile."""
    if precision is None:
        yield path, ()
        return
    if path.suffix != ".onnx":
        raise ModelFileError(f"{path}: only ONNX files are put in {precision}; leave precision out")
    with tempfile.TemporaryDirectory() as folder:
        report = to_half(path, Path(folder) / path.name, precision=precision)
        yield report.output, report.findings


def _require_formats(model: Path, place: Target) -> None:
    """Refuse, before an SDK is started, a file in a format that the target's GPU lacks."""
    name = type(place).__module__.rpartition(".")[2]
    known = name in {runtime.target for runtime in hardware.Runtime}
    if not (known and place.reads == "onnx" and hasattr(place, "compute_capability")):
        return
    named = place.compute_capability
    gpus = [d.gpu for d in hardware.detect_gpus().devices] if named is None else []
    gpu = next(iter(gpus), None) if named is None else hardware.Gpu.of(named)
    if gpu is None:
        return
    try:
        uses = formats_of(model)
    except ModelFileError:
        return  # the target tells what is wrong with the file
    refuse_errors(name, model, hardware.lacking(uses, gpu, hardware.runtime_of(name)))
