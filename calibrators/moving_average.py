"""An average of the range of each batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from quantkit.interfaces import Calibrator, Statistic
from quantkit.spec import QuantSpec
from quantkit.statistics import Average


@dataclass(frozen=True, kw_only=True)
class MovingAverage(Calibrator):
    """The mean of the batches' ranges, or an exponential moving average of them.

    Without a momentum every batch counts the same, as in ``torch.nn.BatchNorm2d(momentum=None)``:
    the mean of the ranges, whatever the order of batches. A value that is the largest of its batch
    alone is then clipped, which costs less than the coarser grid it would force on all others.

    With one, ``range += momentum * (range of the batch - range)``, the first batch as it is: the
    usual choice in training, where activations drift (Jacob et al. 2018, arXiv:1712.05877, section
    3.1; ``averaging_constant`` of torch.ao). It remembers about ``1 / momentum`` batches and
    depends on their order. Both lie between the narrowest and the widest batch.

    Attributes:
        momentum: weight of the newest batch, above 0 up to 1 (only the newest counts); ``None``
            for the plain mean over all batches.

    Example:
        >>> import torch
        >>> from quantkit.observer import Observer
        >>> observer = Observer(QuantSpec(), MovingAverage())
        >>> _ = observer(torch.tensor([0.0, 4.0])), observer(torch.tensor([-2.0, 2.0]))
        >>> observer.range()
        (tensor([-1.]), tensor([3.]))
    """

    momentum: float | None = None

    def __post_init__(self) -> None:
        Average(momentum=self.momentum)  # refuses what is no weight

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """The average of the batches' ranges."""
        return (Average(momentum=self.momentum),)

    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The averaged range."""
        return state["average_minimum"].float().clone(), state["average_maximum"].float().clone()
