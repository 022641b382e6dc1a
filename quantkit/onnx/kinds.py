"""What each ONNX operator is, as far as quantization cares: the counterpart of ATen's table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from quantkit.graph.abstract import Kind
from quantkit.onnx.plain import scalar

_NAMES: dict[Kind, str] = {
    Kind.CONV: "Conv",
    Kind.CONV_TRANSPOSE: "ConvTranspose",
    Kind.LINEAR: "Gemm",
    Kind.MATMUL: "MatMul",
    Kind.ADD: "Add",
    Kind.MUL: "Mul Div",
    Kind.CONCAT: "Concat",
    Kind.RELU: "Relu Clip",
    Kind.POINTWISE: (
        "Gelu Swish Mish Sigmoid Tanh HardSwish HardSigmoid LeakyRelu Elu Selu Softplus Sub Neg "
        "Exp Sqrt Pow Erf Reciprocal"
    ),
    Kind.SOFTMAX: "Softmax LogSoftmax",
    Kind.NORM: (
        "LayerNormalization GroupNormalization InstanceNormalization RMSNormalization "
        "SimplifiedLayerNormalization"
    ),
    Kind.BATCH_NORM: "BatchNormalization",
    Kind.MAX_POOL: "MaxPool GlobalMaxPool",
    Kind.AVERAGE_POOL: "AveragePool GlobalAveragePool ReduceMean",
    Kind.MOVE: (
        "Reshape Flatten Transpose Squeeze Unsqueeze Identity Expand Tile Dropout DepthToSpace "
        "SpaceToDepth"
    ),
    Kind.SLICE: "Slice Split",
    Kind.RECURRENT: "LSTM GRU RNN",
}
_KINDS: dict[str, Kind] = {name: kind for kind, text in _NAMES.items() for name in text.split()}
#: What reads one tensor, and then numbers that say how: shapes, axes, amounts, bounds.
_ONE_INPUT = frozenset(
    {Kind.MOVE, Kind.SLICE, Kind.PAD, Kind.UPSAMPLE, Kind.RESIZE, Kind.RELU, Kind.AVERAGE_POOL,
     Kind.MAX_POOL, Kind.SOFTMAX}
)  # fmt: skip
#: What acts on each element alone, so that a formula of it is one activation function.
ELEMENTWISE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Erf",
        "Tanh",
        "Sigmoid",
        "Exp",
        "Neg",
        "Sqrt",
        "Softplus",
        "HardSigmoid",
        "Clip",
        "Relu",
        "Log",
        "Reciprocal",
        "Abs",
        "Min",
        "Max",
    ]
)


def kind_of(node: ir.Node) -> Kind:
    """What an operator is; a function or an operator of another vendor is `Kind.OTHER`."""
    if node.domain not in {"", "ai.onnx"}:
        return Kind.NORM if node.op_type == "SimplifiedLayerNormalization" else Kind.OTHER
    special = _SPECIAL.get(node.op_type)
    return special(node) if special is not None else _KINDS.get(node.op_type, Kind.OTHER)


def tensor_inputs(node: ir.Node, kind: Kind) -> list[int]:
    """The inputs that are tensors of the model, not numbers that say how."""
    given = [i for i, value in enumerate(node.inputs) if value is not None]
    if kind in _ONE_INPUT:
        return given[:1]
    if kind in {Kind.ADD, Kind.MUL, Kind.POINTWISE}:
        return [i for i in given if scalar(node.inputs[i]) is None]
    return given


def integers(value: ir.Value | None) -> list[int] | None:
    """What a constant of integers holds."""
    if value is None or value.const_value is None:
        return None
    return [int(n) for n in np.atleast_1d(value.const_value.numpy())]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or its default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def rank(value: ir.Value | None) -> int | None:
    """How many dimensions a tensor has."""
    return None if value is None or value.shape is None else len(value.shape)


def pad_amounts(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """How much a Pad adds before and behind each dimension; ``None`` where data decide."""
    amounts, dims = integers(node.inputs[1]), rank(node.inputs[0])
    if amounts is None or dims is None:
        return None
    axes = integers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    axes = list(range(dims)) if axes is None else [a % dims for a in axes]
    half = len(axes)
    return {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(axes)}


def pads_space(node: ir.Node) -> bool:
    """Whether a Pad touches spatial dimensions only, and cuts nothing."""
    amounts = pad_amounts(node)
    if amounts is None or any(n < 0 for pair in amounts.values() for n in pair):
        return False
    return not any(any(amounts.get(axis, ())) for axis in (0, 1))


def _add(node: ir.Node) -> Kind:
    return Kind.ADD if len(tensor_inputs(node, Kind.ADD)) > 1 else Kind.POINTWISE


def _gemm(node: ir.Node) -> Kind:
    plain = not attribute(node, "transA", 0)
    plain &= attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    return Kind.LINEAR if plain else Kind.OTHER


def _mean(node: ir.Node) -> Kind:
    """A mean over the last dimensions of an image is a global average pool."""
    dims = rank(node.inputs[0])
    axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None or axes is None or dims < 3:
        return Kind.POINTWISE
    over = sorted(a % dims for a in axes)
    return Kind.AVERAGE_POOL if over == list(range(2, dims)) else Kind.POINTWISE


def _pad(node: ir.Node) -> Kind:
    mode = attribute(node, "mode", "constant")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    return Kind.PAD if mode == "constant" and (fill is None or scalar(fill) == 0.0) else Kind.OTHER


def _resize(node: ir.Node) -> Kind:
    return Kind.UPSAMPLE if attribute(node, "mode", "nearest") == "nearest" else Kind.RESIZE


def _gather(node: ir.Node) -> Kind:
    """One entry of a tensor is a part of it; rows of a constant table are an embedding."""
    data, index = node.inputs[:2]
    if data is not None and data.const_value is not None:
        return Kind.EMBEDDING
    chosen = integers(index)
    return Kind.SLICE if chosen is not None and len(chosen) == 1 else Kind.OTHER


def _slice(node: ir.Node) -> Kind:
    """A slice that runs backwards over everything flips the tensor: values only move."""
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else None
    return Kind.MOVE if steps is not None and all(step == -1 for step in steps) else Kind.SLICE


def _cast(node: ir.Node) -> Kind:
    source = node.inputs[0]
    same = source is not None and source.dtype == attribute(node, "to", None)
    return Kind.MOVE if same else Kind.OTHER


_SPECIAL = {
    "Add": _add,
    "Cast": _cast,
    "Gather": _gather,
    "Gemm": _gemm,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Resize": _resize,
    "Slice": _slice,
    "Upsample": _resize,
}
