"""Move scale from the channels of a tensor into the weights that read it: what the passes share.

``W x = (W s) (x / s)``: the linear layers that read one tensor take ``s`` into their columns, and
what makes the tensor takes ``1 / s``, or a product with ``1 / s`` is put before the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from quantkit import numerics, plugins
from quantkit.batches import Call
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import describe, kind_of
from quantkit.graph.edit import constant, has_constant, readers, set_constant
from quantkit.graph.placement import place
from quantkit.graph.plan import Placement, QuantizedTensor
from quantkit.graph.regions import OUTSIDE
from quantkit.interfaces import Calibrator
from quantkit.observer import found_qparams
from quantkit.passes._scaling_makers import Maker, maker_of
from quantkit.passes._scaling_maths import Quantize, Seen, scaled_error, shared_scale
from quantkit.passes._scaling_seen import look
from quantkit.recipe import PlugIn, Recipe
from quantkit.spec import QuantSpec

aten = torch.ops.aten

#: From what was seen of a tensor and the largest magnitude of each column of the weights that read
#: it to the scales to try, each ``(channels,)`` and positive.
Candidates: TypeAlias = Callable[[Seen, Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Group:
    """The linear layers that read one tensor, and the grids that the plan has for them.

    Attributes:
        source: the node of the tensor.
        layers: all linear layers that read it, whose weights have no other reader.
        activation: of the tensor; ``None`` where it stays in float.
        weights: of each layer's weight; ``None`` where it stays in float.
    """

    source: fx.Node
    layers: tuple[fx.Node, ...]
    activation: QuantSpec | None
    weights: tuple[QuantSpec | None, ...]


def scale_groups(
    module: fx.GraphModule,
    recipe: Recipe,
    calls: Sequence[Call],
    candidates: Candidates,
    *,
    explicit: bool,
    least_gain: float,
) -> int:
    """Give each group the candidate with the least error of its results; returns how many moved.

    The error is that of the layers' results with the tensor and the weights on the grids that the
    recipe has for them, weights rounded to nearest. A group for which no candidate is better than
    no change stays as it is.

    Args:
        module: the captured graph.
        recipe: its scheme and placement.
        calls: the data.
        candidates: the scales to try.
        explicit: where what makes a tensor cannot take ``1 / s``, put a product before the layers,
            but not behind attention, whose two products TensorRT then no longer fuses.
        least_gain: the part of the error that such a product must save.
    """
    description = describe(module)
    plan = place(description.graph, recipe)
    names = {node: name for name, node in description.node_of_op.items()}
    groups = _groups(module, plan, names)
    seen, shapes = look(module, [group.source for group in groups], calls)
    changed = 0
    for group in groups:
        if group.source not in seen:
            continue
        # Where values are quantized for attention's product, a scale would move their grid.
        maker = maker_of(
            module, group.source, group.layers, shapes, products=group.activation is None
        )
        if maker is not None and _has_one_step(plan, names, maker):
            maker = None
        if maker is None and (not explicit or _behind_product(group.source)):
            continue
        least = 0.0 if maker is not None else least_gain
        scale = _best(module, recipe, group, seen[group.source], candidates, maker, least)
        if scale is not None:
            _apply(module, group, scale, maker)
            changed += 1
    if changed:
        module.graph.lint()
        module.recompile()
    return changed


def _groups(module: fx.GraphModule, plan: Placement, names: dict[fx.Node, str]) -> list[Group]:
    """The tensors that linear layers read of which at least one is quantized, in order."""
    by_source: dict[fx.Node, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node in names and _scales(module, node):
            by_source.setdefault(node.args[0], []).append(node)
    groups = []
    for source, layers in by_source.items():
        inputs = [_quantized_input(plan, names, layer) for layer in layers]
        weights = [plan.tensor(names[layer], 1) for layer in layers]
        if not any(inputs) and not any(weights):
            continue
        activation = next((t.spec for t in inputs if t is not None), None)
        specs = tuple(None if t is None else t.spec for t in weights)
        groups.append(Group(source, tuple(layers), activation, specs))
    return groups


def _quantized_input(
    plan: Placement, names: dict[fx.Node, str], layer: fx.Node
) -> QuantizedTensor | None:
    """What a layer reads, where it is quantized; the plan may have it before a reshape."""
    node = layer
    while True:
        if (found := plan.tensor(names[node], 0)) is not None:
            return found
        source = node.args[0]
        if not isinstance(source, fx.Node) or source not in names:
            return None
        if kind_of(source) is not Kind.MOVE:
            return None
        node = source


def _scales(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a linear layer whose columns can be scaled for it alone."""
    if kind_of(node) is not Kind.LINEAR:
        return False
    weight: Any = node.args[1]
    value = constant(module, weight)
    return value is not None and value.dim() == 2 and readers(module, weight) == 1


