"""The kernels of an engine as steps: what a builder or an inspector told, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import onnx

from quantkit.profiling.kinds import Unit
from quantkit.profiling.report import LayerTime
from quantkit.profiling.steps import Step, StepKind
from quantkit.targets._engine_layers import UNTOLD, Kernel, TensorInfo, precision

_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_JOINS: Final = frozenset({"Add", "Concat", "Sum"})
_REFORMAT = re.compile(r"^Reformatting CopyNode|^__myl_(?:Move|Tran|Copy)+(?=_|$)", re.IGNORECASE)


def engine_steps(
    kernels: Sequence[Kernel], ops: Mapping[str, str], seconds: Mapping[str, float] | None = None
) -> tuple[Step, ...]:
    """The kernels of an engine, in order.

    Args:
        kernels: as the builder or the inspector tells them.
        ops: the operator of each node of the ONNX file, by the node's name; empty where there is
            no file.
        seconds: of each kernel, by its name, as ``IProfiler`` tells them.

    Example:
        >>> from quantkit.targets._engine_layers import TensorInfo
        >>> x = TensorInfo(name="x", dimensions=("1", "16", "8", "8"), format="int8")
        >>> kernel = Kernel(name="conv1_myl0_1", layer_type="correlation", inputs=(x,),
        ...                 constants=(), outputs=(), nodes=("conv1",))
        >>> step, = engine_steps([kernel], {"conv1": "Conv"})
        >>> step.layer, str(step.kind), step.precision
        ('conv1', 'product', 'int8')
    """
    times = seconds or {}
    return tuple(
        Step(
            name=kernel.name,
            layer=_layer(kernel, ops),
            op=kernel.layer_type,
            kind=_kind(kernel, ops),
            precision=_precision(kernel),
            inputs=tuple(tensor.name for tensor in kernel.inputs),
            outputs=tuple(tensor.name for tensor in kernel.outputs),
            channels=_channels(kernel),
            seconds=times.get(kernel.name),
        )
        for kernel in kernels
    )


def layers_of(steps: Sequence[Step]) -> tuple[LayerTime, ...]:
    """The layers that steps serve, in order, with times where the steps have them.

    Example:
        >>> step = Step(name="k", layer="conv1", op="gemm", kind=StepKind.PRODUCT,
        ...             precision="int8", seconds=0.5)
        >>> layer, = layers_of([step])
        >>> layer.name, layer.precision, layer.share
        ('conv1', 'int8', 1.0)
    """
    groups: dict[str, list[Step]] = {}
    for step in steps:
        if step.layer:
            groups.setdefault(step.layer, []).append(step)
    whole = sum(step.seconds or 0.0 for step in steps)
    return tuple(_layer_time(name, group, whole) for name, group in groups.items())


def operators(model: onnx.ModelProto) -> dict[str, str]:
    """The operator of each node, by the node's name."""
    return {node.name: node.op_type for node in model.graph.node}


def _layer_time(name: str, group: Sequence[Step], whole: float) -> LayerTime:
    main = next((step for step in group if step.kind is StepKind.PRODUCT), group[0])
    times = [step.seconds for step in group if step.seconds is not None]
    return LayerTime(
        name=name,
        op=", ".join(dict.fromkeys(step.op for step in group)),
        precision=main.precision,
        unit=Unit.UNKNOWN,
        kernels=len(group),
        seconds=sum(times) if times else None,
        share=min(1.0, sum(times) / whole) if times and whole > 0.0 else None,
    )


def _layer(kernel: Kernel, ops: Mapping[str, str]) -> str:
    """Of the nodes that it computes, the product's name; else the first that is no Q or DQ."""
    for node in kernel.nodes:
        if ops.get(node) in _PRODUCTS:
            return node
    for node in kernel.nodes:
        if ops.get(node) not in {"QuantizeLinear", "DequantizeLinear"}:
            return node
    return kernel.nodes[0] if kernel.nodes else ""


def _kind(kernel: Kernel, ops: Mapping[str, str]) -> StepKind:
    if kernel.is_product:
        return StepKind.PRODUCT
    if kernel.layer_type.lower() == "reformat" or _REFORMAT.search(kernel.name):
        return StepKind.REFORMAT
    told = {ops.get(node, "") for node in kernel.nodes}
    if told & _JOINS:
        return StepKind.JOIN
    if told == {"QuantizeLinear"}:
        return StepKind.QUANTIZE
    if told == {"DequantizeLinear"}:
        return StepKind.DEQUANTIZE
    return StepKind.OTHER


def _precision(kernel: Kernel) -> str:
    # Where weights are stored in few bits beside a float operand, they are dequantized inside.
    told = precision(kernel, quantized_weight=True)
    return "" if told == UNTOLD else told


def _channels(kernel: Kernel) -> tuple[int, int] | None:
    """Input and output channels of one group, by the shape of the (padded) weight."""
    if not kernel.is_product or not kernel.inputs:
        return None
    weight = next((c for c in kernel.constants if len(c.dimensions) == 4), None)
    sizes = None if weight is None else _sizes(weight)
    given = _sizes(kernel.inputs[0])
    if sizes is None or given is None or len(given) != 4 or sizes[0] <= 1 or sizes[1] < 1:
        return None
    groups = max(1, given[1] // sizes[1])
    return sizes[1], sizes[0] // groups


def _sizes(tensor: TensorInfo) -> tuple[int, ...] | None:
    try:
        return tuple(int(size) for size in tensor.dimensions)
    except ValueError:
        return None
