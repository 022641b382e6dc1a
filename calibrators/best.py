"""Of each tensor the range of the calibrator that does best there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit import plugins, rounding_error
from quantkit.interfaces import Calibrator, Chooser, Statistic
from quantkit.spec import QuantSpec
from quantkit.statistics import Histogram
from quantkit.thresholds import searched


@dataclass(frozen=True, kw_only=True)
class Best(Chooser):
    """Tries every calibrator of the folder on every tensor, and takes the best of each.

    From statistics alone the best is the one whose grid makes the least squared error. What an
    error does to the model's outputs is another matter: clipping a few large values may cost more
    there than the same error spread over all. So where ``quantize`` has the model and data at hand,
    it judges by the outputs of some of the samples; see `quantkit.judging`.

    Attributes:
        samples: how many samples to judge by, the first of the calibration data; 0 for the error
            of each tensor alone.

    Example:
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(), Best())
        >>> _ = observer(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        >>> low, high = observer.range()
    """

    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ValueError(f"samples must be 0 or more, got {self.samples}")

    @property
    def judged_by(self) -> int:
        """As set."""
        return self.samples

    @property
    def calibrators(self) -> tuple[Calibrator, ...]:
        """All others, with the settings that they have by default."""
        names = plugins.names_of("calibrators", Calibrator)
        kinds = (plugins.find("calibrators", name, Calibrator) for name in names)
        return tuple(kind() for kind in kinds if not issubclass(kind, Chooser))

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What any of them reads, and the histogram that the error is computed from."""
        read = (s for calibrator in self.calibrators for s in calibrator.statistics)
        return tuple(dict.fromkeys((Histogram(), *read)))

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The range whose grid makes the least squared error."""
        return searched(state, lambda rows: self._range(rows, spec))

    def _range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        found = [calibrator.range(state, spec) for calibrator in self.calibrators]
        low, high = (torch.stack(ends, dim=1) for ends in zip(*found, strict=True))
        both = rounding_error.spans(state["counts"], state["exponent"])
        best = rounding_error.noise_of_ranges(both, low, high, spec).argmin(dim=1, keepdim=True)
        return low.gather(1, best).squeeze(1), high.gather(1, best).squeeze(1)
