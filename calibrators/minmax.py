"""The range of everything seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quantkit.interfaces import Calibrator, Statistic
from quantkit.spec import QuantSpec


@dataclass(frozen=True, kw_only=True)
class MinMax(Calibrator):
    """The smallest and the largest value of all samples.

    Nothing seen is clipped, so one outlier widens the step for all: right for weights, and for
    activations without heavy tails. Independent of the order and size of batches.

    Example:
        >>> import torch
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(), MinMax())
        >>> _ = observer(torch.tensor([-1.0, 5.0]))
        >>> observer.range()
        (tensor([-1.]), tensor([5.]))
    """

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """None but the range."""
        return ()

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The range of all samples."""
        return state["minimum"].clone(), state["maximum"].clone()
