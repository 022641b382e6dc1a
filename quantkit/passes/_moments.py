"""What a layer puts out in float and on the grids, as moments: sums in, corrections out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's float results ``f`` and quantized ones ``q``, one each a channel.

    Attributes:
        mean_f: ``E[f]``, float64, as all that follow.
        mean_q: ``E[q]``.
        var_f: ``E[f²] - E[f]²``.
        var_q: the same of ``q``.
        cov: ``E[f q] - E[f] E[q]``.
    """

    mean_f: Tensor
    mean_q: Tensor
    var_f: Tensor
    var_q: Tensor
    cov: Tensor

    def error(self, factor: Tensor, shift: Tensor) -> Tensor:
        """``E (f - (factor q + shift))²``."""
        spread = self.var_f - 2.0 * factor * self.cov + factor * factor * self.var_q
        return spread.clamp(min=0.0) + (self.mean_f - factor * self.mean_q - shift) ** 2


class Sums:
    """Gathers `Moments`, call by call, of the values that what follows can tell apart.

    Args:
        window: ``(low, high)``, what follows clips at, ``()`` or ``(channels,)`` each: pairs
            that are both below or both above come out as the same. ``None`` for no clip.
    """

    def __init__(self, window: tuple[Tensor, Tensor] | None = None) -> None:
        self._window = None if window is None else tuple(w.reshape(-1, 1) for w in window)
        self._sums: Tensor | None = None
        self._origin: Tensor | None = None

    def add(self, floating: Tensor, quantized: Tensor, axis: int) -> None:
        """Take in two results of one shape, whose dimension ``axis`` counts channels."""
        f = floating.detach().movedim(axis, 0).flatten(1).float()
        q = quantized.detach().movedim(axis, 0).flatten(1).float()
        if self._origin is None:  # differences of large sums would lose small variances
            self._origin = f.mean(1, keepdim=True)
        told = torch.ones_like(f) if self._window is None else _told_apart(f, q, *self._window)
        f, q = (f - self._origin).mul_(told), (q - self._origin).mul_(told)
        parts = torch.stack([_total(x) for x in (told, f, q, f * f, q * q, f * q)])
        self._sums = parts if self._sums is None else self._sums + parts

    def moments(self) -> Moments:
        """What was seen; of a channel whose values were never told apart, means of nothing."""
        assert self._sums is not None
        assert self._origin is not None
        f, q, ff, qq, fq = self._sums[1:] / self._sums[0].clamp(min=1.0)
        origin = self._origin[:, 0].double()
        var_f, var_q = (ff - f * f).clamp(min=0.0), (qq - q * q).clamp(min=0.0)
        return Moments(origin + f, origin + q, var_f, var_q, fq - f * q)


def _told_apart(f: Tensor, q: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """1 where a clip leaves a difference between the two, else 0."""
    low, high = low.to(f.dtype), high.to(f.dtype)
    same = (torch.maximum(f, q) <= low) | (torch.minimum(f, q) >= high)
    return (~same).to(f.dtype)


def _total(x: Tensor) -> Tensor:
    return x.sum(1, dtype=torch.float64)


def matching_factor(moments: Moments, *, least_squares: bool, bound: float = 2.0) -> Tensor:
    """The factor on ``q`` that fits it to ``f``, between ``1 / bound`` and ``bound``.

    ``std(f) / std(q)``, which gives both one deviation, or ``cov / var(q)``, which makes the error
    least. 1 for what does not vary.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> matching_factor(Moments(one, one, 4 * one, one, one), least_squares=False).item()
        2.0
    """
    alive = (moments.var_q > 1e-12) & (moments.var_f > 1e-12)
    below = torch.where(alive, moments.var_q, torch.ones_like(moments.var_q))
    factor = moments.cov / below if least_squares else (moments.var_f / below).sqrt()
    return torch.where(alive, factor.clamp(1.0 / bound, bound), torch.ones_like(factor))
