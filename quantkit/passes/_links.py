"""Where what one layer puts out in each channel goes to other layers alone, to be weighed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.batchnorm import layer_bias
from quantkit.graph.edit import constant, has_constant, readers, set_constant

aten = torch.ops.aten

#: Layers whose output channels are the rows of their weight.
CONVOLUTIONS: frozenset[Any] = frozenset(
    {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
     aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
)  # fmt: skip
_POINTWISE = frozenset(
    {"relu", "leaky_relu", "dropout", "feature_dropout", "contiguous", "clone", "alias"}
)
_OVER_SPACE = frozenset({Kind.MAX_POOL, Kind.AVERAGE_POOL, Kind.UPSAMPLE})
_BILINEAR = frozenset({"upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d"})
_LAYING_FLAT = frozenset({"flatten", "view", "reshape", "squeeze", "_unsafe_view"})


@dataclass(frozen=True)
class Reader:
    """A layer that reads the channels.

    Attributes:
        node: of the layer.
        repeat: how many of its inputs in a row belong to one channel (1, or what was laid flat).
    """

    node: fx.Node
    repeat: int


@dataclass(frozen=True)
class Link:
    """A layer, the layers that read its result and nobody else does, and what is between.

    Attributes:
        first: the layer that makes the channels.
        readers: those that read them.
        between: operators that treat each channel by itself, and a factor alike at any size.
        axis: the dimension of ``first``'s result that counts channels.
    """

    first: fx.Node
    readers: tuple[Reader, ...]
    between: tuple[fx.Node, ...]
    axis: int

    @property
    def clips(self) -> tuple[fx.Node, ...]:
        """The operators between that have an upper limit."""
        return tuple(node for node in self.between if is_clip(node))


def links_of(module: fx.GraphModule) -> Iterator[Link]:
    """Every link of a captured graph, in order.

    A result that also goes elsewhere (to an add, or out of the model) makes no link; neither does
    a layer whose weight or bias another reads too.
    """
    for node in module.graph.nodes:
        if node.target in CONVOLUTIONS:
            axis = 1
        elif node.target is aten.linear.default:
            axis = node.meta["val"].dim() - 1
        else:
            continue
        walk = _Walk(module)
        if _owns(module, node) and walk.follow(node, axis, 1) and walk.readers:
            yield Link(node, tuple(walk.readers), tuple(walk.between), axis)


@dataclass
class _Walk:
    """What follows a layer."""

    module: fx.GraphModule
    readers: list[Reader] = field(default_factory=list)
    between: list[fx.Node] = field(default_factory=list)

    def follow(self, node: fx.Node, axis: int, repeat: int) -> bool:
        """Whether all that reads ``node`` is understood; notes it down."""
        for user in node.users:
            if user.op != "call_function" or not _reads_first_alone(user, node):
                return False
            if user.target in CONVOLUTIONS or user.target is aten.linear.default:
                last = node.meta["val"].dim() - 1
                fits = axis == last if user.target is aten.linear.default else axis == repeat == 1
                if not (fits and _owns(self.module, user)):
                    return False
                self.readers.append(Reader(user, repeat))
                continue
            flat = _flattened(user, node, axis)
            if flat is None and not _by_channel(self.module, user, axis, repeat):
                return False
            self.between.append(user)
            if not self.follow(user, axis, repeat * (flat or 1)):
                return False
        return True


def groups_of(layer: fx.Node) -> int:
    """The groups of a convolution; 1 of a linear layer."""
    if layer.target is aten.linear.default:
        return 1
    given: Any = layer.args[6] if len(layer.args) > 6 else layer.kwargs.get("groups", 1)
    return int(given)


def _reads_first_alone(user: fx.Node, node: fx.Node) -> bool:
    flat = [a for a in (*user.args, *user.kwargs.values()) if a is node]
    return len(flat) == 1 and user.args[0] is node


def _owns(module: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether a layer's weight and bias are constants that nobody else reads."""
    weight, bias = layer.args[1], layer_bias(layer)
    value = constant(module, weight)
    if value is None or readers(module, weight) != 1:  # type: ignore[arg-type]
        return False
    if layer.target in CONVOLUTIONS and value.dim() != layer.meta["val"].dim():
        return False  # one image without a batch: channels are on dimension 0
    return bias is None or (constant(module, bias) is not None and readers(module, bias) == 1)


