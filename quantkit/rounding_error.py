"""The error that a grid makes, computed from a histogram: what calibrators search and compare by.

Within a bin the samples are taken as spread evenly, and the squared error is integrated over the
bin in closed form: exact for a density that is flat within bins, however wide the steps are beside
them. The integral of the error of a grid of step s from zero to x, without saturation, is

    E(x) = s³ (k / 12 + r³ / 3)   with   x / s = k + r,   k the nearest integer,

and beyond the last point ``end`` of the grid ``E(end) + (x - end)³ / 3``. For FP8, whose steps
vary, ``s³ k / 12`` is the sum of ``(gap between two values)³ / 12`` up to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit import histogram, numerics
from quantkit.spec import QuantSpec

#: Numbers computed at once: bounds the memory of a search to some megabytes.
AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Spans:
    """A histogram as what lies below and above zero, by magnitude.

    Attributes:
        below, above: samples in each span, float64, ``(rows, spans)``.
        edges: where spans begin and end, ``(spans + 1,)``, in units of ``width``.
        width: ``(rows,)``.
    """

    below: Tensor
    above: Tensor
    edges: Tensor
    width: Tensor

    def rows(self, part: slice) -> Spans:
        """Some of the rows."""
        return Spans(self.below[part], self.above[part], self.edges, self.width[part])


def spans(counts: Tensor, exponent: Tensor, most: int | None = None) -> Spans:
    """The spans of a histogram; bins are joined until there are ``most`` at most.

    The bin of zero is none of them: zero is on every grid, and makes no error.

    Args:
        counts: ``(rows, 2 * half)``.
        exponent: ``(rows,)``.
        most: a power of two.
    """
    below, above = (side.double() for side in histogram.sides(counts))
    half = below.shape[1]
    join = 1 if most is None else max(1, half // most)
    edges = torch.arange(0, half + 1, join, dtype=torch.float64, device=counts.device)
    edges[0] = 1.0
    if join == 1:
        below, above, edges = below[:, 1:], above[:, 1:], edges[1:]
    else:
        below, above = (torch.unflatten(side, 1, (-1, join)).sum(-1) for side in (below, above))
    return Spans(below, above, edges, histogram.widths(exponent))


def folded(both: Spans) -> Spans:
    """The spans of ``|x|``, all above zero: for grids that are (nearly) alike there."""
    return Spans(torch.zeros_like(both.below), both.below + both.above, both.edges, both.width)


def noise(both: Spans, scale: Tensor, low: Tensor, high: Tensor, spec: QuantSpec) -> Tensor:
    """The sum of the squared errors of each of some grids.

    Args:
        both: the samples, of ``rows``.
        scale: steps, ``(rows, grids)``.
        low: the magnitude of the lowest point of each grid, ``(rows, grids)``.
        high: that of its highest point.
        spec: the form of the grids.

    Returns:
        float64, ``(rows, grids)``.
    """
    area = _area_fp8 if spec.is_float else _area_integer
    sums = []
    step = max(1, AT_ONCE // (scale.shape[1] * both.edges.numel()))
    for start in range(0, scale.shape[0], step):
        part = slice(start, start + step)
        some = both.rows(part)
        edges = some.edges * some.width.unsqueeze(1)
        total = torch.zeros_like(scale[part], dtype=torch.float64)
        for counts, end in ((some.below, low[part]), (some.above, high[part])):
            if bool(counts.any()):
                total += _side(counts, edges, scale[part].double(), end.double(), area)
        sums.append(total)
    return torch.cat(sums)


def _side(
    counts: Tensor, edges: Tensor, scale: Tensor, end: Tensor, area: Callable[[Tensor], Tensor]
) -> Tensor:
    """One side: counts ``(rows, spans)``, edges ``(rows, spans + 1)``, grids ``(rows, grids)``."""
    scale, end = scale.unsqueeze(2), end.unsqueeze(2)
    x = edges.unsqueeze(1)
    inside = torch.minimum(x, end)
    integral = scale**3 * area(inside / scale) + (x - inside) ** 3 / 3.0
    density = (counts / edges.diff(dim=1)).unsqueeze(2)
    return (integral.diff(dim=2) @ density).squeeze(2)


def _area_integer(steps: Tensor) -> Tensor:
    """The integral of the squared error from 0 on, in steps."""
    whole = steps.round()
    return whole / 12.0 + (steps - whole) ** 3 / 3.0


def _area_fp8(steps: Tensor) -> Tensor:
    values = torch.arange(127, dtype=torch.uint8, device=steps.device).view(torch.float8_e4m3fn)
    gaps = values.double().diff()
    up_to_values = torch.nn.functional.pad((gaps**3 / 12.0).cumsum(0), (1, 0))
    nearest = steps.float().to(torch.float8_e4m3fn)
    return up_to_values[nearest.view(torch.uint8).long()] + (steps - nearest.double()) ** 3 / 3.0


def noise_of_ranges(both: Spans, low: Tensor, high: Tensor, spec: QuantSpec) -> Tensor:
    """`noise` of the grids that cover the ranges ``low`` to ``high``.

    Each is ``(rows, grids)``, or one of them ``(rows, 1)``.
    """
    scale, zero_point = numerics.grid(low, high, spec)
    top = scale.double() * (spec.qmax - zero_point.double())
    bottom = scale.double() * (zero_point.double() - spec.qmin)
    if spec.is_float:
        top = bottom = scale.double() * spec.qmax
    return noise(both, scale, bottom, top, spec)
