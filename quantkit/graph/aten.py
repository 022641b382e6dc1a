"""Describe a captured graph of ATen operators as the abstract graph that the rules read."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op, Value

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), Kind.CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), Kind.CONV_TRANSPOSE),
    "linear": Kind.LINEAR,
    **dict.fromkeys(("matmul", "bmm", "mm"), Kind.MATMUL),
    **dict.fromkeys(("add", "add_"), Kind.ADD),
    **dict.fromkeys(("mul", "mul_", "div", "div_"), Kind.MUL),
    **dict.fromkeys(("cat", "concat", "concatenate"), Kind.CONCAT),
    **dict.fromkeys(
        ("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min"),
        Kind.RELU,
    ),
    **dict.fromkeys(
        ("gelu", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_", "hardsigmoid",
         "leaky_relu", "leaky_relu_", "elu", "sub", "rsub", "neg", "exp", "sqrt", "rsqrt", "pow"),
        Kind.POINTWISE,
    ),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), Kind.SOFTMAX),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), Kind.NORM),
    "batch_norm": Kind.BATCH_NORM,
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d"), Kind.MAX_POOL),
    **dict.fromkeys(
        ("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
         "adaptive_avg_pool3d", "mean"),
        Kind.AVERAGE_POOL,
    ),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
         "unsqueeze", "contiguous", "clone", "expand", "dropout", "dropout_", "alias", "detach",
         "movedim", "swapaxes", "feature_dropout", "_unsafe_view", "numpy_T", "pixel_shuffle",
         "channel_shuffle", "roll", "expand_as", "view_as"),
        Kind.MOVE,
    ),
    **dict.fromkeys(("slice", "select", "split", "chunk", "split_with_sizes", "narrow", "unbind"), Kind.SLICE),
    **dict.fromkeys(("pad", "constant_pad_nd"), Kind.PAD),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), Kind.UPSAMPLE),
    **dict.fromkeys(("upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "grid_sampler"), Kind.RESIZE),
    "embedding": Kind.EMBEDDING,
}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """An abstract graph and where each of its parts stands in the captured one."""

    graph: Graph
    node_of_op: dict[str, fx.Node]
    node_of_value: dict[str, fx.Node]


def describe(module: fx.GraphModule) -> Description:
    """The abstract graph of a captured model; constants and parameters keep their names."""
    namer = _Namer()
    values: dict[str, Value] = {}
    value_of: dict[fx.Node, str] = {}
    node_of_value: dict[str, fx.Node] = {}
    node_of_op: dict[str, fx.Node] = {}
    ops: list[Op] = []
    outputs: list[str] = []

    def add_value(node: fx.Node, name: str, constant: bool) -> None:
        values[name] = Value(
            name=name,
            shape=_shape(node, module),
            constant=constant,
            floating=_floating(node, module),
        )
        value_of[node] = name
        node_of_value[name] = node

    for node in module.graph.nodes:
        if node.op == "placeholder":
            add_value(node, namer.unique(str(node.target)), constant=False)
        elif node.op == "get_attr":
            add_value(node, namer.unique(str(node.target)), constant=True)
        elif node.op == "output":
            outputs = [value_of[n] for n in node.all_input_nodes if n in value_of]
        elif node.op in {"call_function", "call_module"} and _is_tensor(node):
            kind = kind_of(node)
            inputs = tuple(value_of[n] for n in _tensor_inputs(node) if n in value_of)
            name = namer.op(node, kind)
            constant = bool(inputs) and all(values[i].constant for i in inputs)
            add_value(node, namer.unique(name), constant)
            ops.append(_op(node, name, kind, inputs, value_of[node], module))
            node_of_op[name] = node
    return Description(Graph(tuple(ops), values, tuple(outputs)), node_of_op, node_of_value)


def module_path(node: fx.Node) -> str:
    """The path of the module that a node came from, such as ``layer1.0.conv1``."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def operator_name(node: fx.Node) -> str:
    """Such as ``conv2d`` for ``aten.conv2d.default``."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def kind_of(node: fx.Node) -> Kind:
    """What an operator is, as far as quantization cares."""
    name = operator_name(node)
    if name == "getitem":
        return Kind.SLICE
    kind = _KINDS.get(name, Kind.OTHER)
    if name in {"pad", "constant_pad_nd"} and not _pads_with_zeros(node):
        return Kind.OTHER
    if name == "convolution" and node.args[6]:
        return Kind.CONV_TRANSPOSE
    if name == "mean" and not _means_over_space(node):
        return Kind.POINTWISE
    if name in {"matmul", "mm", "bmm", "add", "add_"} and len(_tensor_inputs(node)) < 2:
        return Kind.MATMUL if "m" in name and kind is Kind.MATMUL else Kind.POINTWISE
    return kind


def _op(
    node: fx.Node,
    name: str,
    kind: Kind,
    inputs: tuple[str, ...],
    output: str,
    module: fx.GraphModule,
) -> Op:
    groups, kernel, axis, spatial = 1, (), None, False
    if kind in {Kind.CONV, Kind.CONV_TRANSPOSE}:
        position = {Kind.CONV: 6, Kind.CONV_TRANSPOSE: 6}[kind]
        if operator_name(node) == "convolution":
            position = 8
        groups = (
            int(node.args[position])
            if len(node.args) > position
            else int(node.kwargs.get("groups", 1))
        )  # type: ignore[call-overload,arg-type]
        kernel = tuple(
            int(k) for k in (_shape(_tensor_inputs(node)[1], module)[2:]) if k is not None
        )
        axis = 0 if kind is Kind.CONV else 1
    elif kind is Kind.LINEAR:
        axis = 0
    elif kind is Kind.MATMUL:
        axis = len(_shape(_tensor_inputs(node)[1], module)) - 1
    elif kind is Kind.PAD:
        amounts = list(node.args[1])  # type: ignore[arg-type]
        rank = len(_shape(node, module))
        spatial = len(amounts) <= 2 * (rank - 2) and all(
            isinstance(a, int) and a >= 0 for a in amounts
        )
    return Op(
        name=name, kind=kind, inputs=inputs, output=output, module=module_path(node),
        operator=operator_name(node), groups=groups, kernel=kernel, weight_axis=axis, spatial=spatial,
    )  # fmt: skip


class _Namer:
    """Names that lead back to the module, made unique."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def op(self, node: fx.Node, kind: Kind) -> str:
        path = module_path(node)
        leaf = kind in COMPUTE and kind is not Kind.MATMUL and path and _is_leaf(node)
        base = path if leaf else "/".join(filter(None, (path, operator_name(node).rstrip("_"))))
        self._seen[f"op:{base}"] += 1
        count = self._seen[f"op:{base}"]
        return base if count == 1 else f"{base}_{count - 1}"

    def unique(self, name: str) -> str:
        self._seen[f"value:{name}"] += 1
        count = self._seen[f"value:{name}"]
        return name if count == 1 else f"{name}_{count - 1}"


