"""The 32-bit sums of an integer layer, and the biases that join them: pure arithmetic.

Integer runtimes hold a bias as a multiple of ``s_x * s_w``, the step of the sums it is added to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from quantkit.numerics import QParams
from quantkit.spec import QuantSpec


class Grid(Protocol):
    """What has a scale and a form: `QParams`, or a quantizer."""

    @property
    def scale(self) -> Tensor:
        """Of shape ``()``, or one a channel or group."""

    @property
    def spec(self) -> QuantSpec:
        """How the tensor maps to it."""


def bias_step(activation: Grid, weight: Grid, bias: Tensor) -> Tensor | None:
    """``s_x * s_w``, the step of the integer sums that a bias joins; one, or one a channel.

    ``None`` where sums are not of integers, or not of one step: FP8, activations per channel,
    weights per group, a grouped transposed convolution.

    Example:
        >>> zero, spec = torch.tensor(0, dtype=torch.int32), QuantSpec()
        >>> x = QParams(scale=torch.tensor(0.5), zero_point=zero, spec=spec)
        >>> w = QParams(scale=torch.tensor(0.25), zero_point=zero, spec=spec)
        >>> bias_step(x, w, torch.zeros(3))
        tensor(0.1250)
    """
    alike = weight.scale.numel() in {1, bias.numel()}
    one = activation.scale.numel() == 1 and weight.scale.dim() < 2
    if activation.spec.is_float or weight.spec.is_float or not (one and alike):
        return None
    return activation.scale * weight.scale


def room_for_bias(activation: Grid, weight: QParams, bias: Tensor) -> QParams:
    """The grid of a weight, coarser in channels whose bias would overflow 32 bits.

    That is a channel whose weights are next to nothing beside its bias (a dead channel of a
    depthwise convolution): a coarser weight changes less there than a bias cut short. ``weight``
    itself where there is room.

    Example:
        >>> zero, spec = torch.tensor(0, dtype=torch.int32), QuantSpec()
        >>> x = QParams(scale=torch.tensor(1.0), zero_point=zero, spec=spec)
        >>> w = QParams(scale=torch.tensor(1e-6), zero_point=zero, spec=spec)
        >>> room_for_bias(x, w, torch.tensor([2.0**20])).scale.item() == 2.0**-10
        True
    """
    if bias_step(activation, weight, bias) is None:
        return weight
    least = bias.detach().reshape(-1).abs().float() / (activation.scale * 2.0**30)
    if weight.scale.dim() == 0:
        least = least.max()
    if not bool((weight.scale < least).any()):
        return weight
    return replace(weight, scale=torch.maximum(weight.scale, least))
