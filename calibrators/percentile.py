"""The range of nearly everything seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit import histogram
from quantkit.interfaces import Calibrator, Statistic
from quantkit.spec import QuantSpec
from quantkit.statistics import Histogram
from quantkit.thresholds import searched, within


@dataclass(frozen=True, kw_only=True)
class Percentile(Calibrator):
    """The range that holds ``percentile`` percent of all samples; the rest saturates.

    A symmetric grid covers that percentile of ``|x|``; an asymmetric one leaves out half of the
    rest at either end (McKinstry et al. 2018, arXiv:1809.04191, section 3.1). A tensor of so many
    zeros that the percentile is zero keeps its whole range.

    Attributes:
        percentile: above 50, up to 100: 99.99 leaves out one sample in 10,000.
        half: bins a side of the histogram that is read.

    Example:
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(), Percentile(percentile=90.0))
        >>> _ = observer(torch.arange(101.0))
        >>> round(observer.range()[1].item())
        90
    """

    percentile: float = 99.99
    half: int = Histogram.half

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be above 50, at most 100, got {self.percentile}")
        histogram.check_bins(self.half)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """A histogram."""
        return (Histogram(half=self.half),)

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The range of the percentile."""
        return searched(state, lambda rows: self._range(rows, spec))

    def _range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        counts, width = state["counts"], histogram.widths(state["exponent"])
        total = counts.sum(dim=1, dtype=torch.float64)
        outside = total * (1.0 - self.percentile / 100.0)
        if spec.symmetric:
            below = above = _quantile(histogram.magnitudes(counts), outside) * width
        else:
            sides = histogram.sides(counts)
            below, above = (_quantile(side, outside / 2.0) * width for side in sides)
        none = (below == 0) & (above == 0)
        below, above = (torch.where(none, torch.inf, side) for side in (below, above))
        return within(state, below, above)


def _quantile(counts: Tensor, outside: Tensor) -> Tensor:
    """The place, in bins, beyond which ``outside`` samples lie; 0 where fewer are above bin 0."""
    beyond = counts.double().flip(1).cumsum(1).flip(1)  # in this bin or above it
    over = beyond > outside.unsqueeze(1)
    over[:, 0] = True
    last = over.shape[1] - 1 - over.flip(1).to(torch.uint8).argmax(dim=1, keepdim=True)
    here = counts.double().gather(1, last).clamp(min=1.0)
    rest = outside.unsqueeze(1) - (beyond.gather(1, last) - counts.double().gather(1, last))
    place = last + 1.0 - (rest / here).clamp(0.0, 1.0)
    return torch.where(last == 0, 0.0, place).squeeze(1)
