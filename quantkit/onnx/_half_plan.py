"""Decides which nodes of a float graph stay in float32 when the rest becomes half."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import (
    CONTROL,
    MOVES,
    PRODUCTS,
    grid_behind,
    grids_of,
    is_float,
    is_int4,
    is_integer,
    is_standard,
    readers,
    reads,
    subgraphs,
    writes,
)
from quantkit.onnx._half_ranges import from_constants, from_peaks, from_sums
from quantkit.onnx._half_rules import structural
from quantkit.onnx.opsets import opset_of

#: They take and give either format, whichever their neighbours have.
GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a node stays in float32.

    Attributes:
        text: for people.
        framed: a product that TensorRT may well run in half between Casts, as long as it sums in
            float32.
        asked: the user wants it so.
    """

    text: str
    framed: bool = False
    asked: bool = False


@dataclass(frozen=True, kw_only=True)
class HalfPlan:
    """Which nodes stay in float32, of all that touch float32.

    Attributes:
        half: the format of the rest.
        kept: the nodes that stay, each with its reason.
        unused: patterns that matched no node.
    """

    half: HalfFormat
    kept: Mapping[ir.Node, Reason]
    unused: tuple[str, ...] = ()


def plan(
    model: ir.Model, half: HalfFormat, *, keep: Sequence[str], peaks: Mapping[str, float]
) -> HalfPlan:
    """Decide for every node of a model.

    Args:
        model: types inferred, nodes sorted, masks in range.
        half: the format of what is converted.
        keep: patterns of names of nodes that stay.
        peaks: the largest magnitude of each tensor, where data were run.
    """
    graph, opset = model.graph, opset_of(model)
    kept: dict[ir.Node, Reason] = {}
    nodes = [n for n in graph.all_nodes() if _touches(n)]
    for node, text in _asked(nodes, keep):
        kept.setdefault(node, Reason(text=text, asked=True))
    for source in (
        _untyped(nodes, half, opset),
        _integers(nodes),
        _pools(nodes, half),
        from_constants(graph, half),
        from_peaks(graph, peaks, half),
        iter(structural(graph, half).items()),
    ):
        for node, text in source:
            kept.setdefault(node, Reason(text=text))
    for node, text in from_sums(graph, peaks, half):
        kept.setdefault(node, Reason(text=text, framed=True))
    for grid in [node for node in kept if node.op_type in GRIDS or not _touches(node)]:
        del kept[grid]
    _inside(kept)
    _between(nodes, kept)
    unused = tuple(p for p in keep if not any(_matches(n, p) for n in graph.all_nodes()))
    return HalfPlan(half=half, kept=kept, unused=unused)


def _touches(node: ir.Node) -> bool:
    """Whether a node reads or makes float32, or what may be float32."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    return any(is_float(v) or v.type is None for v in values) or any(
        _touches(n) for g in subgraphs(node) for n in g
    )


def _asked(nodes: Sequence[ir.Node], keep: Sequence[str]) -> Iterator[tuple[ir.Node, str]]:
    for node in nodes:
        for pattern in keep:
            if _matches(node, pattern):
                yield node, f"it matches keep {pattern!r}"


def _matches(node: ir.Node, pattern: str) -> bool:
    return fnmatch.fnmatchcase(node.name or "", pattern)


def _untyped(
    nodes: Sequence[ir.Node], half: HalfFormat, opset: int
) -> Iterator[tuple[ir.Node, str]]:
    """The nodes that ONNX has in float32 alone, or of which it is not known."""
    wanted = f"tensor({half.name})"
    for node in nodes:
        unknown = [
            v.name
            for v in (*node.inputs, *node.outputs)
            if v is not None and v.type is None and v.name
        ]
        if not is_standard(node):
            yield node, f"what types {node.domain}.{node.op_type} takes is not known"
        elif unknown:
            yield node, f"the type of {unknown[0]} is not known"
        elif any(_is_sequence(v) for v in (*node.inputs, *node.outputs)):
            yield node, "it works on a sequence of tensors"
        elif node.op_type not in CONTROL and not _has(node, opset, wanted):
            yield node, f"ONNX has {node.op_type} (opset {opset}) not in {half.name}"


def _integers(nodes: Sequence[ir.Node]) -> Iterator[tuple[ir.Node, str]]:
    """Products of int8 and int4: TensorRT gives int4 half only by a half scale."""
    for node in nodes:
        if is_integer(node) and any(map(is_int4, grids_of(node))):
            yield node, "it sums integers, which the half scale that int4 needs would leave in half"


def _pools(nodes: Sequence[ir.Node], half: HalfFormat) -> Iterator[tuple[ir.Node, str]]:
    """Maxima of codes: TensorRT-RTX takes those of bfloat16 in float32, and loses the grid."""
    for node in nodes if half.type is ir.DataType.BFLOAT16 else ():
        products = [n for n in readers(node.outputs[0]) if n.op_type in PRODUCTS]
        if node.op_type == "MaxPool" and grid_behind(node.inputs[0]) is not None:
            for kept in (node, *products):
                yield kept, "it works on int8, of which TensorRT takes no maximum in bfloat16"


def _is_sequence(value: ir.Value | None) -> bool:
    return value is not None and not isinstance(value.type, ir.TensorType | None)


def _has(node: ir.Node, opset: int, wanted: str) -> bool:
    """Whether every result in float32 may be of the wanted type."""
    made = [i for i, v in enumerate(node.outputs) if is_float(v)]
    if made:
        return all(wanted in writes(node, opset, i) for i in made)
    taken = [i for i, v in enumerate(node.inputs) if v is not None and is_float(v)]
    return any(wanted in reads(node, opset, i) for i in taken)


def _inside(kept: dict[ir.Node, Reason]) -> None:
    """What a node holds stays in float32 with it."""
    for node in [node for node in kept if node.op_type in CONTROL]:
        for graph in subgraphs(node):
            for inner in graph.all_nodes():
                if inner.op_type not in GRIDS and _touches(inner):
                    kept.setdefault(inner, Reason(text=f"it is inside of {node.name}"))


def _between(nodes: Sequence[ir.Node], kept: dict[ir.Node, Reason]) -> None:
    """What only moves values from one node in float32 to others stays as well: no two Casts."""
    moves = [n for n in nodes if n.op_type in MOVES and is_float(n.outputs[0])]
    changed = True
    while changed:
        changed = False
        for node in moves:
            if node in kept:
                continue
            floats = [v for v in node.inputs if v is not None and is_float(v)]
            behind = [r for out in node.outputs for r in readers(out)]
            made = [v.producer() for v in floats if v.producer() is not None]
            if made and all(m in kept for m in made) and behind and all(r in kept for r in behind):
                kept[node] = Reason(text="it moves values between nodes that stay in float32")
                changed = True