def _behind_product(source: fx.Node) -> bool:
    """Whether a tensor is what attention made, at most moved."""
    node: Any = source
    while kind_of(node) is Kind.MOVE and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return kind_of(node) is Kind.MATMUL


def _has_one_step(plan: Placement, names: dict[fx.Node, str], maker: Maker) -> bool:
    """Whether a maker is a layer whose rows share a step, so that scaling them moves their grid."""
    found = plan.tensor(names[maker.node], 1) if kind_of(maker.node) is Kind.LINEAR else None
    return found is not None and found.spec.granularity == "tensor"


def _best(
    module: fx.GraphModule,
    recipe: Recipe,
    group: Group,
    seen: Seen,
    candidates: Candidates,
    maker: Maker | None,
    least_gain: float,
) -> Tensor | None:
    """The scale with the least error; ``None`` where it saves too little."""
    weights = [_weight(module, layer) for layer in group.layers]
    on_grid = _quantizer(group.activation, recipe.calibrator)
    grids = [_quantizer(spec, _weights_by(spec, recipe)) for spec in group.weights]
    expected = [seen.rows @ weight.mT for weight in weights]
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)

    def error(scale: Tensor) -> float:
        return scaled_error(seen.rows, weights, expected, scale, on_grid, grids)

    least = error(torch.ones_like(columns)) * (1.0 - least_gain)
    best = None
    for scale in candidates(seen, columns):
        if maker is not None:
            scale = shared_scale(scale, maker.of, maker.channels)[maker.of]
        if (found := error(scale)) < least:
            least, best = found, scale
    return best


def _weights_by(spec: QuantSpec | None, recipe: Recipe) -> PlugIn:
    """The recipe's calibrator, or where steps are fine, and a search for each candidate slow, none.

    A threshold hardly moves on 256 codes, and the choice of a scale not at all.
    """
    fine = spec is not None and not spec.is_float and spec.qmax - spec.qmin >= 254
    return PlugIn(name="minmax") if fine else recipe.weight_calibrator


def _weight(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    value = constant(module, layer.args[1])
    assert value is not None  # groups_of has seen it
    return value.detach().float()


def _quantizer(spec: QuantSpec | None, choice: PlugIn) -> Quantize:
    """What puts a tensor on the grid that a calibrator finds for it."""
    if spec is None:
        return lambda x: x
    # Rows of any tensor: a channel of it is one of theirs.
    form = spec if spec.axis in {None, 0, 1} else replace(spec, axis=1)
    calibrator = plugins.find("calibrators", choice.name, Calibrator)(**choice.settings)

    def on_grid(x: Tensor) -> Tensor:
        qparams = found_qparams(x, form, calibrator)
        return numerics.fake_quantize_values(x, qparams.scale, qparams.zero_point, form)

    return on_grid


def _apply(module: fx.GraphModule, group: Group, scale: Tensor, maker: Maker | None) -> None:
    """Move the scale from the tensor into the weights."""
    for layer in group.layers:
        node: Any = layer.args[1]
        value = constant(module, node)
        assert value is not None
        scaled = (value.detach().double() * scale.double()).to(value.dtype)
        set_constant(module, str(node.target), scaled)
    if maker is not None:
        maker.divide(module, shared_scale(scale, maker.of, maker.channels))
    else:
        _divide_before(module, group, scale)


def _divide_before(module: fx.GraphModule, group: Group, scale: Tensor) -> None:
    """Let the layers read the tensor times ``1 / scale``; all others read it as it was."""
    first = group.layers[0]
    dtype = _dtype(group.source)
    path = _free_path(module, str(first.args[1].target))  # type: ignore[union-attr]
    owner, _, name = path.rpartition(".")
    reciprocal = (1.0 / scale.double()).to(dtype)
    (module.get_submodule(owner) if owner else module).register_buffer(name, reciprocal)
    with module.graph.inserting_before(first):
        factor = module.graph.get_attr(path)
        product = module.graph.call_function(aten.mul.Tensor, (group.source, factor))
    factor.meta["val"] = torch.empty_like(reciprocal, device="meta")
    like = group.source.meta
    product.meta.update({k: like[k] for k in ("val", "nn_module_stack", OUTSIDE) if k in like})
    for layer in group.layers:
        layer.replace_input_with(group.source, product)


def _dtype(node: fx.Node) -> torch.dtype:
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value.dtype


def _free_path(module: fx.GraphModule, weight: str) -> str:
    """Where a scale can lie beside a weight."""
    path = f"{weight.rpartition('.')[0]}.input_scale".lstrip(".")
    while has_constant(module, path):
        path += "_"
    return path
