"""One model by both ways in, and what of their plans must be the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from quantkit import plugins
from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op
from quantkit.graph.aten import describe
from quantkit.graph.attention import split_attention
from quantkit.graph.capture import capture
from quantkit.graph.functionalize import functionalize
from quantkit.graph.plan import Edge, Placement, QuantizedTensor
from quantkit.interfaces import Pass
from quantkit.model import QuantizedModel
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.recipe import Recipe
from quantkit.workflow import quantize, resolve_recipe
from quantkit.workflow_onnx import quantize_onnx

Anchor: TypeAlias = tuple[str, str, int]

#: What an exporter may write in more or fewer nodes than PyTorch has.
_BETWEEN = {Kind.MOVE, Kind.SLICE}


def export_float(
    model: nn.Module, args: tuple[Tensor, ...], path: Path, opset: int | None = None
) -> Path:
    """A float file as a user would write it, for any batch."""
    # One name for all: the exporter warns of a second one for the same size.
    dims = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    torch.onnx.export(
        model, args, path, dynamo=True, opset_version=opset, dynamic_shapes=dims, verbose=False
    )
    return path


def both(
    model: nn.Module, args: tuple[Tensor, ...], path: Path, recipe: str | Recipe
) -> tuple[QuantizedModel, QuantizedOnnx]:
    """Quantized from PyTorch, and from the file that was exported of it, with the same data."""
    ours = quantize(model, recipe, calibration=[args], cpu="vnni")
    return ours, quantize_onnx(path, recipe, calibration=[args], cpu="vnni")


def captured_graph(model: nn.Module, args: tuple[Tensor, ...], recipe: str | Recipe) -> Graph:
    """The abstract graph that the plan of ``quantize`` is of."""
    module = copy.deepcopy(capture(model, args).module)
    functionalize(module)
    split_attention(module)
    chosen = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe, cpu="vnni")
    for choice in chosen.passes:
        plugins.find("passes", choice.name, Pass)().apply(module)
    return describe(module).graph


def layers(plan: Placement) -> list[tuple[str, str, bool]]:
    """Every decision, by the name of the layer."""
    return [(d.op, str(d.kind), d.quantized) for d in plan.decisions]


def placement(plan: Placement, graph: Graph) -> list[tuple[Any, ...]]:
    """Each quantized tensor by what makes it and what reads it, its form, and who shares its grid.

    Names of tensors, views between, and the layout of weights may differ between the ways in.
    """
    grids = list(plan.grids)
    rows = []
    for tensor in plan.tensors:
        spec = tensor.spec
        axis = None if spec.axis is None else "channels" if tensor.role == "weight" else spec.axis
        form = (tensor.role, spec.dtype, spec.symmetric, spec.bits, spec.group_size, axis)
        rows.append((*_ends(tensor, graph), *form, grids.index(tensor.grid)))
    return rows


def scales(ours: QuantizedModel, theirs: QuantizedOnnx) -> Iterable[tuple[str, Tensor, Tensor]]:
    """The scales of both for each tensor, in order, with a name for messages."""
    for a, b in zip(ours.plan.tensors, theirs.plan.tensors, strict=True):
        yield f"{a.tensor} ({b.tensor})", ours.quantizers[a.grid].scale, theirs.grids[b.grid].scale


def _ends(tensor: QuantizedTensor, graph: Graph) -> tuple[Anchor, frozenset[Anchor]]:
    ops = {op.name: op for op in graph.ops}
    return _maker(tensor.tensor, graph), frozenset(_readers(tensor.edges, ops, graph))


def _maker(name: str, graph: Graph) -> Anchor:
    while (op := graph.producer.get(name)) is not None and op.kind in _BETWEEN:
        name = op.inputs[0]
    if op is None:
        return ("constant" if graph.values[name].constant else f"input {name}", "", 0)
    return (str(op.kind), _name(op), 0)


def _readers(edges: Iterable[Edge], ops: dict[str, Op], graph: Graph) -> Iterable[Anchor]:
    for edge in edges:
        op = ops[edge.op]
        if op.kind in _BETWEEN:
            further = [Edge(o.name, i) for o, i in graph.consumers[op.output]]
            yield from _readers(further, ops, graph)
        else:
            yield (str(op.kind), _name(op), edge.index)


def _name(op: Op) -> str:
    return op.name if op.kind in COMPUTE | {Kind.ADD} else ""
