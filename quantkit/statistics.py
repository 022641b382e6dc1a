"""What calibration keeps of the tensors it sees: the range, an average of ranges, a histogram.

Each is a frozen value; what it has seen is a mapping of tensors of fixed shape that the observer
keeps as buffers. All merge, so data may be seen in parts: by several processes, in several runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit import histogram
from quantkit.interfaces import Reduce, Statistic


@dataclass(frozen=True, kw_only=True)
class Range(Statistic):
    """The smallest and the largest value: ``minimum`` and ``maximum``.

    Exact, whatever the order and the batches. A NaN stays in it, so that it is reported.
    """

    def start(self, channels: int) -> dict[str, Tensor]:
        """An empty range: +inf and -inf, each of shape ``(channels,)``."""
        return {
            "minimum": torch.full((channels,), torch.inf),
            "maximum": torch.full((channels,), -torch.inf),
        }

    def update(
        self, state: Mapping[str, Tensor], samples: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Widen the range."""
        state["minimum"].copy_(torch.minimum(state["minimum"], low))
        state["maximum"].copy_(torch.maximum(state["maximum"], high))

    def merge(self, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        """Exactly the range of all samples."""
        self.update(state, other["minimum"], other["minimum"], other["maximum"])

    def reduce(self, state: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Exactly the range of all samples."""
        # Not every backend keeps a NaN in a minimum; an infinity is reported as well.
        state["minimum"].nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        state["maximum"].nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        reduce(state["minimum"], "min")
        reduce(state["maximum"], "max")


@dataclass(frozen=True, kw_only=True)
class Average(Statistic):
    """The average of the ranges of all batches: ``average_minimum`` and ``average_maximum``.

    Attributes:
        momentum: ``average += momentum * (range of the batch - average)``, which depends on the
            order of batches; ``None`` for the plain mean, which does not (to the rounding of
            float64). Both depend on what a batch is: calibration runs 8 samples at a time.
    """

    momentum: float | None = None

    def __post_init__(self) -> None:
        if self.momentum is not None and not 0.0 < self.momentum <= 1.0:
            raise ValueError(f"momentum must be above 0 and at most 1, got {self.momentum}")

    def start(self, channels: int) -> dict[str, Tensor]:
        """An empty range, and no batch seen."""
        dtype = torch.float64 if self.momentum is None else torch.float32
        return {
            "average_minimum": torch.full((channels,), torch.inf, dtype=dtype),
            "average_maximum": torch.full((channels,), -torch.inf, dtype=dtype),
            # Not float64: torch.compile loses what is written to such a scalar (torch 2.13).
            "batches": torch.zeros((), dtype=torch.int64),
        }

    def update(
        self, state: Mapping[str, Tensor], samples: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Move the average towards the range of this batch; a NaN stays in it."""
        batches = state["batches"].add_(1)
        if self.momentum is not None:
            self._move(state, low, high, self.momentum)
        elif batches.device.type == "cpu" and not torch.compiler.is_compiling():
            self._move_mean(state, low, high, int(batches))
        else:
            self._move(state, low, high, 1.0 / batches.double())

    def merge(self, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        """The mean by numbers of batches; of moving averages this is no other order's result,
        but lies between the two.
        """  # noqa: D205
        batches = state["batches"].add_(other["batches"])
        weight = other["batches"].double() / batches.clamp(min=1)
        self._move(state, other["average_minimum"], other["average_maximum"], weight)

    def reduce(self, state: Mapping[str, Tensor], reduce: Reduce) -> None:
        """As `merge`, of all processes."""
        own = state["batches"].clone()
        reduce(state["batches"], "sum")
        for bound in (state["average_minimum"], state["average_maximum"]):
            total = torch.where(own > 0, bound.double() * own, 0.0)
            reduce(total, "sum")
            empty = state["batches"] == 0
            bound.copy_(torch.where(empty, bound, total / state["batches"].clamp(min=1)))

    @staticmethod
    def _move_mean(state: Mapping[str, Tensor], low: Tensor, high: Tensor, batches: int) -> None:
        """As `_move`, in few operations: this runs once for each tensor and batch."""
        for name, newest in (("average_minimum", low), ("average_maximum", high)):
            if batches == 1:
                state[name].copy_(newest)
            else:
                state[name].lerp_(newest.double(), 1.0 / batches)

    def _move(
        self, state: Mapping[str, Tensor], low: Tensor, high: Tensor, weight: Tensor | float
    ) -> None:
        minimum, maximum = state["average_minimum"], state["average_maximum"]
        first = minimum > maximum  # a tensor, not a bool: nothing waits for the device
        skip = low > high  # an empty one that is merged
        for bound, newest in zip((minimum, maximum), (low, high), strict=True):
            moved = torch.where(first, newest, bound + weight * (newest - bound))
            bound.copy_(torch.where(skip, bound, moved))


@dataclass(frozen=True, kw_only=True)
class Histogram(Statistic):
    """Counts in bins of equal width, see `quantkit.histogram`: ``counts`` and ``exponent``.

    Exact whatever the order and the batches; two merge into exactly the one of all samples.

    Attributes:
        half: bins a side, a power of two; 16 bytes each.
    """

    half: int = 4096

    def __post_init__(self) -> None:
        histogram.check_bins(self.half)

    def start(self, channels: int) -> dict[str, Tensor]:
        """No counts, in bins of the finest width."""
        return {
            "counts": torch.zeros(channels, 2 * self.half, dtype=torch.int64),
            "exponent": torch.full((channels,), histogram.FINEST, dtype=torch.int32),
        }

    def update(
        self, state: Mapping[str, Tensor], samples: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Count the samples."""
        amax = torch.maximum(low.abs(), high.abs())
        histogram.add_(state["counts"], state["exponent"], samples, amax)

    def merge(self, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        """Exactly the counts of all samples."""
        target = torch.maximum(state["exponent"], other["exponent"])
        joined = histogram.coarsen(other["counts"], other["exponent"], target)
        self._widen(state, target)
        state["counts"].add_(joined)

    def reduce(self, state: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Exactly the counts of all samples."""
        target = state["exponent"].clone()
        reduce(target, "max")
        self._widen(state, target)
        reduce(state["counts"], "sum")

    @staticmethod
    def _widen(state: Mapping[str, Tensor], target: Tensor) -> None:
        state["counts"].copy_(histogram.coarsen(state["counts"], state["exponent"], target))
        state["exponent"].copy_(target)
