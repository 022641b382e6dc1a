"""The range that loses the least information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit import divergence, histogram
from quantkit.interfaces import Calibrator, Statistic
from quantkit.spec import QuantSpec
from quantkit.statistics import Histogram
from quantkit.thresholds import searched, within


@dataclass(frozen=True, kw_only=True)
class Entropy(Calibrator):
    """The threshold of the least Kullback-Leibler divergence between ``|x|`` and its quantization.

    Compatible with the search that NVIDIA published (Migacz, "8-bit Inference with TensorRT", GTC
    2017, S7310): a histogram of ``|x|`` in at most 2,048 bins, 128 levels for 8 bits, every
    threshold from the 128th bin on that leaves half of the samples or more; of equal ones the
    largest. TensorRT's own is closed.

    It judges the shape of a distribution, not the size of its errors: right where a long tail
    matters little, costly where it carries the signal (detectors). Compare before you trust it.

    A grid of other levels is searched with as many of its own: 8 for int4, those of E4M3 for FP8,
    and all of an asymmetric one's for data of one sign. Data of both signs get one threshold.

    Attributes:
        bins: of ``|x|`` that are searched; the largest value lies in their upper half.
        stride: search every so many thresholds.
        half: bins a side of the histogram that is read.

    Example:
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(), Entropy())
        >>> x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> _ = observer(torch.cat([x, torch.tensor([50.0])]))
        >>> bool(observer.range()[1] < 10)
        True
    """

    bins: int = 2048
    stride: int = 1
    half: int = Histogram.half

    def __post_init__(self) -> None:
        histogram.check_bins(self.half)
        histogram.check_bins(self.bins)
        if self.bins > self.half or self.stride < 1:
            raise ValueError(
                f"bins must be at most {self.half} and stride 1 or more, got {self.bins} and "
                f"{self.stride}"
            )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """A histogram."""
        return (Histogram(half=self.half),)

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The range up to the threshold."""
        return searched(state, lambda rows: self._range(rows, spec))

    def _range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        joined = self.half // self.bins
        magnitudes = histogram.magnitudes(state["counts"])
        counts = torch.unflatten(magnitudes, 1, (-1, joined)).sum(-1)
        width = histogram.widths(state["exponent"]) * joined
        one_sign = (state["minimum"] >= 0) | (state["maximum"] <= 0)
        found = torch.empty_like(width)
        for rows, whole in ((~one_sign, False), (one_sign, not spec.symmetric)):
            if bool(rows.any()):
                levels = divergence.levels(spec, one_sided=whole)
                chosen = divergence.least(counts[rows], levels, stride=self.stride)
                found[rows] = chosen.double() * width[rows]
        return within(state, found, found)
