"""Describe a captured graph of ATen operators as the abstract graph that the rules read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op, Value
from quantkit.graph.batchnorm import batch_norm_behind
from quantkit.graph.naming import Namer
from quantkit.graph.regions import OUTSIDE

_NAMES: dict[Kind, str] = {
    Kind.CONV: "conv1d conv2d conv3d convolution",
    Kind.CONV_TRANSPOSE: "conv_transpose1d conv_transpose2d conv_transpose3d",
    Kind.LINEAR: "linear",
    Kind.MATMUL: "matmul bmm mm",
    Kind.ADD: "add",
    Kind.MUL: "mul div",
    Kind.CONCAT: "cat concat concatenate",
    Kind.RELU: "relu relu6 hardtanh clamp clamp_min clamp_max",
    Kind.POINTWISE: (
        "gelu silu mish sigmoid tanh hardswish hardsigmoid leaky_relu elu selu softplus sub rsub "
        "neg exp sqrt rsqrt pow"
    ),
    Kind.SOFTMAX: "softmax _softmax log_softmax",
    Kind.NORM: "layer_norm group_norm instance_norm rms_norm",
    Kind.BATCH_NORM: "batch_norm",
    Kind.MAX_POOL: "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d",
    Kind.AVERAGE_POOL: (
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d mean"
    ),
    Kind.MOVE: (
        "view reshape flatten unflatten permute transpose t squeeze unsqueeze contiguous clone "
        "expand dropout alias detach movedim swapaxes feature_dropout _unsafe_view numpy_T "
        "pixel_shuffle pixel_unshuffle channel_shuffle roll flip expand_as view_as repeat tile "
        "repeat_interleave to _to_copy type_as lift_fresh_copy"
    ),
    Kind.SLICE: "slice select split chunk split_with_sizes narrow unbind tensor_split",
    Kind.PAD: "pad constant_pad_nd",
    Kind.UPSAMPLE: (
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
        "_upsample_nearest_exact2d _upsample_nearest_exact3d"
    ),
    Kind.RESIZE: (
        "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d grid_sampler"
    ),
    Kind.EMBEDDING: "embedding",
    Kind.RECURRENT: "lstm gru rnn_tanh rnn_relu",
}
#: What each ATen operator is, by its name without overload.
KINDS: dict[str, Kind] = {name: kind for kind, text in _NAMES.items() for name in text.split()}


@dataclass(frozen=True)
class Description:
    """An abstract graph and where each of its parts stands in the captured one."""

    graph: Graph
    node_of_op: dict[str, fx.Node]
    node_of_value: dict[str, fx.Node]


def describe(module: fx.GraphModule) -> Description:
    """The abstract graph of a captured model; constants and parameters keep their names."""
    namer = Namer()
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
        elif node.target is batch_norm_behind:
            # The layer before it has taken it in: the two are one layer, whose result is here.
            value_of[node] = value_of[node.args[0]]
            node_of_value[value_of[node]] = node
        elif node.op in {"call_function", "call_module"} and _is_tensor(node):
            kind = kind_of(node)
            inputs = tuple(value_of[n] for n in _tensor_inputs(node) if n in value_of)
            name = _op_name(namer, node, kind)
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
    pure = name if name.startswith("_") or name.endswith("__") else name.removesuffix("_")
    kind = KINDS.get(pure, Kind.OTHER)
    if kind is Kind.MOVE and not _keeps_dtype(node):
        return Kind.OTHER
    if name in {"pad", "constant_pad_nd"} and not _pads_with_zeros(node):
        return Kind.OTHER
    if name == "convolution" and node.args[6]:
        return Kind.CONV_TRANSPOSE
    if name == "mean" and not _means_over_space(node):
        return Kind.POINTWISE
    if kind is Kind.ADD and len(_tensor_inputs(node)) < 2:
        return Kind.POINTWISE
    return kind


def _op(
    node: fx.Node,
    name: str,
    kind: Kind,
    inputs: tuple[str, ...],
    output: str,
    module: fx.GraphModule,
) -> Op:
    groups, axis, spatial = 1, None, False
    kernel: tuple[int, ...] = ()
    if kind in {Kind.CONV, Kind.CONV_TRANSPOSE}:
        groups = _groups(node)
        taps = _shape(_tensor_inputs(node)[1], module)[2:]
        kernel = tuple(extent for extent in taps if extent is not None)
        axis = 0 if kind is Kind.CONV else 1
    elif kind is Kind.LINEAR:
        axis = 0
    elif kind is Kind.MATMUL:
        axis = len(_shape(_tensor_inputs(node)[1], module)) - 1
    elif kind is Kind.PAD:
        spatial = _pads_space(node, len(_shape(node, module)))
    return Op(
        name=name,
        kind=kind,
        inputs=inputs,
        output=output,
        module=module_path(node),
        operator=operator_name(node),
        groups=groups,
        kernel=kernel,
        weight_axis=axis,
        spatial=spatial,
        outside=OUTSIDE in node.meta,
    )


def _groups(node: fx.Node) -> int:
    position = 8 if operator_name(node) == "convolution" else 6
    given: Any = node.args[position] if len(node.args) > position else node.kwargs.get("groups", 1)
    return int(given)


def _pads_space(node: fx.Node, rank: int) -> bool:
    amounts: Any = node.args[1]
    positive = all(isinstance(amount, int) and amount >= 0 for amount in amounts)
    return positive and len(amounts) <= 2 * (rank - 2)


def _op_name(namer: Namer, node: fx.Node, kind: Kind) -> str:
    leaf = kind in COMPUTE and kind is not Kind.MATMUL and _is_leaf(node)
    return namer.op(module_path(node), operator_name(node).rstrip("_"), leaf=leaf)


def _is_leaf(node: fx.Node) -> bool:
    """Whether the innermost module is the torch.nn layer that this operator implements."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return False
    owner = next(reversed(stack.values()))[1]
    return is_layer(owner if isinstance(owner, str) else f"{owner.__module__}.{owner.__qualname__}")


def is_layer(owner: str) -> bool:
    """Whether a class is a layer of torch.nn (or transformers' Conv1D), so that it names its op."""
    return owner.startswith("torch.nn.modules") or "Conv1D" in owner


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


def _value(node: fx.Node, module: fx.GraphModule | None) -> Tensor | None:
    value: Any = node.meta.get("val")
    if value is None and node.op == "get_attr":
        value = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
    if isinstance(value, (list, tuple)):
        value = next((v for v in value if isinstance(v, Tensor)), None)
    return value if isinstance(value, Tensor) else None


def _keeps_dtype(node: fx.Node) -> bool:
    """Whether a cast is none: float32 to float32, as exported transformers have them."""
    inputs = [n.meta.get("val") for n in _tensor_inputs(node)[:1]]
    value = node.meta.get("val")
    if not inputs or not isinstance(inputs[0], Tensor) or not isinstance(value, Tensor):
        return True
    return inputs[0].dtype == value.dtype


def _pads_with_zeros(node: fx.Node) -> bool:
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    if operator_name(node) == "constant_pad_nd":
        return not mode or mode == "constant"
    fill = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode == "constant" and not fill


def _means_over_space(node: fx.Node) -> bool:
    """A mean over the last dimensions of an image is a global average pool."""
    value = _value(_tensor_inputs(node)[0], node.graph.owning_module)
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if value is None or not isinstance(dims, (list, tuple)) or value.dim() < 3:
        return False
    return sorted(int(dim) % value.dim() for dim in dims) == list(range(2, value.dim()))
