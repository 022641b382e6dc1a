"""Biases of layers that read or make shifted tensors, on the grids of the sums that they join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from quantkit import sums
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.edit import add_constant, evaluate_constant
from quantkit.model import Layer, QuantizedModel
from quantkit.passes._center_parts import input_sums
from quantkit.passes._center_walk import Shifts
from quantkit.passes._center_write import add_behind, bias_of, free_path, set_layer_bias
from quantkit.reconstruction.layers import set_weight
from quantkit.settling import round_bias


def write_biases(model: QuantizedModel, found: Shifts) -> None:
    """Give every layer that reads or makes a shifted tensor the bias that makes up for it."""
    changed = [node for node in model.graph.graph.nodes if node in found.made or node in found.read]
    # All weights first: layers may share one, and its sums must be those of its last grid.
    for node in changed:
        if node in found.made:
            set_layer_bias(model.graph, node, _with_made(model.graph, node, found.made[node]))
    for layer in model.layers():
        if layer.node in found.made or layer.node in found.read:
            _settle_weight(layer)
    for node in changed:
        if node in found.read:
            _make_up(model.graph, node, found.read[node])
    for node in found.bordered:
        _make_up_borders(model.graph, node, found.read[node])
    for layer in model.layers():
        if layer.node in found.made or layer.node in found.read:
            round_bias(layer)


def _with_made(module: fx.GraphModule, node: fx.Node, made: float) -> Tensor:
    """The bias of a layer that puts out that much less."""
    bias, weight = bias_of(module, node), _weight(module, node)
    exact = (
        weight.new_zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.double()
    )
    return (exact.detach() - made).to(weight.dtype)


def _settle_weight(layer: Layer) -> None:
    """Make room for the bias, and let the weight be what its quantizer makes of it.

    A shift of the input is made up for with the weights that are deployed; with the quantizers off
    the model is right only where it has the same ones.
    """
    if layer.weight is None or not layer.weight.calibrated:
        return
    if layer.bias is not None and layer.activation is not None and layer.activation.calibrated:
        roomy = sums.room_for_bias(layer.activation, layer.weight.qparams, layer.bias)
        layer.weight.set_qparams(roomy)
    if layer.weight_value is not None:
        with torch.no_grad():
            set_weight(layer, layer.weight(layer.weight_value))


def _make_up(module: fx.GraphModule, node: fx.Node, offset: float) -> None:
    """Add what a layer loses as its input lacks ``offset``."""
    weight = _weight(module, node)
    lost = offset * input_sums(kind_of(node), weight)
    if kind_of(node) is Kind.MATMUL:
        path = free_path(module, node, "centering")
        add_behind(
            module, node, add_constant(module, path, lost.to(weight.dtype), before=node.next)
        )
        return
    bias = bias_of(module, node)
    whole = lost if bias is None else bias.detach().double() + lost
    set_layer_bias(module, node, whole.to(weight.dtype))


def _make_up_borders(module: fx.GraphModule, node: fx.Node, offset: float) -> None:
    """Take back what a bias adds too much where a convolution reads zeros around its input.

    The constant has the size of one image of its result; it is 0 but at the borders.
    """
    weight, source = _weight(module, node).double(), node.all_input_nodes[0]
    inside = weight.new_full((1, *source.meta["val"].shape[1:]), offset)
    convolve: Any = node.target
    whole = offset * input_sums(Kind.CONV, weight)
    seen = convolve(inside, weight, None, *node.args[3:], **_others(node))
    borders = seen - whole.view(-1, *[1] * (weight.dim() - 2))
    value = borders.to(_weight(module, node).dtype)
    path = free_path(module, node, "borders")
    add_behind(module, node, add_constant(module, path, value, before=node.next))


def _others(node: fx.Node) -> dict[str, Any]:
    return {key: value for key, value in node.kwargs.items() if key != "bias"}


def _weight(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The weight of a layer as it computes with it."""
    source: Any = node.args[1]
    if source.op == "call_module":
        quantizer = module.get_submodule(str(source.target))
        with torch.no_grad():
            value: Tensor = quantizer(evaluate_constant(module, source.args[0]))
        return value
    return evaluate_constant(module, source)
