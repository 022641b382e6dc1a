"""The range of everything seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.interfaces import Calibrator
from quantkit.numerics import row_range


@dataclass(frozen=True, kw_only=True)
class MinMax(Calibrator):
    """The smallest and the largest value of all samples.

    Nothing seen is clipped, so one outlier widens the step for all: right for weights, and for
    activations without heavy tails. Independent of the order and size of batches.

    Example:
        >>> calibrator = MinMax()
        >>> state = calibrator.start(1)
        >>> calibrator.update(state, torch.tensor([[-1.0, 5.0]]))
        >>> calibrator.range(state)
        (tensor([-1.]), tensor([5.]))
    """

    def start(self, channels: int) -> dict[str, Tensor]:
        """An empty range: ``minimum`` +inf and ``maximum`` -inf, each of shape ``(channels,)``."""
        return {
            "minimum": torch.full((channels,), torch.inf),
            "maximum": torch.full((channels,), -torch.inf),
        }

    def update(self, state: Mapping[str, Tensor], samples: Tensor) -> None:
        """Widen the range; a NaN stays in it, so that it is reported."""
        low, high = row_range(samples)
        state["minimum"].copy_(torch.minimum(state["minimum"], low))
        state["maximum"].copy_(torch.maximum(state["maximum"], high))

    def range(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The range of all samples."""
        return state["minimum"].clone(), state["maximum"].clone()
