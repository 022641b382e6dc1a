"""Put images on the grid of their own pixels, so that quantizing the input costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.batches import Call
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import Description, describe, kind_of
from quantkit.graph.edit import Emitter, constant, readers, set_constant
from quantkit.graph.placement import place
from quantkit.graph.regions import OUTSIDE
from quantkit.interfaces import DataPass
from quantkit.passes._biases import bias_value, put_bias
from quantkit.passes._center_parts import pads, unpad
from quantkit.passes._center_write import free_path
from quantkit.passes._equalization import read_constant
from quantkit.passes._links import CONVOLUTIONS, groups_of
from quantkit.passes._pixels import MOST_VALUES, Pixels, factors, pixels_of
from quantkit.passes._scaling_makers import users
from quantkit.recipe import Recipe
from quantkit.spec import QuantSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class _Input:
    """An input of the model that one convolution reads, with what pads it before.

    Attributes:
        node: the placeholder.
        layer: the convolution.
        spec: of the input's grid.
    """

    node: fx.Node
    layer: fx.Node
    spec: QuantSpec


@dataclass(frozen=True, kw_only=True)
class AlignInput(DataPass):
    """``W x + b = (W / a) (a x + c) + b'`` with ``a x + c`` the integers that the image was made of.

    An image of 8 bits that was normalized, each channel by its own mean and deviation, lies on
    three grids of 256 steps; the one grid that a tensor has meets none of them, and the error of
    the first tensor can be the largest of the model. A product and a sum, one each a channel,
    bring back the integers. They run in the kernel that quantizes; zero padding goes before them,
    where the value zero is still zero. In float the result is the same to rounding error.

    It changes inputs of 8-bit asymmetric grids that one convolution reads, where calibration data
    show that each channel has at most 256 evenly spaced values, and one of them has all. Images
    that were resized in floating point have others, and stay as they are; so do those that one
    grid fits already, such as ``(x - 128) / 128``. The method is our own.

    Attributes:
        samples: of the calibration data, to see the values on.
    """  # noqa: E501

    samples: int = 128

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be 1 or more, got {self.samples}")

    def apply(self, graph: fx.GraphModule, recipe: Recipe, calls: Sequence[Call]) -> int:
        """Align; returns how many inputs."""
        description = describe(graph)
        changed = 0
        for found in _inputs(graph, description, recipe):
            pixels = _seen(graph, found.node, calls)
            fit = None if pixels is None else factors(pixels, found.spec.qmax - found.spec.qmin + 1)
            if fit is not None:
                factor, offset = fit
                _align(graph, found, factor, offset + found.spec.qmin)
                changed += 1
        if changed:
            graph.graph.eliminate_dead_code()
            graph.graph.lint()
            graph.recompile()
        return changed


def _inputs(graph: fx.GraphModule, description: Description, recipe: Recipe) -> list[_Input]:
    """The inputs that can be aligned, if their values allow it."""
    plan = place(description.graph, recipe)
    names = {node: name for name, node in description.node_of_op.items()}
    found = []
    for node in graph.graph.nodes:
        layer = _layer_behind(graph, node) if node.op == "placeholder" else None
        if layer is None:
            continue
        before: Any = layer.args[0]  # the plan may have the grid before a pad
        reading = [names[op] for op in (layer, before) if op in names]
        tensor = next((t for name in reading if (t := plan.tensor(name, 0))), None)
        if tensor is not None and _takes_pixels(tensor.spec):
            found.append(_Input(node, layer, tensor.spec))
    return found


def _takes_pixels(spec: QuantSpec) -> bool:
    return not (spec.is_float or spec.symmetric) and spec.granularity == "tensor"


def _layer_behind(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The convolution that alone reads an input of float32, directly or padded with zeros."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return None
    read = node
    reading = users(read)
    if len(reading) == 1 and kind_of(reading[0]) is Kind.PAD and _pads_space_with_zeros(reading[0]):
        read, reading = reading[0], users(reading[0])
    if len(reading) != 1 or reading[0].target not in CONVOLUTIONS or reading[0].args[0] is not read:
        return None
    weight: Any = reading[0].args[1]
    batched = value.dim() == len(weight.meta["val"].shape)
    own = constant(graph, weight) is not None and readers(graph, weight) == 1
    return reading[0] if own and batched else None


def _pads_space_with_zeros(node: fx.Node) -> bool:
    amounts: Any = node.args[1]
    fill = node.args[2:] or tuple(node.kwargs.values())
    zeros = all(value in {"constant", 0, None} for value in fill)
    return zeros and len(amounts) <= 2 * (node.meta["val"].dim() - 2)


def _seen(graph: fx.GraphModule, node: fx.Node, calls: Sequence[Call]) -> list[Pixels] | None:
    """The pixels of each channel of an input; ``None`` where a channel has none."""
    names = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]
    position = names.index(str(node.target))
    values: list[Tensor] = []
    for args, kwargs in calls:
        x = args[position] if position < len(args) else kwargs[names[position]]
        parts = [torch.unique(part) for part in x.detach().cpu().unbind(1)]
        values = parts if not values else [
            torch.unique(torch.cat(pair)) for pair in zip(values, parts, strict=True)
        ]  # fmt: skip
        if max(map(len, values)) > MOST_VALUES:
            return None
    found = [pixels_of(v) for v in values]
    known = [p for p in found if p is not None]
    return known if known and len(known) == len(found) else None


def _align(graph: fx.GraphModule, found: _Input, factor: Tensor, offset: Tensor) -> None:
    """Let the layer read ``factor x + offset``, with weights and bias that make up for it."""
    layer = found.layer
    source, weight_node = layer.args[0], layer.args[1]
    assert isinstance(source, fx.Node)
    assert isinstance(weight_node, fx.Node)
    weight = constant(graph, weight_node)
    assert weight is not None  # _layer_behind has seen it
    exact, groups = weight.detach().double(), groups_of(layer)
    inputs = exact.shape[1]
    columns = factor.to(exact.device).reshape(groups, 1, inputs, *[1] * (exact.dim() - 2))
    scaled = (exact.reshape(groups, -1, *exact.shape[1:]) / columns).reshape(exact.shape)
    moved = read_constant(scaled, offset.to(exact.device), groups)
    bias = bias_value(graph, layer, weight) - moved
    set_constant(graph, str(weight_node.target), scaled.to(weight.dtype))
    put_bias(graph, layer, weight_node, bias.to(weight.dtype))
    emit = Emitter(graph.graph, layer)
    amounts = pads(layer, exact.shape[2:])
    if any(amounts):
        source = emit(aten.constant_pad_nd.default, source, amounts, 0.0)
        unpad(layer, len(amounts) // 2)
    for operator, values, name in (
        (aten.mul.Tensor, factor, "input_factor"),
        (aten.add.Tensor, offset, "input_offset"),
    ):
        shaped = values.to(weight).reshape(1, -1, *[1] * (exact.dim() - 2))
        read = _buffer(graph, layer, name, shaped)
        with graph.graph.inserting_before(layer):
            node = graph.graph.call_function(operator, (source, read))
        keys = {"val", "nn_module_stack", OUTSIDE}
        node.meta.update({k: v for k, v in source.meta.items() if k in keys})
        source = node
    layer.update_arg(0, source)


def _buffer(graph: fx.GraphModule, layer: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A constant that does not train, and the node that reads it."""
    path = free_path(graph, layer, name)
    owner, _, name = path.rpartition(".")
    (graph.get_submodule(owner) if owner else graph).register_buffer(name, value)
    with graph.graph.inserting_before(layer):
        node = graph.graph.get_attr(path)
    node.meta["val"] = torch.empty_like(value, device="meta")
    return node
