"""Make of a model that has trained what is deployed: grids, batch-norm and biases for good."""

from __future__ import annotations

import torch

from quantkit import numerics, sums
from quantkit.graph.batchnorm import fold_kept, kept
from quantkit.model import Layer, QuantizedModel, copied


def settle(model: QuantizedModel) -> None:
    """End training: the model then computes, in simulation, what will be deployed.

    Observers stop, learned steps become grids, batch-norm that was kept is folded, and biases are
    put on the grid of the 32-bit sums that they join. The model is in evaluation mode afterwards,
    and its parameters are others where batch-norm was kept. Doing it again changes nothing.

    Example:
        >>> import quantkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> qmodel = quantkit.quantize(model, "int8_qat", calibration=[torch.randn(8, 32)])
        >>> quantkit.train_quantizers(qmodel)
        >>> settle(qmodel)
        >>> any(q.observing for q in qmodel.quantizers.values())
        False
    """
    for quantizer in model.quantizers.values():
        quantizer.observe(False)
        quantizer.settle()
    fold_kept(model.graph)
    model.eval()
    for layer in model.layers():
        if layer.weight is not None and layer.weight.calibrated:
            make_room_for_bias(layer)
            round_bias(layer)


def settled(model: QuantizedModel) -> QuantizedModel:
    """The model itself where it has nothing to settle but biases, else a copy that is settled."""
    if not kept(model.graph) and not any(q.learning for q in model.quantizers.values()):
        return model
    copy = copied(model)
    settle(copy)
    return copy


def make_room_for_bias(layer: Layer) -> None:
    """Raise the scale of channels whose bias would overflow 32 bits."""
    if layer.bias is None or layer.activation is None or layer.weight is None:
        return
    if layer.activation.calibrated:
        roomy = sums.room_for_bias(layer.activation, layer.weight.qparams, layer.bias)
        layer.weight.set_qparams(roomy)


def round_bias(layer: Layer) -> None:
    """Put the bias on the grid of the sums that it joins, where there is one."""
    if layer.bias is None or (step := layer.bias_step) is None:
        return
    if layer.activation is None or not layer.activation.calibrated:
        return
    with torch.no_grad():
        layer.bias.copy_(numerics.round_to_multiple(layer.bias, step))
