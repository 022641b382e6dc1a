"""Which branch of a residual add is the block and which the skip: what TensorRT fuses."""

from __future__ import annotations

from collections.abc import Callable

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op


def main_branch(add: Op, graph: Graph, quantized: Callable[[Op], bool]) -> tuple[Op, int] | None:
    """The convolution that an add fuses into, and the input of the add that it makes.

    That is a quantized convolution whose result goes to this add alone, through a batch-norm at
    most. Of two, it is the one with more layers of its own: the other is the projection of the
    shortcut. ``None`` where there is no such convolution, or one input is constant.
    """
    if len(add.inputs) != 2 or any(graph.values[name].constant for name in add.inputs):
        return None
    before = [_convolution_before(name, graph) for name in add.inputs]
    found = [(op, i) for i, op in enumerate(before) if op is not None and quantized(op)]
    if len(found) < 2:
        return found[0] if found else None
    above = [_layers_above(op, graph) for op, _ in found]
    own = [len(above[0] - above[1]), len(above[1] - above[0])]
    return max(found, key=lambda pair: (own[pair[1]], graph.order[pair[0].name]))


def reason_for_float_add(add: Op, graph: Graph) -> str | None:
    """Why the add of a transformer's residual stream stays in float; ``None`` for other adds."""
    if any(graph.values[name].constant for name in add.inputs):
        return None
    for name in add.inputs:
        producer = graph.producer.get(name)
        while producer is not None and producer.kind is Kind.MOVE and producer.inputs:
            producer = graph.producer.get(producer.inputs[0])
        if producer is not None and producer.kind is Kind.LINEAR:
            return (
                "the residual stream of a transformer stays in float: its add fuses with the norm"
            )
    return None


def _convolution_before(name: str, graph: Graph) -> Op | None:
    while len(graph.consumers[name]) == 1 and name not in graph.outputs:
        producer = graph.producer.get(name)
        if producer is None or producer.kind is Kind.CONV:
            return producer
        if producer.kind is not Kind.BATCH_NORM:
            return None
        name = producer.inputs[0]
    return None


def _layers_above(op: Op, graph: Graph) -> set[str]:
    """The names of the layers that ``op`` depends on, with its own."""
    seen: set[str] = set()
    layers: set[str] = set()
    waiting = [op]
    while waiting:
        current = waiting.pop()
        if current.name in seen:
            continue
        seen.add(current.name)
        if current.kind in COMPUTE:
            layers.add(current.name)
        producers = (graph.producer.get(name) for name in current.inputs)
        waiting.extend(producer for producer in producers if producer is not None)
    return layers
