"""Questions about an ONNX graph that its conversion to half asks in several places."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from onnx import defs

#: They multiply and sum: the only kernels that are slow where they stay in float32.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})

#: They hand values on as they are.
MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
     "Identity", "MaxPool", "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
     "Transpose", "Unsqueeze"}
)  # fmt: skip

#: One result for each element, computed from it alone.
POINTWISE = frozenset(
    {"Abs", "Add", "Ceil", "Clip", "Cos", "Div", "Erf", "Exp", "Floor", "Log", "Max", "Min", "Mod",
     "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub",
     "Sum", "Tanh", "Where"}
)  # fmt: skip

#: They hold graphs, whose inputs and outputs have the types of their own.
CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})

_INT4 = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_STANDARD = frozenset({"", "ai.onnx"})


def graphs(
    graph: ir.Graph, owner: ir.Node | None = None
) -> Iterator[tuple[ir.Graph, ir.Node | None]]:
    """A graph and all graphs inside of its nodes, each with the node that holds it."""
    yield graph, owner
    for node in graph:
        for inner in subgraphs(node):
            yield from graphs(inner, node)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node holds."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is ONNX's own."""
    return node.domain in _STANDARD


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to be a tensor in float32."""
    return (
        value is not None
        and isinstance(value.type, ir.TensorType)
        and value.dtype is ir.DataType.FLOAT
    )


def constant(value: ir.Value | None) -> np.ndarray | None:
    """What a constant holds."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def number(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def is_island(node: ir.Node) -> bool:
    """Whether a node is a product that would multiply in float32; integers multiply as such."""
    return node.op_type in PRODUCTS and len(grids_of(node)) < 2


def is_integer(node: ir.Node) -> bool:
    """Whether a node is a product that multiplies the codes of two grids."""
    return node.op_type in PRODUCTS and len(grids_of(node)) == 2


def grids_of(node: ir.Node) -> list[ir.Node]:
    """The DequantizeLinear nodes that the two operands of a product come from."""
    found = [grid_behind(value) for value in node.inputs[:2]]
    return [grid for grid in found if grid is not None]


def grid_behind(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, past what only moves values."""
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in MOVES:
        value = maker.inputs[0]
        maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def is_int4(grid: ir.Node) -> bool:
    """Whether a DequantizeLinear reads int4."""
    return grid.inputs[0] is not None and grid.inputs[0].dtype in _INT4


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def reads(node: ir.Node, opset: int, index: int) -> frozenset[str]:
    """The types that ONNX lets an input have, such as ``tensor(float16)``; none if not known.

    Example:
        >>> node = ir.node("Resize", [None, None, None])
        >>> "tensor(float16)" in reads(node, 18, 0), reads(node, 18, 2)
        (True, frozenset({'tensor(float)'}))
    """
    found = _types(node.op_type, opset) if is_standard(node) else None
    return _at(found[0], index) if found else frozenset()


def writes(node: ir.Node, opset: int, index: int) -> frozenset[str]:
    """The types that ONNX lets an output have; none if not known."""
    found = _types(node.op_type, opset) if is_standard(node) else None
    return _at(found[1], index) if found else frozenset()


def _at(slots: tuple[frozenset[str], ...], index: int) -> frozenset[str]:
    """The last slot of a variadic operator holds for all that follow."""
    return slots[min(index, len(slots) - 1)] if slots else frozenset()


@lru_cache(maxsize=512)
def _types(
    operator: str, opset: int
) -> tuple[tuple[frozenset[str], ...], tuple[frozenset[str], ...]] | None:
    """The types of the inputs and outputs of an operator; ``None`` where ONNX has none such."""
    try:
        schema = defs.get_schema(operator, opset)
    except defs.SchemaError:
        return None
    allowed = {t.type_param_str: frozenset(t.allowed_type_strs) for t in schema.type_constraints}

    def slots(parameters: object) -> tuple[frozenset[str], ...]:
        names = [p.type_str for p in parameters]  # type: ignore[attr-defined]
        return tuple(allowed.get(name, frozenset({name})) for name in names)

    return slots(schema.inputs), slots(schema.outputs)
