"""Which nodes stay in float32 whatever the data are, each with the reason.

TensorRT fuses what is kept here, with the Casts around it, into kernels that read and write half,
and computes in float32 inside. Seen in the kernels that TensorRT-RTX 1.7 generates.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import (
    MOVES,
    POINTWISE,
    constant,
    graphs,
    is_float,
    number,
    readers,
)

_SQUARES = "it sums squares: float16 overflows beyond 256, bfloat16 keeps too few digits"
_NORMALIZES = "part of a normalization: squares and epsilon need the range and digits of float32"
_TINY = "its constant {0:g} would be {1:g} in {2}"
_COUNTS = "computed from integers, which {0} holds only up to {1:,}"
_ANGLE = "it takes an angle or a position, of which half keeps too few digits"

#: Operators that lose in half whatever they are given.
_UNSAFE = {
    "CumSum": "it adds up one by one, and a long sum swallows what is small",
    "LogSoftmax": "the logarithm of a small probability, which float16 rounds to 0, is infinite",
    "LpNormalization": _SQUARES,
    "MeanVarianceNormalization": _SQUARES,
    "ReduceL2": _SQUARES,
    "ReduceLogSum": "it takes the logarithm of a sum that may leave the range of float16",
    "ReduceLogSumExp": "it sums exponentials: float16 overflows beyond 11",
    "ReduceSumSquare": _SQUARES,
}

_MEANS = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
#: What stands between a mean of squares, or an epsilon, and the division by its root.
_TAIL = frozenset(
    {"Add", "Clip", "Expand", "Max", "Min", "Pow", "Reciprocal", "Reshape", "Sqrt", "Squeeze",
     "Sub", "Unsqueeze"}
)  # fmt: skip
#: What makes a lost epsilon matter.
_ENDS = frozenset({"Div", "Log", "Pow", "Reciprocal", "Sqrt"})
_INTEGERS = frozenset(
    {ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT16,
     ir.DataType.UINT32, ir.DataType.UINT64}
)  # fmt: skip
_COORDINATES = frozenset({"Sin", "Cos", "Tan", "GridSample", "RoiAlign"})


def structural(graph: ir.Graph, half: HalfFormat) -> dict[ir.Node, str]:
    """The nodes of a graph, and of those inside, that stay in float32, and why.

    Example:
        >>> from quantkit.onnx._half_format import FORMATS
        >>> x = ir.val("x", ir.DataType.FLOAT, ["N", 32])
        >>> node = ir.node("LogSoftmax", [x])
        >>> graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18})
        >>> [kept.op_type for kept in structural(graph, FORMATS["float16"])]
        ['LogSoftmax']
    """
    found: dict[ir.Node, str] = {}
    for inner, _ in graphs(graph):
        for node in inner:
            for kept, reason in _around(node, half):
                found.setdefault(kept, reason)
    for kept in _from_integers(graph):
        found.setdefault(kept, _COUNTS.format(half.name, half.integers))
    return found


def _around(node: ir.Node, half: HalfFormat) -> Iterator[tuple[ir.Node, str]]:
    """What one node keeps in float32: itself, and what it would be no use without."""
    if node.op_type in _UNSAFE:
        yield node, _UNSAFE[node.op_type]
        if node.op_type == "ReduceL2":
            yield from ((n, _NORMALIZES) for n in _to_division(node.outputs[0]))
    elif _is_square(node):
        yield from ((n, _NORMALIZES) for n in _normalization(node))
    elif node.op_type in _COORDINATES:
        yield from ((n, _ANGLE) for n in _computed_by_element(node))
    lost = _tiny(node, half)
    if lost is not None:
        yield from ((n, lost) for n in (node, *_to_division(node.outputs[0])))


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    return node.op_type == "Pow" and number(node.inputs[1]) == 2.0


def _normalization(square: ir.Node) -> Iterator[ir.Node]:
    """What a square belongs to: the centering before it, and all up to the division behind it."""
    means = [n for n in readers(square.outputs[0]) if n.op_type in _MEANS]
    if not means:
        return
    yield square
    source = square.inputs[0]
    centering = source.producer() if source is not None else None
    if centering is not None and centering.op_type == "Sub":
        yield centering
        mean = centering.inputs[1].producer() if centering.inputs[1] is not None else None
        if mean is not None and mean.op_type in _MEANS:
            yield mean
    for mean in means:
        yield mean
        yield from _to_division(mean.outputs[0])


def _to_division(value: ir.Value) -> list[ir.Node]:
    """The nodes behind a value, up to the one that divides by it, or multiplies with it."""
    found: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        for node in readers(waiting.pop()):
            ends = node.op_type in {"Mul", "Div", "Log"}
            if node in found or not (ends or node.op_type in _TAIL):
                continue
            found[node] = None
            if not ends or any(number(v) is not None for v in node.inputs):
                waiting.append(node.outputs[0])
    return list(found)


def _tiny(node: ir.Node, half: HalfFormat) -> str | None:
    """Why an epsilon is lost; ``None`` where there is none, or nothing divides by it."""
    if node.op_type not in {"Add", "Clip", "Max"}:
        return None
    for value in node.inputs:
        array = constant(value) if is_float(value) else None
        if array is None or array.size != 1:
            continue
        before, after = (float(a.reshape(())) for a in (array, half.round(array)))
        if 0 < abs(before) < half.smallest and abs(after - before) * half.integers > abs(before):
            behind = {n.op_type for n in _to_division(node.outputs[0])}
            return _TINY.format(before, after, half.name) if behind & _ENDS else None
    return None


def _computed_by_element(node: ir.Node) -> list[ir.Node]:
    """A node, and those that compute its inputs element by element."""
    found = {node: None}
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            maker = value.producer() if value is not None and is_float(value) else None
            if maker is not None and maker not in found and maker.op_type in POINTWISE | MOVES:
                found[maker] = None
                waiting.append(maker)
    return list(found)


def _from_integers(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that compute floats of positions, sizes or masks alone, without activations."""
    found: dict[ir.Node, None] = {}
    for node in graph.all_nodes():
        if not node.outputs or not is_float(node.outputs[0]):
            continue
        floats = [v for v in node.inputs if v is not None and is_float(v) and constant(v) is None]
        if node.op_type == "Cast":
            derived = node.inputs[0] is not None and node.inputs[0].dtype in _INTEGERS
        elif node.op_type == "Range":
            derived = True
        else:
            plain = node.op_type in POINTWISE | MOVES | _MEANS or _is_outer(node)
            derived = bool(floats) and plain
        if derived and all(v.producer() in found for v in floats):
            found[node] = None
    return list(found)


def _is_outer(node: ir.Node) -> bool:
    """Whether a product sums over one element: frequencies times positions."""
    left = node.inputs[0] if node.op_type == "MatMul" else None
    return left is not None and left.shape is not None and left.shape[-1] == 1
