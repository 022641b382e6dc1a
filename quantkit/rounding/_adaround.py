"""AdaRound: which way to round each weight, learned by gradient descent on a relaxation.

Each weight becomes ``s * clamp(floor(w / s) + h(v))`` with ``h(v)`` from 0 to 1, the rectified
sigmoid, and a term that drives every ``h`` to 0 or 1 (Nagel et al. 2020, arXiv:2004.10568,
equations 22 to 25).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: The sigmoid is stretched to this range and cut to [0, 1], so that 0 and 1 are reached (eq. 23).
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
#: How near to its other point a weight that was rounded before begins, at most.
UNDECIDED = 0.4


def rectified_sigmoid(v: Tensor) -> Tensor:
    """``clamp(sigmoid(v) * 1.2 - 0.1, 0, 1)`` (eq. 23).

    Example:
        >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return (torch.sigmoid(v) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)


def inverse(h: Tensor) -> Tensor:
    """The ``v`` whose `rectified_sigmoid` is ``h``; ``h`` is held within [0.001, 0.999].

    Example:
        >>> round(rectified_sigmoid(inverse(torch.tensor(0.3))).item(), 6)
        0.3
    """
    share = (h.clamp(1e-3, 1.0 - 1e-3) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    return torch.logit(share)


def regularizer(h: Tensor, beta: float) -> Tensor:
    """``sum(1 - |2 h - 1|^beta)``: zero where every ``h`` is 0 or 1 (eq. 24).

    Example:
        >>> regularizer(torch.tensor([0.0, 1.0]), 2.0).item()
        0.0
        >>> regularizer(torch.tensor([0.5]), 2.0).item()
        1.0
    """
    return (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


def annealed(step: int, steps: int, *, warm: float, high: float = 20.0, low: float = 2.0) -> float:
    """The exponent beta: none (0) while warm, then from ``high`` to ``low`` along a cosine.

    With a high beta only what is nearly decided is pushed; later the undecided are as well.

    Example:
        >>> annealed(0, 100, warm=0.2), annealed(20, 100, warm=0.2), annealed(100, 100, warm=0.2)
        (0.0, 20.0, 2.0)
    """
    begin = warm * steps
    if step < begin:
        return 0.0
    done = (step - begin) / max(steps - begin, 1.0)
    return low + 0.5 * (high - low) * (1.0 + math.cos(math.pi * done))


class SoftWeight:
    """A weight between two neighbouring points of its grid, for each element.

    Attributes:
        v: what is learned, of the shape of the weight.

    Args:
        weight: float32.
        step: of the grid, spread to the same shape.
        zero_point: the same.
        low: the least integer of the grid.
        high: the largest.
        begin: values on the grid that were chosen before: the other point is the neighbour towards
            ``weight``, and ``h`` begins no nearer to that than `UNDECIDED`.
    """

    def __init__(
        self,
        weight: Tensor,
        step: Tensor,
        zero_point: Tensor,
        low: int,
        high: int,
        *,
        begin: Tensor | None = None,
    ) -> None:
        self._step, self._zero_point = step, zero_point
        self._low, self._high = low, high
        steps = weight / step
        if begin is None:
            self._floor = steps.floor()
            h = steps - self._floor
        else:
            chosen = (begin / step).round()
            upper = chosen > steps  # the chosen one is the upper of the two
            self._floor = torch.where(upper, chosen - 1.0, chosen)
            h = (steps - self._floor).clamp(0.0, 1.0)
            h = torch.where(upper, h.clamp(min=1.0 - UNDECIDED), h.clamp(max=UNDECIDED))
        self.v = inverse(h).requires_grad_()

    @property
    def h(self) -> Tensor:
        """How far each weight is between its two points, 0 to 1."""
        return rectified_sigmoid(self.v)

    def soft(self, h: Tensor) -> Tensor:
        """The weight of some ``h``, with its gradient."""
        return self._values(self._floor + h)

    def integers(self) -> Tensor:
        """The integers that were decided for, as floats."""
        decided = self._floor + (self.h.detach() >= 0.5)
        return (decided + self._zero_point).clamp(self._low, self._high)

    def settled(self) -> Tensor:
        """The values of `integers`."""
        return (self.integers() - self._zero_point) * self._step

    def snapped(self, weight: Tensor) -> Tensor:
        """The nearest values on the grid to ``weight``."""
        return self._values((weight / self._step).round())

    def _values(self, steps: Tensor) -> Tensor:
        held = (steps + self._zero_point).clamp(self._low, self._high)
        return (held - self._zero_point) * self._step
