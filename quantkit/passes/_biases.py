"""Add to the biases of layers, and give one to those that have none."""

from __future__ import annotations

from torch import Tensor, fx

from quantkit.graph.batchnorm import bias_path, layer_bias, set_bias
from quantkit.graph.edit import add_constant, constant, readers, set_constant


def put_bias(module: fx.GraphModule, layer: fx.Node, weight: fx.Node, value: Tensor) -> None:
    """Let a layer have the bias ``value``, which nobody else reads.

    Args:
        module: captured, with quantizers or without.
        layer: the node.
        weight: the node that reads its weight; a new bias lies beside that.
        value: ``(channels,)``.
    """
    old = layer_bias(layer)
    if isinstance(old, fx.Node) and readers(module, old) == 1:
        set_constant(module, str(old.target), value)
        return
    path = bias_path(module, str(weight.target))
    set_bias(layer, add_constant(module, path, value, before=layer))


def bias_value(module: fx.GraphModule, layer: fx.Node, like: Tensor) -> Tensor:
    """The bias of a layer, float64; zeros for none."""
    value = constant(module, layer_bias(layer))
    return like.new_zeros(like.shape[0]).double() if value is None else value.detach().double()