def _by_channel(module: fx.GraphModule, node: fx.Node, axis: int, repeat: int) -> bool:
    """Whether an operator takes each channel by itself, and commutes with a factor above zero."""
    name, kind = operator_name(node), kind_of(node)
    if name in _POINTWISE:
        return True
    if kind is Kind.RELU:
        return is_clip(node) and repeat == 1 and _limit_is_known(module, node)
    if axis != 1 or repeat != 1 or node.meta["val"].dim() < 2:
        return False
    if kind is Kind.PAD:
        amounts: Any = node.args[1]
        return bool(len(amounts) <= 2 * (node.meta["val"].dim() - 2))
    return kind in _OVER_SPACE or name in _BILINEAR


def _flattened(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """How many elements of a channel a node lays side by side; ``None`` where it does not."""
    if operator_name(node) not in _LAYING_FLAT or axis != 1:
        return None
    before, after = source.meta["val"].shape, node.meta["val"].shape
    if len(after) != 2 or len(before) < 2 or not all(isinstance(s, int) for s in before[1:]):
        return None
    whole = prod(before[1:])
    return int(prod(before[2:])) if after[1] == whole else None


def is_clip(node: fx.Node) -> bool:
    """Whether a node is a ReLU with an upper limit, one or one a channel (or a limit alone)."""
    if operator_name(node) == "relu6":
        return True
    if operator_name(node) not in {"hardtanh", "clamp"}:
        return False
    low, high = _bounds(node)
    return (low is None or (isinstance(low, int | float) and low == 0)) and high is not None


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    def given(position: int, names: tuple[str, str], default: Any) -> Any:
        if len(node.args) > position:
            return node.args[position]
        return next((node.kwargs[n] for n in names if n in node.kwargs), default)

    one = operator_name(node) == "hardtanh"
    return (
        given(1, ("min", "min_val"), -1 if one else None),
        given(2, ("max", "max_val"), 1 if one else None),
    )


def _limit_is_known(module: fx.GraphModule, node: fx.Node) -> bool:
    if operator_name(node) == "relu6":
        return True
    high = _bounds(node)[1]
    return not isinstance(high, fx.Node) or constant(module, high) is not None


def limit_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The upper limit of a clip, float64: ``()`` or one a channel, laid out to broadcast."""
    high = 6.0 if operator_name(node) == "relu6" else _bounds(node)[1]
    found = constant(module, high) if isinstance(high, fx.Node) else torch.tensor(float(high))
    assert found is not None  # a link has seen it
    return found.detach().double()


def set_limit(module: fx.GraphModule, node: fx.Node, link: Link, limit: Tensor) -> fx.Node:
    """Give a clip one upper limit a channel: ``clamp(relu(x), max=limit)``; the node of it.

    The limit is a buffer, since it does not train. Both operators are ReLUs to the rules, so the
    plan is that of the clip before.

    Args:
        module: the graph.
        node: the clip, which is replaced.
        link: that it is in.
        limit: ``(channels,)``.
    """
    source: Any = node.args[0]
    value: Any = node.meta["val"]
    weight: Any = link.first.args[1]
    owner, old = constant(module, weight), _bounds(node)[1]
    assert owner is not None
    shape = [1] * (value.dim() - link.axis)
    shape[0] = -1
    laid = limit.to(owner.dtype).reshape(shape)
    if isinstance(old, fx.Node):
        set_constant(module, str(old.target), laid)
        return node
    path = f"{str(weight.target).rpartition('.')[0]}.output_limit".lstrip(".")
    while has_constant(module, path):
        path += "_"
    parent, _, name = path.rpartition(".")
    (module.get_submodule(parent) if parent else module).register_buffer(name, laid)
    low = _bounds(node)[0] if operator_name(node) != "relu6" else 0
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(path)
        read.meta["val"] = torch.empty_like(laid, device="meta")
        relu = source if low is None else module.graph.call_function(aten.relu.default, (source,))
        clip = module.graph.call_function(aten.clamp.Tensor, (relu, None, read))
    for new in {relu, clip} - {source}:
        new.meta.update(node.meta)
    node.replace_all_uses_with(clip)
    module.graph.erase_node(node)
    return clip


def clip_behind(module: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor] | None:
    """The limits, float64, of a ReLU that alone reads a layer's result; ``None`` for no ReLU."""
    low: float | None = None
    high = torch.tensor(torch.inf, dtype=torch.float64)
    node = layer
    while len(node.users) == 1 and kind_of(user := next(iter(node.users))) is Kind.RELU:
        if not is_clip(user) and operator_name(user) != "relu":
            break
        if is_clip(user):
            high = torch.minimum(high, limit_of(module, user).flatten())
        if not (operator_name(user) == "clamp" and _bounds(user)[0] is None):
            low = 0.0
        node = user
    if node is layer:
        return None
    return torch.tensor(-torch.inf if low is None else low, dtype=torch.float64), high
