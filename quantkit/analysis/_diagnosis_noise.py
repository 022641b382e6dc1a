"""Squared errors of layers' results, added up call by call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Noise:
    """The squared error of some tensors, the squares of what they should be, and mean errors.

    Example:
        >>> noise = Noise()
        >>> noise.update(torch.tensor([[1.1, 2.0]]), torch.tensor([[1.0, 2.0]]), axis=1)
        >>> round(noise.relative, 4), round(noise.mean_share, 4)
        (0.002, 1.0)
    """

    error: float = 0.0
    power: float = 0.0
    _means: Tensor | None = None
    _count: int = 0
    _mixed: bool = False

    @torch.no_grad()
    def update(self, found: Tensor, wanted: Tensor, axis: int | None = None) -> None:
        """Take in a result; what is no number in float does not count.

        Args:
            found: on the grids.
            wanted: in float, of the same shape.
            axis: the dimension that counts output channels, for mean errors.
        """
        if found.numel() == 0:
            return
        error, power = found.float() - wanted.float(), _energy(wanted)
        if not math.isfinite(power):
            told = wanted.isfinite()
            error, power = torch.where(told, error, 0.0), _energy(torch.where(told, wanted, 0.0))
        self.error += _energy(error)
        self.power += power
        if axis is None or self._mixed:
            return
        sums = error.movedim(axis, 0).flatten(1).sum(1, dtype=torch.float64)
        if self._means is not None and self._means.shape != sums.shape:
            self._mixed, self._means = True, None
            return
        self._means = sums if self._means is None else self._means + sums
        self._count += error.numel() // sums.numel()

    @property
    def relative(self) -> float:
        """Error over power; infinite where a result is no number, or all should be zero."""
        if math.isnan(self.error):
            return math.inf
        if self.power == 0.0:
            return math.inf if self.error > 0.0 else 0.0
        return self.error / self.power

    @property
    def mean_share(self) -> float:
        """Share of the error that is the mean error of each channel; 0 to 1."""
        if self._means is None or not 0.0 < self.error < math.inf:
            return 0.0
        return min(float(self._means.square().sum()) / self._count / self.error, 1.0)


def _energy(x: Tensor) -> float:
    return float(x.float().square().sum(dtype=torch.float64))
