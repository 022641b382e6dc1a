"""Pictures as SVG, drawn in few characters: one path for a histogram, one for a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Of a histogram, in its own units; the page stretches it.
WIDTH, HEIGHT = 320, 84
#: Of a chart.
CHART_WIDTH, CHART_HEIGHT = 900, 220
#: Room for the figures beside and below a chart.
LEFT, BELOW, ABOVE = 40, 22, 10
#: Signal to noise above which a chart does not tell more, in dB.
MOST: Final = 100.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line of a histogram.

    Attributes:
        at: where it stands, 0 to ``WIDTH``.
        text: what it is.
    """

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A histogram as it is drawn.

    Attributes:
        path: the bars, as the ``d`` of one SVG path.
        zero: where zero stands; ``None`` where it lies outside.
        low, high: where the grid ends.
        left, right: the values at both sides of the picture.
    """

    path: str
    zero: float | None
    low: float
    high: float
    left: float
    right: float


def histogram(edges: Sequence[float], counts: Sequence[int], low: float, high: float) -> Picture:
    """Bars over what was seen and what the grid covers; heights by the logarithm of the count.

    Args:
        edges: rising, one more than ``counts``.
        counts: samples in each bar.
        low: where the grid begins.
        high: where it ends.

    Example:
        >>> histogram([0.0, 1.0, 2.0], [1, 0], 0.0, 4.0).path
        'M0 84V0H80V84H160V84z'
    """
    left, right = min(edges[0], low), max(edges[-1], high)
    width = right - left or 1.0

    def at(value: float) -> float:
        return round((value - left) / width * WIDTH, 1)

    most = math.log1p(max(counts, default=0)) or 1.0
    steps = [f"M{at(edges[0]):g} {HEIGHT}"]
    for end, count in zip(edges[1:], counts, strict=True):
        height = HEIGHT - HEIGHT * math.log1p(count) / most
        steps.append(f"V{height:.0f}H{at(end):g}")
    return Picture(
        path="".join(steps) + f"V{HEIGHT}z",
        zero=at(0.0) if left < 0.0 < right else None,
        low=at(low), high=at(high), left=left, right=right,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a line.

    Attributes:
        x, y: where it is drawn.
        text: what is told of it.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: what it shows.
        path: the ``d`` of its SVG path; values that are not there break it.
        points: one for each value that is there.
    """

    name: str
    path: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over the layers of a model, by one scale.

    Attributes:
        lines: in the order given.
        ticks: values of the scale, and where they stand.
    """

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, float], ...]


def chart(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], unit: str
) -> Chart | None:
    """A line for each series over the same places; ``None`` where there are fewer than two places.

    Args:
        names: of the places, such as layers.
        series: each a name and one value a place; ``None`` and NaN are left out, and what is over
            `MOST` stands at the top.
        unit: of the values.
    """
    shown = [(name, [_bounded(v) for v in values]) for name, values in series]
    known = [v for _, values in shown for v in values if v is not None]
    if len(names) < 2 or not known:
        return None
    ticks = _ticks(min(known), max(known))
    bottom, top = ticks[0], ticks[-1]
    room = CHART_HEIGHT - BELOW - ABOVE

    def y(value: float) -> float:
        return round(ABOVE + room * (top - value) / (top - bottom), 1)

    def x(place: int) -> float:
        return round(LEFT + (CHART_WIDTH - LEFT - 10) * place / (len(names) - 1), 1)

    lines = []
    for (name, values), (_, exact) in zip(shown, series, strict=True):
        points = [
            None
            if value is None
            else Point(x=x(i), y=y(value), text=f"{names[i]}: {_told(exact[i], unit)}")
            for i, value in enumerate(values)
        ]
        lines.append(
            Line(name=name, path=_path(points), points=tuple(p for p in points if p is not None))
        )
    return Chart(lines=tuple(lines), ticks=tuple((tick, y(tick)) for tick in ticks))


def _bounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else max(-MOST, min(MOST, value))


def _told(value: float | None, unit: str) -> str:
    return "exact" if value == math.inf else f"{value:.1f} {unit}"


def _path(points: Sequence[Point | None]) -> str:
    steps, before = [], False
    for point in points:
        if point is not None:
            steps.append(f"{'L' if before else 'M'}{point.x:g} {point.y:g}")
        before = point is not None
    return "".join(steps)


def _ticks(low: float, high: float) -> list[float]:
    """Round values that cover a range, four to eight of them.

    Example:
        >>> _ticks(11.0, 48.0)
        [10.0, 20.0, 30.0, 40.0, 50.0]
    """
    width = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(width / 4.0))
    step = next(s for s in (power, 2 * power, 5 * power, 10 * power) if width / s <= 6.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * k for k in range(first, max(last, first + 1) + 1)]
