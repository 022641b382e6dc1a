"""An exponential moving average of the range of each batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.interfaces import Calibrator
from quantkit.numerics import row_range


@dataclass(frozen=True, kw_only=True)
class MovingAverage(Calibrator):
    """``range += momentum * (range of the batch - range)``; the first batch is taken as it is.

    The usual choice for activations in training, where they drift (Jacob et al. 2018,
    arXiv:1712.05877, section 3.1; ``averaging_constant`` of torch.ao). The result lies between
    the narrowest and the widest batch, and a value that only one batch holds counts with weight
    ``momentum``, so the outliers of single batches are clipped. It remembers about
    ``1 / momentum`` batches and depends on their order and size: with fewer batches than that the
    first dominates, and for a fixed calibration set ``MinMax`` or a histogram is better founded.

    Without a momentum every batch counts the same, as in ``torch.nn.BatchNorm2d(momentum=None)``:
    the mean of the batches' ranges, whatever their order. A value that is the largest of its batch
    alone is then clipped, which costs less than the coarser grid it would force on all others.

    Attributes:
        momentum: weight of the newest batch, above 0 up to 1 (only the newest counts); ``None``
            for the plain mean over all batches.

    Example:
        >>> calibrator = MovingAverage(momentum=0.5)
        >>> state = calibrator.start(1)
        >>> calibrator.update(state, torch.tensor([[0.0, 4.0]]))
        >>> calibrator.update(state, torch.tensor([[-2.0, 2.0]]))
        >>> calibrator.range(state)
        (tensor([-1.]), tensor([3.]))
    """

    momentum: float | None = 0.01

    def __post_init__(self) -> None:
        if self.momentum is not None and not 0.0 < self.momentum <= 1.0:
            raise ValueError(f"momentum must be above 0 and at most 1, got {self.momentum}")

    def start(self, channels: int) -> dict[str, Tensor]:
        """An empty range, +inf to -inf of shape ``(channels,)``, and no batch seen."""
        return {
            "minimum": torch.full((channels,), torch.inf),
            "maximum": torch.full((channels,), -torch.inf),
            "batches": torch.zeros(()),
        }

    def update(self, state: Mapping[str, Tensor], samples: Tensor) -> None:
        """Move the range towards that of ``samples``; a NaN stays in it, so that it is reported."""
        minimum, maximum = state["minimum"], state["maximum"]
        first = minimum > maximum  # a tensor, not a bool: nothing waits for the device
        batches = state["batches"].add_(1)
        weight = 1.0 / batches if self.momentum is None else self.momentum
        for bound, newest in zip((minimum, maximum), row_range(samples), strict=True):
            moved = bound + weight * (newest - bound)
            bound.copy_(torch.where(first, newest, moved))

    def range(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The averaged range."""
        return state["minimum"].clone(), state["maximum"].clone()
