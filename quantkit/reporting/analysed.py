"""Sections of what analyses find: sensitivity, diagnosis, parity of layers, a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantkit.analysis.advice import advise
from quantkit.analysis.diagnosis import (
    Diagnosis,
    GridUse,
    LayerDiagnosis,
    diagnose,
    float_parameters,
)
from quantkit.analysis.losses import Sensitivity, decibels
from quantkit.analysis.sensitivity import sensitivity
from quantkit.benching.sources import UnfitError
from quantkit.interfaces import ModelFormat
from quantkit.layer_parity import LayerParity, compare_layers
from quantkit.onnx.parity import Closeness
from quantkit.profiling.composing import counted
from quantkit.profiling.layer_memory import MemoryReport, memory
from quantkit.profiling.profile import ProfileReport, profile
from quantkit.profiling.roofline import Roofline
from quantkit.profiling.roofs import measure_roof
from quantkit.reporting.section import Data, Unavailable
from quantkit.reporting.subject import Subject

#: So many kernels of a profile are listed; their shares tell how much the others are.
KERNELS = 30
#: Runs that a profile records.
RUNS = 10


def sensitivity_section(subject: Subject) -> Data:
    """What each layer costs at the outputs when it alone is quantized.

    Raises:
        Unavailable: the model is an ONNX file.
    """
    _, prepared = subject.of_pytorch()
    return told_sensitivity(sensitivity(prepared, subject.calls()))


def told_sensitivity(found: Sensitivity) -> Data:
    """As it stands in a report, the most sensitive layer first."""
    return {
        "format": found.columns[0],
        "samples": found.samples,
        "runs": found.runs,
        "together": decibels(found.together()),
        "parts": [
            {"layer": part.name, "layers": list(part.layers),
             "noise": None if part.losses[0] is None else part.losses[0].noise,
             "sqnr": None if part.losses[0] is None else part.losses[0].sqnr,
             "weight_bytes": None if part.losses[0] is None else part.losses[0].weight_bytes,
             "bit_operations": None if part.losses[0] is None else part.losses[0].bit_operations}
            for part in found.ranked()
        ],
    }  # fmt: skip


def diagnosis_of(subject: Subject) -> Diagnosis:
    """What quantization does to each layer by itself, and what its weights and inputs add to it.

    Raises:
        Unavailable: the model is an ONNX file.
    """
    _, prepared = subject.of_pytorch()
    assert subject.in_place is not None  # it is one of PyTorch
    floating = float_parameters(prepared)
    return diagnose(subject.in_place, subject.batches, samples=subject.samples, floating=floating)


def advice_section(subject: Subject, diagnosed: Callable[[], Diagnosis], trials: int) -> Data:
    """Changes of the recipe that the diagnosis speaks for, each tried on held-out samples.

    Args:
        subject: the model.
        diagnosed: its diagnosis; made only where it is needed.
        trials: so many are tried at most; 0 for none.

    Raises:
        Unavailable: no trials were asked for, or the model is an ONNX file.
    """
    if isinstance(subject.model, Path):
        subject.of_pytorch()  # which tells
    if trials == 0 or isinstance(subject.model, Path):
        raise Unavailable(
            "Not asked: each change of the recipe that the errors speak for is calibrated and "
            "measured; give --advise 12 to try as many."
        )
    first = subject.batches[0]
    args, kwargs = ((), first) if isinstance(first, dict) else (first, None)
    found = advise(
        diagnosed(), subject.model, subject.recipe, subject.batches, samples=subject.samples,
        trials=trials, example_inputs=args, example_kwargs=kwargs,
    )  # fmt: skip
    return {**found.to_data(), "yaml": found.recipe.to_yaml()}


def told_diagnosis(found: Diagnosis) -> Data:
    """As it stands in a report, in the order of execution."""
    return {
        "recipe": found.recipe,
        "samples": found.samples,
        "sqnr": found.sqnr,
        "layers": [_diagnosed(layer) for layer in found.layers],
        "others": [_grid(grid) for grid in found.others],
    }


def _diagnosed(layer: LayerDiagnosis) -> dict[str, Any]:
    own, weight = layer.activations, layer.weight
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "sqnr": layer.sqnr,
        "model_sqnr": layer.model_sqnr,
        "weights_sqnr": layer.weights_sqnr,
        "activations_sqnr": layer.activations_sqnr,
        "weights_share": layer.weights_share,
        "activations_share": layer.activations_share,
        "mean_share": layer.mean_share,
        "saturated": max((grid.saturated for grid in own), default=None),
        "unused": max((grid.unused for grid in own), default=None),
        "spread": max((grid.spread for grid in own), default=None),
        "weight_spread": None if weight is None else weight.spread,
        "outliers": sum(grid.outliers for grid in own),
        "grids": [_grid(grid) for grid in layer.grids],
    }


def _grid(grid: GridUse) -> dict[str, Any]:
    return {**asdict(grid), "sqnr": grid.sqnr}


def layer_parity_section(subject: Subject) -> Data:
    """The float, the simulated and the deployed model at every layer and grid.

    Raises:
        Unavailable: the model is an ONNX file.
    """
    quantized, _ = subject.of_pytorch()
    return told_parity(
        compare_layers(
            subject.file(), quantized, subject.batches,
            floating=subject.float_model(), samples=subject.samples,
        )
    )  # fmt: skip


def told_parity(found: LayerParity) -> Data:
    """As it stands in a report, in graph order."""
    return {
        "samples": found.samples,
        "departs": found.departs,
        "ran_on": found.ran_on,
        "notes": list(found.notes),
        "findings": [asdict(finding) for finding in found.findings],
        "tensors": [
            {"tensor": t.name, "kind": t.kind, "default_mode": t.default_mode,
             "simulated": _close(t.simulated), "deployed": _close(t.deployed),
             "own": _close(t.own), "target": _close(t.target)}
            for t in found.tensors
        ],
    }  # fmt: skip


def _close(value: Closeness | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def profile_section(subject: Subject, threads: int) -> Data:
    """Where the time of the float and of the quantized file goes, in ONNX Runtime.

    The quantized one is also placed under the roof of this processor, which is measured for it.

    Raises:
        Unavailable: the float model has no ONNX form to compare with.
    """
    try:
        original = subject.original.file("onnx", "onnxruntime", half=False)
    except UnfitError as error:
        raise Unavailable(f"There is nothing to compare with: {error}") from error
    with _threads(threads):
        roof = measure_roof()
    quantized = subject.file("onnxruntime")
    of_file = partial(
        profile, target="onnxruntime", data=subject.batches, runs=RUNS, threads=threads
    )
    found = (of_file(original), of_file(quantized, roof=roof))
    names = ("float", subject.recipe.name)
    runs = told_profiles(replace(p, subject=n) for p, n in zip(found, names, strict=True))
    return {**runs, "memory": _memory(_lives(subject))}


def _lives(subject: Subject) -> MemoryReport:
    """Which bytes live while each layer runs, one sample a run, in float and by the plan."""
    reads: ModelFormat = "pt2" if "pt2" in subject.original.formats else "onnx"
    file = subject.original.file(reads, "onnxruntime", half=False)
    found = counted(file, {}, 1)
    return memory(found.graph, found.sizes, batch=1, plan=subject.quantized.plan)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def told_profiles(found: Iterable[ProfileReport]) -> Data:
    """As they stand in a report: of each run its layers, its slowest kernels and its totals."""
    return {"runs": [_profiled(profile) for profile in found]}


def _profiled(found: ProfileReport) -> dict[str, Any]:
    totals = found.totals
    return {
        "subject": found.subject,
        "runtime": found.runtime,
        "device": found.device,
        "batch": found.batch,
        "totals": None
        if totals is None
        else {**asdict(totals), "busy_share": totals.busy_share, "gaps_s": totals.gaps_s,
              "overhead": totals.overhead},
        "layers": [{**asdict(layer), "unit": str(layer.unit)} for layer in found.layers],
        "kernels": [
            {"name": k.name, "layer": k.layer, "op": k.op, "unit": str(k.unit),
             "confidence": str(k.confidence), "dtype": str(k.dtype), "work": str(k.work),
             "calls": k.calls, "seconds": k.seconds, "share": k.share}
            for k in found.kernels[:KERNELS]
        ],
        "left_out": max(0, len(found.kernels) - KERNELS),
        "findings": [asdict(finding) for finding in found.findings],
        "roofline": None if found.roofline is None else _roofline(found.roofline),
        "notes": list(found.notes),
    }  # fmt: skip


def _roofline(found: Roofline) -> dict[str, Any]:
    roof = found.roof
    return {
        "name": roof.name,
        "source": roof.source,
        "peaks": {str(dtype): peak for dtype, peak in roof.peaks.items()},
        "bandwidth": roof.bandwidth,
        "memory_bound": found.share("memory"),
        "points": [
            {"layer": p.name, "dtype": str(p.dtype), "flops": p.flops, "bytes": p.bytes,
             "intensity": p.intensity, "bound": p.bound, "attainable": p.attainable,
             "seconds": p.seconds, "distance": p.distance,
             "gains": {str(dtype): gain for dtype, gain in p.gains.items()}}
            for p in found.points
        ],
    }  # fmt: skip


def _memory(found: MemoryReport) -> dict[str, Any]:
    return {
        "batch": found.batch,
        "plans": [
            {"variant": plan.variant, "weights": plan.weights, "peak": plan.peak,
             "total": plan.total,
             "peak_at": None if plan.highest is None else plan.highest.name,
             "live": {layer.name: layer.live for layer in plan.layers}}
            for plan in found.plans
        ],
    }  # fmt: skip
