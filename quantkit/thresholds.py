"""What calibrators that read a histogram share: rows that can be searched, thresholds as ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def searched(
    state: Mapping[str, Tensor], search: Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``search`` for the rows that hold finite samples other than zero; else the range itself.

    So an empty row stays empty, a NaN stays to be reported, and a dead channel has the range 0.
    """
    low, high = state["minimum"].clone(), state["maximum"].clone()
    alive = torch.isfinite(low) & torch.isfinite(high) & ((low != 0) | (high != 0))
    if bool(alive.any()):
        found = search({k: v[alive] for k, v in state.items() if v.shape[:1] == low.shape})
        low[alive], high[alive] = (bound.to(low.dtype) for bound in found)
    return low, high


def within(state: Mapping[str, Tensor], below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
    """The range from ``-below`` to ``above``, but nothing beyond what was seen.

    A threshold is known to a part of a bin, so it may fall short of the smallest value of data of
    one sign: that value is then the range.
    """
    minimum, maximum = state["minimum"].double(), state["maximum"].double()
    low = torch.minimum(torch.maximum(minimum, -below.double()), maximum)
    return low, torch.maximum(torch.minimum(maximum, above.double()), minimum)
