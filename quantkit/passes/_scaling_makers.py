"""Find what makes a tensor and can take a scale of its channels into its own constants."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.edit import constant, readers, set_constant
from quantkit.passes._scaling_seen import Shapes

aten = torch.ops.aten

#: Parts of one tensor; ``x[:, None]`` is written with them.
_PARTS = frozenset({"slice", "select"})
#: ``f(x / s) = f(x) / s`` for positive ``s``.
_HOMOGENEOUS = frozenset({"relu", "leaky_relu", "neg"})


@dataclass(frozen=True)
class Maker:
    """A layer or norm whose results become a tensor, channel by channel.

    Attributes:
        node: the layer or norm.
        constants: the nodes of its constants, whose first dimension counts its channels.
        of: of each channel of the tensor the channel of the maker, ``(channels,)`` int64.
        channels: how many channels the maker has.
    """

    node: fx.Node
    constants: tuple[fx.Node, ...]
    of: Tensor
    channels: int

    def divide(self, module: fx.GraphModule, scale: Tensor) -> None:
        """Let it make each of its channels ``1 / scale`` times as large."""
        for node in self.constants:
            value = constant(module, node)
            assert value is not None  # maker_of has seen it
            exact = value.detach().double()
            spread = scale.double().view(-1, *[1] * (exact.dim() - 1))
            set_constant(module, str(node.target), (exact / spread).to(value.dtype))


def maker_of(
    module: fx.GraphModule,
    source: fx.Node,
    layers: Collection[fx.Node],
    shapes: Shapes,
    *,
    products: bool,
) -> Maker | None:
    """What makes ``source`` and can take a scale; ``None`` where nothing can, for all readers.

    Args:
        module: the graph.
        source: the tensor.
        layers: the readers that take the scale into their columns.
        shapes: of one call.
        products: look through a product of matrices as well: attention's values are linear in it.
    """
    if not set(users(source)) <= set(layers):
        return None
    path = _path(module, source, products)
    if path is None:
        return None
    maker, constants = path[0], _constants(module, path[0])
    channels = _length(module, constants[0])
    if channels is None or shapes[maker][-1] != channels:
        return None
    of = _channels(path, shapes)
    return None if of is None else Maker(maker, constants, of, channels)


def users(node: fx.Node) -> list[fx.Node]:
    """Who reads the values of a tensor, not its type alone."""
    return [user for user in node.users if operator_name(user) != "_assert_tensor_metadata"]


def _path(module: fx.GraphModule, node: fx.Node, products: bool) -> list[fx.Node] | None:
    """From a maker to ``node``: what a scale goes through, each read by the next alone."""
    if _constants(module, node):
        return [node]
    for read in _through(node, products):
        if len(users(read)) == 1 and (path := _path(module, read, products)) is not None:
            return [*path, node]
    return None


def _through(node: fx.Node, products: bool) -> list[fx.Node]:
    """The inputs of an operator that its result is proportional to."""
    if node.op != "call_function":
        return []
    kind, name = kind_of(node), operator_name(node).rstrip("_")
    inputs = [a for a in node.args if isinstance(a, fx.Node)]
    floats = [n for n in inputs if isinstance(n.meta.get("val"), Tensor)]
    if kind is Kind.MOVE or name in _HOMOGENEOUS | _PARTS:
        return floats[:1]
    if name == "mul":  # gated: either of both, whichever a maker makes; a square is no such thing
        return floats if len(set(floats)) == len(floats) else []
    if name == "div":
        return floats[:1]
    if kind is Kind.MATMUL and products and len(floats) == 2:
        return floats[1:]
    return []


def _constants(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...]:
    """What takes the scale of a maker, with no other reader; empty where it is none."""
    if node.op != "call_function":
        return ()
    found: list[Any] = []
    kind, name = kind_of(node), operator_name(node)
    if kind is Kind.LINEAR:
        found = [node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")]
    elif name == "layer_norm":
        found = [*node.args[2:4]]
    elif name == "rms_norm":
        found = [*node.args[2:3]]
    elif name == "mul":  # a norm of plain operators, times its weight
        vectors = [n for n in node.args if isinstance(n, fx.Node) and n.op == "get_attr"]
        found = [n for n in vectors if _length(module, n) is not None and _dims(module, n) == 1]
        if not found:
            return ()
    if not found or found[0] is None:
        return ()
    nodes = [n for n in found if n is not None]
    alone = all(constant(module, n) is not None and readers(module, n) == 1 for n in nodes)
    normed = name in {"layer_norm", "rms_norm"} and _dims(module, nodes[0]) != 1
    return tuple(nodes) if alone and not normed else ()


def _length(module: fx.GraphModule, node: fx.Node) -> int | None:
    value = constant(module, node)
    return None if value is None or value.dim() == 0 else int(value.shape[0])


def _dims(module: fx.GraphModule, node: fx.Node) -> int:
    value = constant(module, node)
    return 0 if value is None else value.dim()


def _channels(path: list[fx.Node], shapes: Shapes) -> Tensor | None:
    """Which channel of the maker each channel of the tensor is: its number is sent along the path.

    ``None`` where a channel of the tensor is not one channel of the maker throughout.
    """
    maker = path[0]
    numbers = torch.arange(shapes[maker][-1], dtype=torch.float64).expand(shapes[maker])
    for before, node in pairwise(path):
        if kind_of(node) is Kind.MATMUL:
            if not bool((numbers == numbers[..., :1, :]).all()):
                return None  # it sums over several channels
            numbers = numbers[..., :1, :].expand(*shapes[node][:-2], *numbers.shape[-2:])
            numbers = numbers[..., :1, :].expand(shapes[node])
        elif kind_of(node) is Kind.MOVE or operator_name(node) in _PARTS:
            numbers = _moved(node, before, numbers, shapes)
        elif numbers.shape != shapes[node]:
            numbers = numbers.expand(shapes[node])
    rows = numbers.reshape(-1, numbers.shape[-1])
    return rows[0].long() if bool((rows == rows[:1]).all()) else None


def _moved(node: fx.Node, before: fx.Node, numbers: Tensor, shapes: Shapes) -> Tensor:
    """What an operator that moves values makes of the channels' numbers."""

    def value(read: fx.Node) -> Any:
        known = numbers if read is before else shapes[read]
        return torch.empty(known) if isinstance(known, torch.Size) else known

    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    moved: Tensor = target(*args, **kwargs)
    return moved
