"""What engines run as one kernel: a product with what follows it element by element."""

from __future__ import annotations

from dataclasses import replace

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op

#: What a kernel does to its results before it writes them.
_ABSORBED = frozenset({Kind.BATCH_NORM, Kind.RELU, Kind.POINTWISE, Kind.ADD})


def fuse(graph: Graph) -> Graph:
    """The graph with each product and what follows it element by element as one operator.

    A convolution or matrix product takes in the batch-norm, activation and residual add behind it,
    as long as nothing else reads what lies between. The operator has the product's name and the
    last one's output, and stands where the last one stood.

    Example:
        >>> from quantkit.graph.abstract import Value
        >>> conv = Op(name="c", kind=Kind.CONV, inputs=("x", "w"), output="y")
        >>> relu = Op(name="r", kind=Kind.RELU, inputs=("y",), output="z")
        >>> values = {n: Value(name=n, constant=n == "w") for n in "xwyz"}
        >>> [(op.name, op.output) for op in fuse(Graph((conv, relu), values, ("z",))).ops]
        [('c', 'z')]
    """
    taken: set[str] = set()
    fused: dict[str, Op] = {}
    for op in graph.ops:
        if op.kind in COMPUTE and op.name not in taken:
            last, whole = _grown(op, graph, taken)
            fused[last.name] = whole
            taken.add(op.name)
    ops = tuple(
        fused.get(op.name, op) for op in graph.ops if op.name in fused or op.name not in taken
    )
    inside = {o.output for o in graph.ops} - {o.output for o in ops}
    values = {name: value for name, value in graph.values.items() if name not in inside}
    return Graph(ops, values, graph.outputs)


def members(graph: Graph) -> dict[str, tuple[str, ...]]:
    """The operators that each fused operator of `fuse` is made of, by its name; alone ones too."""
    found: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for op in graph.ops:
        if op.kind in COMPUTE and op.name not in taken:
            before = set(taken)
            _grown(op, graph, taken)
            taken.add(op.name)
            inside = taken - before
            found[op.name] = tuple(other.name for other in graph.ops if other.name in inside)
    return {
        op.name: found.get(op.name, (op.name,))
        for op in graph.ops
        if op.name in found or op.name not in taken
    }


def _grown(head: Op, graph: Graph, taken: set[str]) -> tuple[Op, Op]:
    """The last operator that a product takes in, and the whole; what it takes in is ``taken``."""
    last, inputs = head, list(head.inputs)
    while (following := _alone_behind(last, graph, taken)) is not None:
        inputs += _extra(following, last.output, graph)
        taken.add(following.name)
        last = following
    return last, replace(head, inputs=tuple(inputs), output=last.output)


def _alone_behind(op: Op, graph: Graph, taken: set[str]) -> Op | None:
    """The only reader of a result, where a kernel can take it in."""
    readers = graph.consumers.get(op.output, ())
    if len(readers) != 1 or op.output in graph.outputs or graph.values[op.output].constant:
        return None
    reader = readers[0][0]
    if reader.kind not in _ABSORBED or reader.name in taken:
        return None
    # A broadcast is no element-wise end of this kernel: it makes more values than came.
    same = graph.values[reader.output].shape == graph.values[op.output].shape
    return reader if same else None


def _extra(op: Op, known: str, graph: Graph) -> list[str]:
    """What an operator reads beside a kernel's results; batch-norm's constants fold away."""
    if op.kind is Kind.BATCH_NORM:
        return []
    return [name for name in op.inputs if name != known]
