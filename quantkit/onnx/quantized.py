"""A float ONNX model with a plan and its grids: the counterpart of ``QuantizedModel``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantkit import numerics, sums
from quantkit.errors import DataError, RecipeError
from quantkit.graph.abstract import Kind
from quantkit.graph.plan import Decision, Edge, Placement, QuantizedTensor
from quantkit.interfaces import Calibrator, Rounding
from quantkit.model import MOVING
from quantkit.numerics import QParams
from quantkit.observer import Observer, found_qparams
from quantkit.onnx.describing import OnnxDescription
from quantkit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class OnnxLayer:
    """A quantized layer: the grids of its inputs by name, its weight and its bias in float."""

    name: str
    activation: str | None
    weight: str
    values: Tensor
    bias: Tensor | None


class QuantizedOnnx:
    """A float model that was read from an ONNX file, its plan, and the grids of the plan.

    Attributes:
        model: the float graph, with the recipe's passes run; not that of the user.
        description: how the plan's operators and tensors stand in it.
        plan: what is quantized, and why; ``print(quantized.plan)``.
        recipe: every choice that made it.
        grids: scale and zero-point by the name of the grid; weights have theirs at once.
        observers: what finds the grids of activations, by the same names.
        weights: rounded weights by the name of their grid; biases by the name of their layer.
    """

    def __init__(
        self,
        model: ir.Model,
        description: OnnxDescription,
        plan: Placement,
        recipe: Recipe,
        calibrator: Calibrator,
        weight_calibrator: Calibrator,
    ) -> None:
        self.model, self.description = model, description
        self.plan, self.recipe = plan, recipe
        self.grids: dict[str, QParams] = {}
        self.observers: dict[str, Observer] = {}
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self._reads = {edge: t for t in plan.tensors for edge in t.edges}
        for grid, members in plan.grids.items():
            first = members[0]
            if first.role == "weight":
                values = self._values(first)
                self.grids[grid] = found_qparams(values, first.spec, weight_calibrator, grid)
            else:
                self.observers[grid] = self._observer(grid, first, calibrator)

    def set_grid(self, grid: str, qparams: QParams) -> None:
        """Give an activation (or weight) a grid found elsewhere; before weights are rounded.

        Raises:
            DataError: the plan has no such grid, or one of another form.
        """
        members = self.plan.grids.get(grid)
        if members is None:
            raise DataError(
                f"the plan has no grid {grid!r}; it has: {', '.join(self.plan.grids)[:300]}"
            )
        if members[0].spec != qparams.spec:
            raise DataError(
                f"{grid} is {members[0].spec} in the plan, the grid given is {qparams.spec}"
            )
        self.grids[grid] = qparams

    @property
    def missing(self) -> tuple[str, ...]:
        """The grids of activations that calibration, or ``set_grid``, has yet to give."""
        return tuple(grid for grid in self.observers if grid not in self.grids)

    @property
    def observed(self) -> dict[str, Observer]:
        """The observer of every tensor that the plan quantizes; tensors of one grid share it."""
        return {
            t.tensor: self.observers[t.grid] for t in self.plan.tensors if t.role == "activation"
        }

    def layers(self) -> Iterator[OnnxLayer]:
        """The layers whose weights the plan quantizes."""
        for name in self.plan.quantized:
            weight = self._reads.get(Edge(name, 1))
            if weight is None or weight.role != "weight":
                continue
            bias = self.description.bias(name)
            yield OnnxLayer(
                name=name,
                activation=self._grid_before(name),
                weight=weight.grid,
                values=self._values(weight),
                bias=None if bias is None else _tensor(bias[1]),
            )

    def round_weights(self, rounding: Rounding) -> None:
        """Put weights on their grids, and biases on the grid of the sums that they join."""
        for layer in self.layers():
            step: Tensor | None = None
            activation = self.grids.get(layer.activation or "")
            if layer.bias is not None and activation is not None:
                roomy = sums.room_for_bias(activation, self.grids[layer.weight], layer.bias)
                self.grids[layer.weight] = roomy
                step = sums.bias_step(activation, roomy, layer.bias)
            self.weights[layer.weight] = rounding.round(layer.values, self.grids[layer.weight])
            if layer.bias is not None and step is not None:
                flat = numerics.round_to_multiple(layer.bias.reshape(-1), step)
                self.biases[layer.name] = flat.reshape(layer.bias.shape)

    def __repr__(self) -> str:
        """The plan: what is quantized, what is not, and why."""
        state = "not calibrated" if self.missing else "calibrated"
        return f"QuantizedOnnx({state})\n{self.plan}"

    def _values(self, tensor: QuantizedTensor) -> Tensor:
        value = self.description.value_of[tensor.tensor]
        if value.const_value is None:
            raise RecipeError(
                f"the weight {tensor.tensor} is computed in the file; export the model with "
                "constants folded, or leave its layer in float by an override"
            )
        return _tensor(value)

    def _observer(self, grid: str, tensor: QuantizedTensor, calibrator: Calibrator) -> Observer:
        channels: int | None = 1
        if tensor.spec.axis is not None:
            channels = self.description.graph.values[tensor.tensor].shape[tensor.spec.axis]
        return Observer(tensor.spec, calibrator, channels=channels or 1, name=grid)

    def _grid_before(self, layer: str) -> str | None:
        """The grid of a layer's input, before what only moves its values."""
        graph = self.description.graph
        ops = {op.name: op for op in graph.ops}
        edge, op = Edge(layer, 0), ops[layer]
        while (found := self._reads.get(edge)) is None:
            above = graph.producer.get(op.inputs[0]) if op.inputs else None
            if above is None or above.kind not in MOVING:
                return None
            edge, op = Edge(above.name, 0), above
        return found.grid


def planned(
    plan: Placement,
    description: OnnxDescription,
    reasons: Mapping[str, str],
    ignored: AbstractSet[str],
) -> Placement:
    """``plan`` with the caller's reasons in place of those of the overrides that said so.

    Residual adds among them, which overrides do not know, lose their quantizers here. Operators
    that the rules do not know and that the file tells of are added. ``ignored`` overrides are not
    reported where they match nothing: they are not the user's.
    """
    adds = {d.op for d in plan.decisions if d.kind is Kind.ADD} & reasons.keys()
    tensors = []
    for tensor in plan.tensors:
        edges = tuple(e for e in tensor.edges if e.op not in adds)
        if edges:
            tensors.append(replace(tensor, edges=edges))
    decisions = [
        replace(d, quantized=False, reason=reasons[d.op]) if d.op in reasons else d
        for d in plan.decisions
    ]
    decisions += [
        Decision(op=op, kind=Kind.OTHER, quantized=False, reason=why)
        for op, why in description.notes.items()
    ]
    order = description.graph.order
    return replace(
        plan,
        tensors=tuple(tensors),
        decisions=tuple(sorted(decisions, key=lambda d: order[d.op])),
        unused=tuple(text for text in plan.unused if text not in ignored),
    )


def _tensor(value: ir.Value) -> Tensor:
    assert value.const_value is not None
    return torch.from_numpy(np.array(value.const_value.numpy(), dtype=np.float32))
