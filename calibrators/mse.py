"""The range of the least mean squared error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantkit import histogram, rounding_error
from quantkit.interfaces import Calibrator, Statistic
from quantkit.spec import QuantSpec
from quantkit.statistics import Histogram
from quantkit.thresholds import searched, within

#: Spans of the histogram that the search reads: it needs no finer ones.
_SPANS = 1024
#: From so many codes a side on one more on one side does not matter.
_MANY = 64


@dataclass(frozen=True, kw_only=True)
class MSE(Calibrator):
    """The range whose grid makes the least mean squared error, by search over the histogram.

    It weighs what saturates against the rounding of all else (Choukroun et al. 2019,
    arXiv:1902.06822, section 3; Banner et al. 2019, arXiv:1810.05723, section 3). A symmetric grid
    has one threshold; of an asymmetric one the two ends are searched in turn. Each search is over
    fractions of the range, then finer around the best; the whole range is among them, so the error
    is never above that of min-max (on the histogram that it reads).

    Attributes:
        candidates: thresholds of the first search.
        half: bins a side of the histogram that is read.

    Example:
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(dtype="int4"), MSE())
        >>> _ = observer(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        >>> bool(observer.range()[1] < observer.get_buffer("maximum"))
        True
    """

    candidates: int = 64
    half: int = Histogram.half

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates must be 2 or more, got {self.candidates}")
        histogram.check_bins(self.half)

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """A histogram."""
        return (Histogram(half=self.half),)

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The range of the least error."""
        return searched(state, lambda rows: self._range(rows, spec))

    def _range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        both = rounding_error.spans(state["counts"], state["exponent"], _SPANS)
        below = (-state["minimum"]).double().clamp(min=0)
        above = state["maximum"].double().clamp(min=0)
        if spec.symmetric:
            # The code more that integers have below zero is little of 128, and much of 8.
            alike = both if spec.qmax - spec.middle < _MANY else rounding_error.folded(both)
            best = self._search(
                torch.maximum(below, above),
                lambda ends: rounding_error.noise_of_ranges(alike, -ends, ends, spec),
            )
            return within(state, best, best)

        def noise(below: Tensor, above: Tensor) -> Tensor:
            return rounding_error.noise_of_ranges(both, -below, above, spec)

        for _ in range(2):
            above = self._search(above, partial(noise, below.unsqueeze(1)))
            below = self._search(below, partial(noise, above=above.unsqueeze(1)))
        return within(state, below, above)

    def _search(self, whole: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """The end of the least noise, ``(rows,)``, up to ``whole``.

        Args:
            whole: ``(rows,)``.
            noise: of ends of shape ``(rows, candidates)``.
        """
        step = 1.0 / self.candidates
        grid = torch.arange(1, self.candidates + 1, dtype=torch.float64, device=whole.device)
        around = torch.linspace(-step, step, 17, dtype=torch.float64, device=whole.device)
        fractions = (grid / self.candidates).expand(whole.numel(), -1)
        for _ in range(2):
            least = noise(whole.unsqueeze(1) * fractions).argmin(dim=1, keepdim=True)
            best = fractions.gather(1, least)
            fractions = (best + around).clamp(step / 8.0, 1.0)
        return whole * best.squeeze(1)
