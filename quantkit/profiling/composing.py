"""Puts the roofline and the memory of a model beside the times of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantkit.benching.inputs import Arrays
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.layer_memory import memory
from quantkit.profiling.report import ProfileReport
from quantkit.profiling.roofline import Roof, roofline
from quantkit.profiling.work import Size, count

if TYPE_CHECKING:
    from quantkit.graph.abstract import Graph

#: Ends the precision of a layer whose weights alone have few bits: it multiplies in float.
_WEIGHTS: Final = " weights"
#: Types by quantkit's words for precisions.
_DTYPES: Final = {
    "float32": Dtype.FP32,
    "float16": Dtype.FP16,
    "bfloat16": Dtype.BF16,
    "tf32": Dtype.TF32,
    "int8": Dtype.INT8,
    "uint8": Dtype.INT8,
    "fp8": Dtype.FP8_E4M3,
    "fp8_e4m3": Dtype.FP8_E4M3,
    "int4": Dtype.INT4,
    "fp4": Dtype.FP4,
}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a model computes: its operators, and the sizes of its tensors.

    Attributes:
        graph: of operators, whose names are those of layers.
        sizes: of tensors by name.
        batch: samples a run, for which the sizes are.
        layers: by names of nodes, which runtimes print, the names that layers have here.
    """

    graph: Graph
    sizes: Mapping[str, Size]
    batch: int
    layers: Mapping[str, str] = field(default_factory=dict)


def counted(file: Path, inputs: Arrays, batch: int) -> Counted:
    """Read a program or an ONNX file for what it computes.

    Args:
        file: ``.pt2`` or ``.onnx``.
        inputs: of one run: they tell sizes that the file leaves open.
        batch: samples in it.
    """
    from quantkit.profiling.sizes import layers_of_nodes, onnx_sizes, sizes_of

    if file.suffix == ".onnx":
        graph, sizes = onnx_sizes(file, batch=batch, dims=_open_sizes(file, inputs))
        return Counted(graph=graph, sizes=sizes, batch=batch, layers=layers_of_nodes(file))
    from quantkit.graph.aten import describe
    from quantkit.program.reading import read_program

    found = describe(read_program(file).program.module(check_guards=False))
    return Counted(graph=found.graph, sizes=sizes_of(found, batch=batch), batch=batch)


def composed(
    report: ProfileReport, model: Counted, *, roof: Roof | None, with_memory: bool
) -> ProfileReport:
    """The report with each layer's place under a roof, and with what lives while each runs.

    A layer's time is that of its product with what was fused into it; the roof is that of the
    product alone.
    """
    if roof is not None:
        work = count(model.graph, model.sizes, model.batch)
        called = {layer.name: model.layers.get(layer.name, layer.name) for layer in report.layers}
        names = {layer.name for layer in work.layers}
        timed = {
            called[layer.name]: layer.seconds
            for layer in report.layers
            if called[layer.name] in names and layer.seconds
        }
        dtypes = {
            called[layer.name]: _DTYPES.get(layer.precision, Dtype.FP32) for layer in report.layers
        }
        known = {n: d if d in roof.peaks else Dtype.FP32 for n, d in dtypes.items()}
        if lacking := sorted({str(d) for d in dtypes.values() if d not in roof.peaks}):
            note = (
                f"The roof of {roof.name} has no peak for {', '.join(lacking)}: such layers stand "
                "under that of fp32, with fp32 tensors."
            )
            report = replace(report, notes=(*report.notes, note))
        weights = {
            model.layers.get(step.layer, step.layer): held
            for step in report.steps
            if step.precision.endswith(_WEIGHTS)
            and (held := _DTYPES.get(step.precision.removesuffix(_WEIGHTS))) is not None
        }
        found = roofline(work, roof, seconds=timed, dtypes=known, weights=weights)
        report = replace(report, roofline=found)
    if with_memory:
        report = replace(report, memory=memory(model.graph, model.sizes, batch=model.batch))
    return report


def _open_sizes(file: Path, inputs: Arrays) -> dict[str, int]:
    """Sizes by the names that an ONNX file has for those that it leaves open."""
    from quantkit.onnx.facts import read_proto

    found: dict[str, int] = {}
    for given in read_proto(file).graph.input:
        if given.name in inputs:
            shape = inputs[given.name].shape
            dims = given.type.tensor_type.shape.dim
            for dim, size in list(zip(dims, shape, strict=False))[1:]:
                if dim.dim_param:
                    found[dim.dim_param] = int(size)
    return found
