"""Shift tensors of a graph: which node gets which offset, and who makes up for it.

Every node gets an offset ``d``: the new graph computes ``old - d`` there. A quantizer that is
centered has its shift for an offset; what carries values on has that of its input; all else has 0.
Where a layer's bias can make an offset, or make up for one, it does; else a constant is subtracted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.centering import is_constant
from quantkit.passes._center_parts import adds, argument, carries

aten = torch.ops.aten

_LAYERS = frozenset({Kind.CONV, Kind.LINEAR, Kind.MATMUL})


@dataclass
class Shifts:
    """What is to be done to a graph, found before any of it is.

    Attributes:
        offset: of each node that has one.
        made: the offset that a layer's bias is to make at its output.
        read: the offset of a layer's input, which its bias is to make up for.
        before: what to subtract from the input of a quantizer.
        after: what to add behind a node.
        back: what to add to one input of a node.
        bordered: convolutions that are still padded with zeros, which a constant makes up for.
    """

    offset: dict[fx.Node, float] = field(default_factory=dict)
    made: defaultdict[fx.Node, float] = field(default_factory=lambda: defaultdict(float))
    read: dict[fx.Node, float] = field(default_factory=dict)
    before: dict[fx.Node, float] = field(default_factory=dict)
    after: dict[fx.Node, float] = field(default_factory=dict)
    back: dict[tuple[fx.Node, fx.Node], float] = field(default_factory=dict)
    bordered: set[fx.Node] = field(default_factory=set)


def find_shifts(graph: fx.Graph, centered: Mapping[fx.Node, float]) -> Shifts:
    """The offsets of a graph whose quantizers ``centered`` are to read ``x - shift``."""
    found = Shifts()
    for source in dict.fromkeys(quantizer.args[0] for quantizer in centered):
        assert isinstance(source, fx.Node)
        wanted = {centered.get(user) for user in source.users}
        if len(wanted) == 1 and (shift := wanted.pop()) is not None:
            _make(found, source, shift)
    for node in graph.nodes:
        _visit(found, node, centered)
    return found


def _make(found: Shifts, node: fx.Node, shift: float) -> bool:
    """Let a node put out ``old - shift``, by the bias of a layer before it, where one can."""
    if (path := _path(node, set())) is None:
        return False
    for part in path:
        found.offset[part] = found.offset.get(part, 0.0) + shift
        if kind_of(part) in _LAYERS:
            found.made[part] += shift
    return True


def _path(node: fx.Node, seen: set[fx.Node]) -> list[fx.Node] | None:
    """The nodes from the layers whose biases make a node's offset, to the node."""
    if node.op != "call_function" or node in seen:
        return None
    seen.add(node)
    if kind_of(node) in {Kind.CONV, Kind.LINEAR}:
        bias = argument(node, 2, "bias", None)
        plain = is_constant(node.args[1]) and (bias is None or bias.op == "get_attr")
        return [node] if plain else None
    inputs: list[Any] = []
    if carries(node):
        inputs = [node.args[0]]
    elif kind_of(node) is Kind.CONCAT:
        inputs = list(dict.fromkeys(node.args[0]))  # type: ignore[arg-type]
    elif adds(node):
        return _path_of_one(node, seen)
    whole: list[fx.Node] = [node]
    for before in inputs:
        part = _path(before, seen) if set(before.users) == {node} else None
        if part is None:
            return None
        whole = [*part, *whole]
    return whole if inputs else None


def _path_of_one(node: fx.Node, seen: set[fx.Node]) -> list[fx.Node] | None:
    """Of a sum, one input makes the offset."""
    for before in node.args:
        if isinstance(before, fx.Node) and node.args.count(before) == 1:
            part = _path(before, seen) if set(before.users) == {node} else None
            if part is not None:
                return [*part, node]
    return None


def _visit(found: Shifts, node: fx.Node, centered: Mapping[fx.Node, float]) -> None:
    """The offset of a node, now that its inputs have theirs."""
    shifted = [before for before in node.all_input_nodes if found.offset.get(before)]
    if node in centered:
        source = shifted[0] if shifted else None
        found.before[node] = centered[node] - (found.offset[source] if source else 0.0)
        found.offset[node] = centered[node]
    elif not shifted:
        return
    elif adds(node):
        _visit_sum(found, node)
    elif kind_of(node) in _LAYERS and shifted == [node.args[0]] and is_constant(node.args[1]):
        found.read[node] = found.offset[shifted[0]]
    elif (carries(node) and node.args[0] in shifted) or _joins_alike(found, node):
        found.offset[node] = found.offset[shifted[0]]
    else:
        found.back |= {(node, before): found.offset[before] for before in shifted}


def _joins_alike(found: Shifts, node: fx.Node) -> bool:
    """Whether it is a concatenation all of whose parts have one offset."""
    offsets = {found.offset.get(part) for part in node.all_input_nodes}
    return kind_of(node) is Kind.CONCAT and len(offsets) == 1


def _visit_sum(found: Shifts, node: fx.Node) -> None:
    """A sum has the offsets of both inputs; what is too much, one input or a constant takes out."""
    read = [before for before in node.args if isinstance(before, fx.Node)]
    own = sum(found.offset.get(before, 0.0) for before in read)
    wanted = found.offset.get(node, 0.0)
    excess = own - wanted
    if not excess:
        return
    for before in read:
        alone = set(before.users) == {node} and read.count(before) == 1
        if alone and _make(found, before, -excess):
            return
    found.after[node] = excess
