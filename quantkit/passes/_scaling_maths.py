"""Scales between the channels of a tensor and the weights that read it: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

#: Puts a tensor on its grid; the identity where it stays in float.
Quantize: TypeAlias = Callable[[Tensor], Tensor]

#: Below it a magnitude counts as none.
_NOTHING = 1e-8


@dataclass(frozen=True, eq=False)
class Seen:
    """What data show of a tensor whose channels lie on its last dimension.

    Attributes:
        rows: some of its vectors, ``(count, channels)``.
        largest: the largest magnitude of each channel over all data, ``(channels,)``.
        mean: the mean magnitude, of the same shape.
    """

    rows: Tensor
    largest: Tensor
    mean: Tensor


def smooth_scale(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``max|X_j|^a / max|W_j|^(1 - a)``: Xiao et al. 2022, arXiv:2211.10438, equation 4.

    Args:
        activations: the largest magnitude of each channel, ``(channels,)``.
        weights: the largest magnitude of each column of weights, of the same shape.
        alpha: from 0 to 1: how much of the difference between channels the weights take.

    Example:
        >>> smooth_scale(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5).tolist()
        [4.0, 1.0]
    """
    alive = (activations > _NOTHING) & (weights > _NOTHING)
    scale = activations.clamp(min=_NOTHING) ** alpha / weights.clamp(min=_NOTHING) ** (1 - alpha)
    return _of_alive(scale, alive)


def awq_scale(activations: Tensor, alpha: float) -> Tensor:
    """``mean|X_j|^a``, divided by the square root of the largest times the smallest.

    Lin et al. 2023, arXiv:2306.00978, equation 5; normalized as in the authors' code, so that the
    scales lie around 1.

    Args:
        activations: the mean magnitude of each channel, ``(channels,)``.
        alpha: from 0 to 1.

    Example:
        >>> awq_scale(torch.tensor([16.0, 1.0]), 0.5).tolist()
        [2.0, 0.5]
    """
    alive = activations > _NOTHING
    scale = _of_alive(activations.clamp(min=_NOTHING) ** alpha, alive)
    return scale / (scale.max() * scale.min()).sqrt()


def _of_alive(scale: Tensor, alive: Tensor) -> Tensor:
    """A channel that is silent, or that nobody reads, gets the middle scale of the others."""
    if not bool(alive.any()):
        return torch.ones_like(scale)
    return torch.where(alive, scale, scale[alive].median())


def shared_scale(scale: Tensor, of: Tensor, count: int) -> Tensor:
    """The scales of ``count`` channels that others are copies of: the largest of the copies'.

    Args:
        scale: of the copies, ``(channels,)``.
        of: of each copy the channel that it is one of, ``(channels,)`` int64.
        count: how many channels there are; those without a copy get 1.

    Example:
        >>> shared_scale(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 2]), 4).tolist()
        [3.0, 1.0, 2.0, 1.0]
    """
    found = torch.zeros(count, dtype=scale.dtype, device=scale.device)
    found = found.scatter_reduce(0, of.to(scale.device), scale, "amax")
    return torch.where(found > 0, found, torch.ones_like(found))


def scaled_error(
    rows: Tensor,
    weights: Sequence[Tensor],
    expected: Sequence[Tensor],
    scale: Tensor,
    on_grid: Quantize,
    weights_on_grid: Sequence[Quantize],
) -> float:
    """The squared error of ``Q(x / s) Q(W s)ᵀ`` against ``x Wᵀ``, over rows and layers.

    Args:
        rows: ``x``, ``(count, channels)``.
        weights: ``W`` of each layer, ``(outputs, channels)``.
        expected: ``x Wᵀ`` of each layer, ``(count, outputs)``.
        scale: ``s``, ``(channels,)``.
        on_grid: what puts ``x / s`` on its grid.
        weights_on_grid: what puts each weight on its grid.

    Example:
        >>> x, w, one = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.6, 1.0]]), torch.ones(2)
        >>> round(scaled_error(x, [w], [x @ w.mT], one, lambda x: x, [torch.round]), 3)
        0.16
    """
    read = on_grid(rows / scale)
    error = 0.0
    for weight, result, quantize in zip(weights, expected, weights_on_grid, strict=True):
        found = read @ quantize(weight * scale).mT
        error += float((found - result).square().sum(dtype=torch.float64))
    return error
