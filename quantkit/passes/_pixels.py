"""The evenly spaced values that each channel of an image takes, found from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: So many distinct values of a channel at least; with fewer, the true step may be a part of theirs.
LEAST_VALUES = 64
#: More distinct values than this are no pixels, whatever rounding makes of one value.
MOST_VALUES = 2048
#: What two computations of one value differ by at most, as a part of the channel's range.
ROUNDING = 1e-4
#: How far from its place a value may lie, in steps.
OFF = 0.02


@dataclass(frozen=True)
class Pixels:
    """The values ``lowest + k step`` with ``k`` from 0 to ``top``.

    Example:
        >>> pixels_of(torch.arange(100) * 0.5 - 7.0)
        Pixels(lowest=-7.0, step=0.5, top=99)
    """

    lowest: float
    step: float
    top: int


def pixels_of(values: Tensor) -> Pixels | None:
    """The even steps on which some values lie; ``None`` where they do not.

    Args:
        values: ``(n,)``, in any order.
    """
    v: Tensor = torch.unique(values.double())
    if len(v) < LEAST_VALUES:
        return None
    gap = v.diff()
    first = torch.cat([torch.ones(1, dtype=torch.bool), gap > ROUNDING * (v[-1] - v[0])])
    v = v[first]  # one of those that rounding alone makes different
    if len(v) < LEAST_VALUES:
        return None
    place = ((v - v[0]) / v.diff().min()).round()
    top = int(place[-1])
    step = float(v[-1] - v[0]) / top
    if bool(((v - v[0]) / step - place).abs().max() > OFF):
        return None
    return Pixels(float(v[0]), step, top)


def factors(channels: Sequence[Pixels], levels: int) -> tuple[Tensor, Tensor] | None:
    """``a`` and ``b``, one a channel, for which ``a x + b`` are the integers 0 to ``levels - 1``.

    ``None`` where that is no help: all channels lie on one grid of so many levels as they are; or
    where it cannot be done: a channel has more levels, or none of them has shown all.

    Args:
        channels: of each channel.
        levels: of the grid of the whole tensor.

    Returns:
        Both ``(channels,)``, float64.

    Example:
        >>> a, b = factors([Pixels(0.0, 0.5, 255), Pixels(-4.0, 1.0, 255)], 256)
        >>> a.tolist(), b.tolist()
        ([2.0, 1.0], [0.0, 4.0])
    """
    most = levels - 1
    tops = [channel.top for channel in channels]
    if max(tops) != most or _on_one_grid(channels, most):
        return None
    a = torch.tensor([1.0 / c.step for c in channels], dtype=torch.float64)
    # A channel that has not shown all its values lies in the middle of what it may have.
    start = torch.tensor([(most - top) // 2 for top in tops], dtype=torch.float64)
    lowest = torch.tensor([c.lowest for c in channels], dtype=torch.float64)
    return a, start - a * lowest


def _on_one_grid(channels: Sequence[Pixels], most: int) -> bool:
    """Whether one scale and zero-point have every value of every channel, and zero, exactly."""
    first = channels[0]
    for c in channels:
        apart, zero = (c.lowest - first.lowest) / first.step, c.lowest / first.step
        even = abs(apart - round(apart)) < OFF and abs(zero - round(zero)) < OFF
        if not even or abs(c.step / first.step - 1.0) * most > OFF:
            return False
    low = min(c.lowest for c in channels)
    high = max(c.lowest + c.top * c.step for c in channels)
    return max(high, 0.0) - min(low, 0.0) <= (most + OFF) * first.step
