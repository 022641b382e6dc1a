"""The mean of a normal variable behind a clip: pure arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clipped_mean(
    mean: Tensor, std: Tensor, low: float | None = None, high: Tensor | None = None
) -> Tensor:
    """``E[min(max(z, low), high)]`` of normal ``z``, float64.

    Nagel et al. 2019 (arXiv:1906.04721), appendix C; here as
    ``low + E[(z - low)+] - E[(z - high)+]``, with `positive_part`.

    Args:
        mean: ``(channels,)``, as all that follow.
        std: deviations, not below zero.
        low: the lower limit; ``None`` for none.
        high: the upper ones, not below ``low``; ``None`` for none.

    Example:
        >>> zero, one = torch.tensor([0.0]), torch.tensor([1.0])
        >>> round(clipped_mean(zero, one, 0.0).item(), 4)  # 1 / sqrt(2 pi)
        0.3989
    """
    found = mean.double() if low is None else low + positive_part(mean.double() - low, std)
    return found if high is None else found - positive_part(mean.double() - high.double(), std)


def positive_part(mean: Tensor, std: Tensor) -> Tensor:
    """``E[max(z, 0)]`` of normal ``z``: ``std * (p(t) + t P(t))``, ``t = mean / std``; float64.

    ``p`` and ``P`` are the density and the distribution of the standard normal variable. Where
    ``std`` is 0 it is ``max(mean, 0)``.
    """
    mean, std = mean.double(), std.double()
    safe = std.clamp(min=1e-300)
    t = (mean / safe).clamp(-1e3, 1e3)
    density = torch.exp(-0.5 * t * t) / math.sqrt(2.0 * math.pi)
    spread = safe * (density + t * torch.special.ndtr(t))
    return torch.where(t.abs() < 40.0, spread, mean.clamp(min=0.0))
