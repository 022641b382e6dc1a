"""What holds for every plan, whatever the graph."""

from __future__ import annotations

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op
from quantkit.graph.placement import place
from quantkit.graph.plan import Placement
from quantkit.recipe import Recipe

PASSING = {Kind.MOVE, Kind.MAX_POOL, Kind.SLICE, Kind.PAD}


def reads_quantized(graph: Graph, plan: Placement, op: Op, index: int) -> bool:
    """Whether an input comes from a quantizer, through what only moves its values."""
    while plan.tensor(op.name, index) is None:
        producer = graph.producer.get(op.inputs[index])
        if producer is None or producer.kind not in PASSING:
            return False
        op, index = producer, 0
    return True


def copies_to_output(graph: Graph, op: Op) -> bool:
    if op.kind not in PASSING | {Kind.UPSAMPLE, Kind.CONCAT}:
        return False
    if op.output in graph.outputs:
        return True
    return any(copies_to_output(graph, reader) for reader, _ in graph.consumers[op.output])


def assert_sound(graph: Graph, chosen: Recipe, plan: Placement) -> None:
    """What holds for every plan, whatever the graph."""
    ops = {op.name: op for op in graph.ops}
    edges = [edge for tensor in plan.tensors for edge in tensor.edges]
    assert len(set(edges)) == len(edges), "an edge has two quantizers"
    for tensor in plan.tensors:
        assert tensor.edges
        assert tensor.reason
        for edge in tensor.edges:
            assert ops[edge.op].inputs[edge.index] == tensor.tensor
            # A tensor may be read by a layer and leave the model; what leaves is float.
            assert tensor.role == "weight" or not copies_to_output(graph, ops[edge.op])
    for members in plan.grids.values():
        assert len({(t.spec, t.role) for t in members}) == 1, "a grid has two forms"
        assert len({t.tensor for t in members}) == len(members)
    assert {d.op for d in plan.decisions if d.kind in COMPUTE} == {
        o.name for o in graph.of(COMPUTE)
    }
    assert all(decision.reason for decision in plan.decisions)
    for decision in plan.decisions:
        if decision.quantized and decision.kind in COMPUTE:
            assert_layer_is_quantized(graph, chosen, plan, ops[decision.op])
    if not chosen.placement.outputs:
        assert_float_layers_read_float(graph, plan)
    assert Placement.from_json(plan.to_json()) == plan
    assert place(graph, chosen) == plan
    assert str(plan).startswith("Plan of recipe ")


def assert_layer_is_quantized(graph: Graph, chosen: Recipe, plan: Placement, op: Op) -> None:
    matching = [o.scheme for o in chosen.overrides if o.matches(op.name, op.kind)]
    scheme = matching[-1] if matching else chosen.scheme
    assert scheme is not None
    constant = graph.values[op.inputs[1]].constant
    if constant:
        assert (plan.tensor(op.name, 1) is not None) is (scheme.weights is not None)
    for index in (0,) if constant else (0, 1):
        quantized = reads_quantized(graph, plan, op, index)
        if scheme.activations is not None or not chosen.placement.outputs:
            assert quantized is (scheme.activations is not None), (op.name, index)


def assert_float_layers_read_float(graph: Graph, plan: Placement) -> None:
    """TensorRT's plan rounds nothing that a float operator reads."""
    for op in graph.ops:
        decision = next((d for d in plan.decisions if d.op == op.name), None)
        if op.kind in {Kind.UPSAMPLE, Kind.CONCAT, Kind.AVERAGE_POOL} | PASSING:
            continue
        if decision is None or not decision.quantized:
            for index in range(len(op.inputs)):
                assert not reads_quantized(graph, plan, op, index), (op.name, index)
        if op.kind is Kind.ADD and decision is not None and decision.quantized:
            assert any(reads_quantized(graph, plan, op, index) for index in (0, 1))
    for pool in graph.of({Kind.AVERAGE_POOL}):
        if reads_quantized(graph, plan, pool, 0):
            assert any(t.tensor == pool.output for t in plan.tensors)
