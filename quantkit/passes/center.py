"""Give engines that take no zero-point the whole grid: shift the tensor, not the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from quantkit.batches import Call
from quantkit.errors import RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.batchnorm import kept
from quantkit.graph.centering import (
    bars_shift,
    made_by_attention,
    symmetric,
    with_symmetric,
)
from quantkit.interfaces import ModelPass
from quantkit.model import QuantizedModel, Quantizers, keys_of
from quantkit.numerics import QParams
from quantkit.observer import Observer
from quantkit.passes._center_biases import write_biases
from quantkit.passes._center_state import Centers
from quantkit.passes._center_walk import find_shifts
from quantkit.passes._center_write import write_shifts
from quantkit.reconstruction.float_layers import forget_float
from quantkit.spec import shiftable


@dataclass(frozen=True, kw_only=True)
class Center(ModelPass):
    """``x ≈ (q - z) * s`` becomes ``x - c ≈ q * s`` with ``c = -z * s``: the same codes, zero-point 0.

    The recipe calibrates activations on asymmetric int8 grids, and this makes symmetric ones of
    them, which TensorRT takes: a tensor behind a ReLU then has 8 bits there, not 7. The shift goes
    into biases and the bounds of clips; convolutions are padded with ``-c``, which stands for zero.
    What cannot be shifted (the products of attention) has a symmetric grid from the start.

    Weights become the values on their grids: a shift is made up for exactly with those.
    """  # noqa: E501

    @property
    def samples(self) -> int:
        """None: all is known from the grids."""
        return 0

    def apply(self, model: QuantizedModel, calls: Sequence[Call]) -> int:
        """Center every grid that can be; returns how many have a shift.

        Raises:
            RecipeError: batch-norm was kept for training.
        """
        if kept(model.graph):
            raise RecipeError(
                "center shifts biases, and those of kept batch-norms are computed; use the passes "
                "[fold_batchnorm, center]"
            )
        nodes = _quantizers(model)
        chosen = {
            grid: quantizer
            for grid, quantizer in model.quantizers.items()
            if shiftable(quantizer.spec)
            and quantizer.calibrated
            and not any(map(_barred, nodes[grid]))
        }
        shifts = {grid: _shift(quantizer) for grid, quantizer in chosen.items()}
        centered = {node: shifts[grid] for grid in shifts for node in nodes[grid]}
        found = find_shifts(model.graph.graph, centered)
        write_shifts(model.graph, found)
        _replace_quantizers(model, shifts)
        model.plan = with_symmetric(model.plan, shifts)
        if shifts:
            model.add_module("centers", Centers({grid: c for grid, c in shifts.items() if c}))
        write_biases(model, found)
        forget_float(model)  # the float model's values are no longer those of this graph
        model.graph.graph.eliminate_dead_code()
        model.graph.graph.lint()
        model.graph.recompile()
        return sum(shift != 0 for shift in shifts.values())


def _barred(node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    return made_by_attention(source) or any(bars_shift(user, node) for user in node.users)


def _shift(quantizer: FakeQuantize) -> float:
    qparams = quantizer.qparams
    return -float(qparams.zero_point) * float(qparams.scale) + 0.0  # + 0.0: no negative zero


def _quantizers(model: QuantizedModel) -> dict[str, list[fx.Node]]:
    """The nodes of each grid, in order."""
    grid_of = {id(quantizer): grid for grid, quantizer in model.quantizers.items()}
    nodes: dict[str, list[fx.Node]] = {grid: [] for grid in model.plan.grids}
    for node in model.graph.graph.nodes:
        if node.op == "call_module":
            grid = grid_of.get(id(model.graph.get_submodule(str(node.target))))
            if grid is not None:
                nodes[grid].append(node)
    return nodes


def _replace_quantizers(model: QuantizedModel, shifts: dict[str, float]) -> None:
    holder = next(m for m in model.graph.children() if isinstance(m, Quantizers))
    for grid, key in keys_of(model.plan.grids).items():
        if grid in shifts:
            holder[key] = _centered(model.quantizers[grid], shifts[grid])


def _centered(old: FakeQuantize, shift: float) -> FakeQuantize:
    """The quantizer of the shifted tensor: the same steps, and the range that was seen, shifted."""
    spec, grid = symmetric(old.spec), old.qparams
    observer = None
    if old.observer is not None:
        observer = Observer(spec, old.observer.calibrator, name=old.observer.name)
        observer.to(old.scale.device)
        low, high = old.observer.state["minimum"], old.observer.state["maximum"]
        if bool((low <= high).all()):
            observer.begin_with(low - shift, high - shift)
        observer.train(old.observer.training)
    new = FakeQuantize(spec, observer=observer, name=old.name).to(old.scale.device)
    new.set_qparams(
        QParams(scale=grid.scale, zero_point=torch.zeros_like(grid.zero_point), spec=spec)
    )
    new.observing, new.quantizing = old.observing, old.quantizing
    return new.train(old.training)
