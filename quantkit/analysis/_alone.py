"""A float model with quantizers for each layer (or block) alone, in any of some formats.

An edge has quantizers of its own: where several layers read one tensor, only the one that is
switched on reads rounded values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import fx

from quantkit import plugins
from quantkit.analysis._units import (
    Unit,
    own_schemes,
    plan_alone,
    plan_of_format,
    units_of,
    without_quantizers,
)
from quantkit.analysis.formats import Format
from quantkit.calibrating import choose
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.abstract import COMPUTE
from quantkit.graph.aten import Description, describe
from quantkit.graph.edit import evaluate_constant, replace_input
from quantkit.graph.plan import Edge, Placement, QuantizedTensor
from quantkit.interfaces import Calibrator
from quantkit.model import QuantizedModel, Quantizers
from quantkit.numerics import QParams
from quantkit.observer import Observer, found_qparams
from quantkit.recipe import PlugIn, SchemeChoice
from quantkit.reconstruction.stream import Pieces
from quantkit.spec import QuantSpec


@dataclass
class Alone:
    """A float model with quantizers of every unit in every format, all of them off.

    Attributes:
        model: an ordinary quantized model, whose plan is empty.
        units: in order.
        plans: of each unit, by the number of the format; ``None`` where it cannot have it.
        schemes: what the plans obey, by layer.
        layers: the nodes of all layers, quantized or not, by name.
        description: of the float graph.
        weight_grids: those that are known, by tensor and form: a search for each takes a while.
        observers: by the tensors that one grid covers, and the axis; one of each form of grid.
    """

    model: QuantizedModel
    units: list[Unit]
    plans: dict[tuple[int, int], Placement]
    schemes: dict[tuple[int, int], dict[str, SchemeChoice]]
    layers: dict[str, fx.Node]
    description: Description
    weight_grids: dict[tuple[str, QuantSpec], QParams]
    observers: dict[tuple[tuple[str, ...], int | None], list[Observer]] = field(
        default_factory=dict
    )
    _quantizers: dict[tuple[int, int], list[FakeQuantize]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _readers: dict[int, set[fx.Node]] = field(default_factory=lambda: defaultdict(set))
    _waiting: list[tuple[FakeQuantize, Observer]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found = next((value.device for _, value in self.model.float_state()), None)
        return torch.device("cpu") if found is None else found

    def switch(self, unit: int, number: int, on: bool) -> None:
        """Quantize a unit in a format, or stop it."""
        for quantizer in self._quantizers[unit, number]:
            quantizer.quantize_values(on)

    def start(self, unit: int, pieces: Pieces) -> int:
        """The first operator that quantizing a unit touches."""
        return min(pieces.index[node] for node in self._readers[unit] if node in pieces.index)

    def calibrate(self) -> None:
        """Grids for activations, of what their observers have seen."""
        for seen in self.observers.values():
            for observer in seen[1:]:
                for key, value in seen[0].state.items():
                    observer.get_buffer(key).copy_(value)
        observers = [observer for _, observer in self._waiting]
        for (quantizer, _), qparams in zip(self._waiting, choose(observers), strict=True):
            quantizer.set_qparams(qparams)

    def sources(self) -> dict[fx.Node, list[Observer]]:
        """The tensors that are to be observed, and by what: one observer serves all formats."""
        found: dict[fx.Node, list[Observer]] = defaultdict(list)
        for (tensors, _), observers in self.observers.items():
            for tensor in tensors:
                found[self.description.node_of_value[tensor]].append(observers[0])
        return found


def isolated(
    model: QuantizedModel, formats: Sequence[Format], by: Literal["layer", "block"]
) -> Alone:
    """The model with quantizers for each layer or block alone.

    Args:
        model: as ``prepare`` makes it, whose weights are those of the float model.
        formats: beside the recipe's own scheme, which is number 0.
        by: what is quantized at a time.
    """
    module = without_quantizers(model)
    description = describe(module)
    units = units_of(model, by)
    whole = [plan_of_format(description.graph, model.recipe, f) for f in formats]
    own = own_schemes(description.graph, model.recipe)
    plans: dict[tuple[int, int], Placement] = {}
    schemes: dict[tuple[int, int], dict[str, SchemeChoice]] = {}
    for index, unit in enumerate(units):
        for number, allowed in enumerate([model.plan, *whole]):
            wanted = {
                name: own[name] if number == 0 else formats[number - 1].scheme
                for name in unit.layers
            }
            plan = plan_alone(description.graph, model, wanted, allowed)
            if plan is not None:
                plans[index, number] = plan
                schemes[index, number] = {n: s for n, s in wanted.items() if s is not None}
    layers = {op.name: description.node_of_op[op.name] for op in description.graph.of(COMPUTE)}
    empty = replace(model.plan, tensors=())
    capture = replace(model.capture, module=module)
    alone = Alone(
        QuantizedModel(capture, empty, model.recipe).eval(), units, plans, schemes, layers,
        description, _weight_grids(model),
    )  # fmt: skip
    _insert_all(alone, module)
    return alone


def _weight_grids(model: QuantizedModel) -> dict[tuple[str, QuantSpec], QParams]:
    """What `prepare` has found already."""
    weights = [tensor for tensor in model.plan.tensors if tensor.role == "weight"]
    quantizers = model.quantizers
    return {(t.tensor, t.spec): quantizers[t.grid].qparams for t in weights}


def _insert_all(alone: Alone, module: fx.GraphModule) -> None:
    """Quantizers into the graph, one for each edge of each plan, behind one another."""
    owner = _owners(alone)
    recipe = alone.model.recipe
    calibrator, of_weights = _calibrator(recipe.calibrator), _calibrator(recipe.weight_calibrator)
    modules = Quantizers()
    path = "quantizers"
    while hasattr(module, path):
        path += "_"
    module.add_submodule(path, modules)
    now: dict[Edge, fx.Node] = {}
    for (unit, number), plan in alone.plans.items():
        for grid, members in plan.grids.items():
            edges = [(t, e) for t in members for e in t.edges if owner[e] == unit]
            if not edges:
                continue
            key = f"u{unit}f{number}g{len(modules)}"
            if members[0].role == "weight":
                quantizer = _of_weight(alone, module, grid, members[0], of_weights)
            else:
                quantizer = _of_activation(alone, grid, members, calibrator)
            modules[key] = quantizer
            alone._quantizers[unit, number].append(quantizer)
            for tensor, edge in edges:
                source = now.get(edge, alone.description.node_of_value[tensor.tensor])
                reader = alone.description.node_of_op[edge.op]
                with module.graph.inserting_before(reader):
                    node = module.graph.call_module(f"{path}.{key}", (source,))
                replace_input(reader, edge.index, source, node)
                now[edge] = node
                alone._readers[unit] |= {reader, node}
    module.graph.lint()
    module.recompile()


def _owners(alone: Alone) -> dict[Edge, int]:
    """The unit that an edge counts for: the last of those that would quantize it.

    Where a recipe quantizes what layers put out, the output of one is the input of the next, and
    one quantizer serves both.
    """
    owner: dict[Edge, int] = {}
    for (unit, _), plan in alone.plans.items():
        for tensor in plan.tensors:
            for edge in tensor.edges:
                owner[edge] = max(unit, owner.get(edge, 0))
    return owner


def _calibrator(choice: PlugIn) -> Calibrator:
    return plugins.find("calibrators", choice.name, Calibrator)(**choice.settings)


def _of_weight(
    alone: Alone, module: fx.GraphModule, grid: str, tensor: QuantizedTensor, calibrator: Calibrator
) -> FakeQuantize:
    key, known = (tensor.tensor, tensor.spec), alone.weight_grids
    if key not in known:
        weight = evaluate_constant(module, alone.description.node_of_value[tensor.tensor])
        known[key] = found_qparams(weight, tensor.spec, calibrator, grid)
    quantizer = FakeQuantize(tensor.spec, shape=known[key].scale.shape, name=grid)
    quantizer.set_qparams(known[key])
    return quantizer.to(known[key].scale.device)


def _of_activation(
    alone: Alone, grid: str, members: Sequence[QuantizedTensor], calibrator: Calibrator
) -> FakeQuantize:
    """A quantizer that waits for its grid; what sees the same tensors alike observes once."""
    spec = members[0].spec
    shape = alone.description.graph.values[members[0].tensor].shape
    channels = 1 if spec.axis is None else shape[spec.axis] or 1
    quantizer = FakeQuantize(spec, shape=() if spec.axis is None else (channels,), name=grid)
    seen = alone.observers.setdefault((tuple(t.tensor for t in members), spec.axis), [])
    observer = next((o for o in seen if o.spec == spec), None)
    if observer is None:
        observer = Observer(spec, calibrator, channels=channels, name=grid).to(alone.device)
        seen.append(observer)
    alone._waiting.append((quantizer, observer))
    return quantizer.to(alone.device)