def _is_leaf(node: fx.Node) -> bool:
    """Whether the innermost module is the torch.nn layer that this operator implements."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return False
    owner = next(reversed(stack.values()))[1]
    text = owner if isinstance(owner, str) else f"{owner.__module__}.{owner.__qualname__}"
    return text.startswith("torch.nn.modules") or "Conv1D" in text


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return (
        [n for n in node.all_input_nodes if _is_tensor(n)] if not _repeats(node) else _ordered(node)
    )


def _repeats(node: fx.Node) -> bool:
    """``x @ x`` and ``x + x`` read one node twice; all_input_nodes would name it once."""
    flat = [a for a in node.args if isinstance(a, fx.Node)]
    return len(flat) != len(set(flat))


def _ordered(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.args if isinstance(a, fx.Node) and _is_tensor(a)]


def _is_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.op == "get_attr" or isinstance(value, Tensor):
        return True
    return isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value)


def _shape(node: fx.Node, module: fx.GraphModule) -> tuple[int | None, ...]:
    value = _value(node, module)
    return (
        tuple(s if isinstance(s, int) else None for s in value.shape) if value is not None else ()
    )


def _floating(node: fx.Node, module: fx.GraphModule) -> bool:
    value = _value(node, module)
    return value is not None and value.is_floating_point()


def _value(node: fx.Node, module: fx.GraphModule) -> Tensor | None:
    value: Any = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
    if isinstance(value, (list, tuple)):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return value if isinstance(value, Tensor) else None


def _pads_with_zeros(node: fx.Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    if operator_name(node) == "constant_pad_nd":
        return not mode or mode == "constant"
    fill = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode == "constant" and not fill


def _means_over_space(node: fx.Node) -> bool:
    """A mean over the last dimensions of an image is a global average pool."""
    value = _value(_tensor_inputs(node)[0], node.graph.owning_module)  # type: ignore[arg-type]
    dims = node.args[1] if len(node.args) > 1 else None
    if value is None or not isinstance(dims, (list, tuple)) or value.dim() < 3:
        return False
    return sorted(int(d) % value.dim() for d in dims) == list(range(2, value.dim()))  # type: ignore[call-overload]


def elements(shape: tuple[int | None, ...]) -> int | None:
    """How many elements a tensor has; ``None`` with a dynamic dimension."""
    return None if None in shape else math.prod(s for s in shape if s is not None)
