"""The float weights of a model whose weights are being rounded, for passes that compare with them.

They lie on the nodes of the layers, so copies of the model have them and saved states do not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from quantkit.graph.batchnorm import layer_bias
from quantkit.graph.edit import constant, evaluate_constant
from quantkit.model import QuantizedModel

FLOAT = "quantkit_float"


class FloatLayer(NamedTuple):
    """A layer's parameters before rounding.

    Attributes:
        weight: of the layer's own shape.
        bias: ``None`` where there was none.
    """

    weight: Tensor
    bias: Tensor | None


def keep_float(model: QuantizedModel) -> None:
    """Keep copies of what rounding is about to change."""
    for layer in model.layers():
        if layer.weight is not None:
            weight = evaluate_constant(model.graph, layer.weight_source).detach().clone()
            bias = None if layer.bias is None else layer.bias.detach().clone()
            layer.node.meta[FLOAT] = FloatLayer(weight, bias)


def forget_float(model: QuantizedModel) -> None:
    """Let go of what `keep_float` has kept."""
    for node in model.graph.graph.nodes:
        node.meta.pop(FLOAT, None)


def float_constants(model: QuantizedModel) -> dict[fx.Node, Tensor] | None:
    """The float parameters by the nodes that read them; ``None`` where they were not kept.

    A bias that a layer has been given since is zero there.
    """
    found: dict[fx.Node, Tensor] = {}
    for layer in model.layers():
        if layer.weight is None:
            continue
        kept: FloatLayer | None = layer.node.meta.get(FLOAT)
        if kept is None:
            return None
        found[layer.weight_source] = kept.weight
        bias = layer_bias(layer.node)
        value = constant(model.graph, bias)
        if value is not None:
            found[bias] = torch.zeros_like(value) if kept.bias is None else kept.bias
    return found
