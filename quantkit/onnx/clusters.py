"""Nodes of ONNX that are one operator: a product with its bias, an activation function's formula.

PyTorch has ``linear`` and ``gelu`` where older ONNX has two nodes and five. The plan must not
depend on how an exporter writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from quantkit.graph.abstract import Kind
from quantkit.onnx.kinds import ELEMENTWISE, rank
from quantkit.onnx.plain import scalar, sole_reader

#: The longest formula of an activation function: GELU by tanh has eight nodes.
LONGEST_FORMULA = 10


@dataclass(frozen=True)
class Cluster:
    """Nodes that are one operator.

    Attributes:
        kind: what it is.
        main: the node that carries its name.
        nodes: all of them; none but the last is read from outside.
        inputs: for each tensor it reads, the nodes and positions that read it.
        last: the node that puts out its result.
        weight_axis: where it is a layer.
    """

    kind: Kind
    main: ir.Node
    nodes: tuple[ir.Node, ...]
    inputs: tuple[tuple[tuple[ir.Node, int], ...], ...]
    last: ir.Node
    weight_axis: int | None = None


def clusters_of(nodes: Iterable[ir.Node]) -> dict[ir.Node, Cluster]:
    """The cluster of each node that is part of one."""
    found: dict[ir.Node, Cluster] = {}
    position = {node: index for index, node in enumerate(nodes)}
    for node in position:
        if node in found or node.domain not in {"", "ai.onnx"}:
            continue
        cluster = _linear(node) or _guarded_softmax(node) or _formula(node, position)
        if cluster is not None:
            found.update(dict.fromkeys(cluster.nodes, cluster))
    return found


def _linear(node: ir.Node) -> Cluster | None:
    """A product with a constant matrix, and the constant that is added to it."""
    if node.op_type != "MatMul":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or rank(weight) != 2:
        return None
    inputs: tuple[tuple[tuple[ir.Node, int], ...], ...] = (((node, 0),), ((node, 1),))
    add = sole_reader(node.outputs[0])
    if add is not None and add.op_type == "Add" and add.graph is node.graph:
        index = 1 if add.inputs[0] is node.outputs[0] else 0
        if _is_bias(add.inputs[index], weight):
            return Cluster(Kind.LINEAR, node, (node, add), (*inputs, ((add, index),)), add, 1)
    return Cluster(Kind.LINEAR, node, (node,), inputs, node, 1)


def _is_bias(value: ir.Value | None, weight: ir.Value) -> bool:
    """Whether a constant adds one number to each column."""
    if value is None or value.const_value is None or weight.const_value is None:
        return False
    columns = weight.const_value.shape[1]
    shape = [int(n) for n in value.const_value.shape.numpy()]
    return bool(shape) and shape[-1] == columns and value.const_value.size == columns


def _guarded_softmax(node: ir.Node) -> Cluster | None:
    """``Where(IsNaN(y), 0, y)`` behind a softmax, where its mask may hide a whole row."""
    if node.op_type != "Softmax" or node.outputs[0].is_graph_output():
        return None
    readers = {use.node for use in node.outputs[0].uses()}
    guard = next((r for r in readers if r.op_type == "IsNaN"), None)
    where = sole_reader(guard.outputs[0]) if guard is not None else None
    if guard is None or where is None or readers != {guard, where} or where.op_type != "Where":
        return None
    if where.inputs[2] is not node.outputs[0] or scalar(where.inputs[1]) != 0.0:
        return None
    return Cluster(Kind.SOFTMAX, node, (node, guard, where), (((node, 0),),), where)


def _formula(last: ir.Node, position: Mapping[ir.Node, int]) -> Cluster | None:
    """``x * f(x)`` written out: GELU, SiLU, hard-swish, Mish.

    Nodes are taken in from the last one back until all of them read one tensor.
    """
    if last.op_type != "Mul" or last.graph is None:
        return None
    members, edge = {last}, _variables(last)
    while len(edge) > 1 and len(members) < LONGEST_FORMULA:
        makers = [(position.get(v.producer(), -1), v) for v in edge]  # type: ignore[arg-type]
        place, value = max(makers, key=lambda pair: pair[0])
        node = value.producer()
        if place < 0 or node is None or not _elementwise(node) or value.is_graph_output():
            return None
        if any(use.node not in members for use in value.uses()):
            return None
        members.add(node)
        edge = [v for v in edge if v is not value]
        edge += [v for v in _variables(node) if v not in edge]
    if len(edge) != 1 or len(members) == 1 or edge[0].const_value is not None:
        return None
    nodes = tuple(sorted(members, key=position.__getitem__))
    uses = tuple((n, i) for n in nodes for i, v in enumerate(n.inputs) if v is edge[0])
    return Cluster(Kind.POINTWISE, last, nodes, (uses,), last)


def _elementwise(node: ir.Node) -> bool:
    return node.op_type in ELEMENTWISE and node.domain in {"", "ai.onnx"}


def _variables(node: ir.Node) -> list[ir.Value]:
    """What an element-wise node reads beside single numbers, each once."""
    found = [v for v in node.inputs if v is not None and scalar(v) is None]
    return list(dict.fromkeys(found))
