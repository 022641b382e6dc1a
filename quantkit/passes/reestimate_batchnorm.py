"""Give each layer's results behind the grids the mean and deviation that they had in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.batches import Call
from quantkit.graph.batchnorm import OUTPUT_AXIS
from quantkit.graph.edit import readers
from quantkit.interfaces import ModelPass
from quantkit.model import Layer, QuantizedModel
from quantkit.passes._layer_walk import Seen, on_sums_grid, store_bias, walk
from quantkit.passes._moments import matching_factor
from quantkit.reconstruction.layers import set_weight


@dataclass(frozen=True, kw_only=True)
class ReestimateBatchNorm(ModelPass):
    """``ŷ' = a ŷ + d`` with the float result's mean and deviation, one ``a`` and ``d`` a channel.

    What re-estimating batch-norm behind quantized weights does (Nagel et al. 2022,
    arXiv:2203.11086, section 4.1), for layers that have taken theirs in: ``a`` goes into the
    scale of the channel's weights, whose integers stay as they are, ``d`` into the bias. Weights
    with one scale a tensor have room for ``d`` alone. Layer by layer, behind the corrected ones; a
    channel keeps of ``a`` and ``d``, or ``d`` alone, what makes its mean squared error on the
    calibration data least, or stays as it was. Name it before `center`.

    Attributes:
        fit: ``moments``: ``a = std(y) / std(ŷ)``. ``least_squares``: ``a = cov(y, ŷ) / var(ŷ)``,
            which makes the layer's own error least and its results a little smaller.
        samples: of the calibration data.
    """

    reads_float_weights = True

    fit: Literal["moments", "least_squares"] = "moments"
    samples: int = 128

    def __post_init__(self) -> None:
        if self.fit not in {"moments", "least_squares"}:
            raise ValueError(f"fit must be moments or least_squares, got {self.fit!r}")
        if self.samples < 1:
            raise ValueError(f"samples must be 1 or more, got {self.samples}")

    def apply(self, model: QuantizedModel, calls: Sequence[Call]) -> int:
        """Re-estimate; returns for how many layers.

        Raises:
            DataError: there are no calls.
            RecipeError: the model does not keep its float weights.
        """
        changed = 0
        for seen in walk(model, calls, "reestimate_batchnorm"):
            changed += self._fit(model, seen)
        if changed:
            model.graph.recompile()
        return changed

    def _fit(self, model: QuantizedModel, seen: Seen) -> bool:
        """Change one layer; returns whether anything was better."""
        moments, layer = seen.moments, seen.layer
        one = torch.ones_like(moments.mean_f)
        factor, bias = one, seen.bias
        least = moments.error(one, 0.0 * one)
        tried = [one]
        if _has_scales(model, layer, one.numel()):
            tried.append(matching_factor(moments, least_squares=self.fit == "least_squares"))
        for a in tried:
            # ŷ without its bias grows by a, and then gets the bias that makes the means equal.
            wanted = on_sums_grid(layer, _bias_for(seen, a), a)
            error = moments.error(a, wanted - a * seen.bias)
            better = error < least  # NaN, where sums have no room, is not
            factor, bias = torch.where(better, a, factor), torch.where(better, wanted, bias)
            least = torch.where(better, error, least)
        if bool((factor == 1).all() and (bias == seen.bias).all()):
            return False
        if bool((factor != 1).any()):
            _scale(layer, factor)
        # The step of the sums has moved with the scale, by rounding a little differently. A bias
        # that fills its sums to the brim (of a dead channel) stays as it is.
        rounded = on_sums_grid(layer, bias)
        store_bias(model, layer, torch.where(rounded.isnan(), bias, rounded))
        return True


def _bias_for(seen: Seen, factor: Tensor) -> Tensor:
    """The bias with which the means are equal."""
    return factor * seen.bias + seen.moments.mean_f - factor * seen.moments.mean_q


def _has_scales(model: QuantizedModel, layer: Layer, channels: int) -> bool:
    """Whether each output channel has a scale of its own, that nothing else uses."""
    if layer.weight is None or layer.weight.spec.axis is None:
        return False
    quantizer = layer.node.args[1]
    alone = len(quantizer.users) == 1 and readers(model.graph, layer.weight_source) == 1  # type: ignore[union-attr]
    by_channel = layer.weight.spec.axis == OUTPUT_AXIS[layer.node.target]
    return alone and by_channel and layer.weight.scale.numel() == channels


def _scale(layer: Layer, factor: Tensor) -> None:
    """Scale the grid of a layer's weights; their integers stay."""
    assert layer.weight is not None
    assert layer.weight_value is not None
    old = layer.weight.qparams
    new = replace(old, scale=(old.scale.double() * factor).float())
    integers = numerics.quantize(layer.weight_value.detach(), old)
    layer.weight.set_qparams(new)
    set_weight(layer, numerics.dequantize(integers, new).to(layer.weight_value.dtype))
