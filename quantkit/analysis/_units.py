"""What is quantized at a time, and the plan that quantizes it and nothing else.

What *alone* means is decided by the rules that place quantizers: the plan of a recipe that leaves
every other layer in float. So the inputs of a layer count as its own, and with them the skip
branch of the residual add that fuses into it.
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from quantkit.analysis.formats import Format
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.abstract import COMPUTE, Graph, Kind
from quantkit.graph.aten import describe
from quantkit.graph.placement import place
from quantkit.graph.plan import Placement
from quantkit.graph.rules import products_before
from quantkit.model import LAYER, QuantizedModel, Quantizers, copied
from quantkit.recipe import Override, Recipe, SchemeChoice
from quantkit.reconstruction.blocks import blocks_of
from quantkit.reconstruction.stream import Pieces

#: Every layer that no later override names is left in float.
_NOTHING = Override(module="*", scheme=None)


@dataclass(frozen=True)
class Unit:
    """Layers that are quantized together: one, both products of an attention, or a block."""

    name: str
    layers: tuple[str, ...]


def units_of(model: QuantizedModel, by: Literal["layer", "block"]) -> list[Unit]:
    """The quantized layers of a model in order, one by one or block by block."""
    graph = describe(without_quantizers(model)).graph
    quantized = [name for name in graph.order if name in set(model.plan.quantized)]
    groups = _attentions(graph, set(quantized))
    if by == "block":
        groups = _blocks(model, groups)
    members: dict[str, list[str]] = defaultdict(list)
    for name in quantized:
        members[groups.get(name, name)].append(name)
    return [Unit(name, tuple(layers)) for name, layers in members.items()]


def _attentions(graph: Graph, quantized: set[str]) -> dict[str, str]:
    """A name for the products of each attention: one is quantized only with the other."""
    group: dict[str, str] = {}
    for second in graph.of({Kind.MATMUL}):
        found = [op.name for op in (*products_before(second, graph), second)]
        if len(found) > 1 and set(found) <= quantized:
            # One product may serve two attentions.
            names = {group[name] for name in found if name in group}
            together = [n for n, g in group.items() if g in names] + found
            group |= dict.fromkeys(together, min(together, key=lambda n: graph.order[n]))
    return group


def _blocks(model: QuantizedModel, attentions: Mapping[str, str]) -> dict[str, str]:
    """The block of each layer; products of activations belong to the one that they lie in."""
    pieces = Pieces(model)
    spans = blocks_of(model, pieces)
    places = {node.meta[LAYER]: i for node, i in pieces.index.items() if LAYER in node.meta}
    names: list[str] = []
    for span in spans:
        taken = span.name in names
        names.append(f"{span.name} from {span.layers[0].name}" if taken else span.name)
    group: dict[str, str] = {}
    for layer, spot in places.items():
        first = places.get(attentions.get(layer, layer), spot)
        inside = [
            n for n, span in zip(names, spans, strict=True) if span.start <= first < span.stop
        ]
        group[layer] = inside[0] if inside else attentions.get(layer, layer)
    return group


def without_quantizers(model: QuantizedModel) -> fx.GraphModule:
    """A copy of the graph, in float, as it was before quantizers were put in."""
    module = copied(model).graph
    for node in list(module.graph.nodes):
        node.meta.pop(LAYER, None)
        is_call = node.op == "call_module"
        if is_call and isinstance(module.get_submodule(str(node.target)), FakeQuantize):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    for name, child in list(module.named_children()):
        if isinstance(child, Quantizers):
            delattr(module, name)
    module.recompile()
    return module


def plan_of_format(graph: Graph, recipe: Recipe, format: Format) -> Placement | None:
    """The plan in which all layers have a format; ``None`` for float."""
    if format.scheme is None:
        return None
    return place(graph, recipe.model_copy(update={"scheme": format.scheme, "overrides": ()}))


def plan_alone(
    graph: Graph,
    model: QuantizedModel,
    schemes: Mapping[str, SchemeChoice | None],
    whole: Placement | None,
) -> Placement | None:
    """The plan that quantizes some layers and nothing else; ``None`` where rules leave one out."""
    if whole is None:
        return None
    for name in schemes:
        # An override of the user's asks for what rules would leave in float.
        forced = model.plan.decision(name).reason.startswith("override")
        if not (forced or whole.decision(name).quantized):
            return None
    overrides = [Override(module=glob.escape(n), scheme=scheme) for n, scheme in schemes.items()]
    update = {"overrides": (_NOTHING, *overrides)}
    plan = place(graph, model.recipe.model_copy(update=update))
    return plan if set(plan.quantized) == set(schemes) else None


def own_schemes(graph: Graph, recipe: Recipe) -> dict[str, SchemeChoice | None]:
    """What the recipe has for each layer: its own scheme, or that of the last override."""
    inside = [op.name for op in graph.of(COMPUTE) if not op.outside]
    ends = {inside[0], inside[-1]} if inside else set()
    found: dict[str, SchemeChoice | None] = {}
    for op in graph.of(COMPUTE):
        at_end = op.name in ends
        matching = [o for o in recipe.overrides if o.matches(op.name, op.kind, at_end=at_end)]
        found[op.name] = matching[-1].scheme if matching else recipe.scheme
    return found
