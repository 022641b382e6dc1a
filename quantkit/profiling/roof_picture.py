"""A roofline as a picture: operations a second over operations a byte, a point for each layer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantkit.benching.plot import require_drawable
from quantkit.errors import ExportError
from quantkit.files import replacing
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.roofline import Roof, Roofline, RooflinePoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that also colour-blind people tell apart (Okabe and Ito 2008).
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_DARK: Final = "#202124"
_GREY: Final = "#9AA0A6"
#: Layers whose names are written: those with the longest times.
_NAMED: Final = 8
#: Intensities that lie within this share of each other share a name.
_ALIKE: Final = 0.02


def save_roofline(found: Roofline, path: Path) -> None:
    """Draw a roof for each format that a layer runs in, and the layers below it.

    A layer's point lies at what it reached; where nothing was measured, on the roof, and hollow.
    Larger points took longer. Layers that compute no products are not in the picture: their
    intensity is 0.

    Args:
        found: with one layer that computes products at least.
        path: of a PNG or SVG, by its suffix; replaced only by a whole picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ExportError: there is nothing to draw, or the file cannot be written.
    """
    require_drawable(path)
    points = [point for point in found.points if point.flops]
    if not points:
        raise ExportError(f"{path}: there is nothing to draw, since no layer computes products")
    drawn = _drawn(found, points, path.suffix.removeprefix("."))
    with replacing(path) as temporary:
        temporary.write_bytes(drawn)


def _drawn(found: Roofline, points: Sequence[RooflinePoint], kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_xscale("log")
    axis.set_yscale("log")
    formats = dict.fromkeys(point.dtype for point in points)
    low = min(point.intensity for point in points) / 2
    ridges = [found.roof.ridge(dtype) for dtype in formats]
    high = max(2 * max(point.intensity for point in points), 4 * max(ridges))
    for colour, dtype in zip(_COLOURS, formats, strict=False):
        _roof(axis, found.roof, (low, high), dtype, colour)
        _points(axis, [p for p in points if p.dtype is dtype], colour, points)
    _names(axis, points)
    axis.set_xlim(low, high)
    source = "measured" if found.roof.source == "measured" else "by its data sheet"
    axis.set_title(f"{found.roof.name} ({source}), batch {found.batch}", loc="left", fontsize=10)
    axis.set_xlabel("arithmetic intensity (operations for each byte)", fontsize=9)
    axis.set_ylabel("GOP/s", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#E8EAED", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _roof(axis: Axes, roof: Roof, span: tuple[float, float], dtype: Dtype, colour: str) -> None:
    peak = roof.peak(dtype)
    ridge = peak / roof.bandwidth
    heights = [roof.bandwidth * span[0] / 1e9, peak / 1e9, peak / 1e9]
    label = f"{dtype}: {_tera(peak)}, ridge at {ridge:.1f} operations a byte"
    axis.plot([span[0], ridge, span[1]], heights, color=colour, linewidth=1.6, label=label)
    axis.axvline(ridge, color=_GREY, linewidth=0.7, linestyle=":")


def _points(
    axis: Axes, own: Sequence[RooflinePoint], colour: str, everything: Sequence[RooflinePoint]
) -> None:
    longest = max(point.seconds or point.attainable for point in everything)
    for measured in (True, False):
        shown = [point for point in own if (point.seconds is not None) is measured]
        if not shown:
            continue
        axis.scatter(
            [point.intensity for point in shown],
            [_height(point) for point in shown],
            s=[18 + 160 * (point.seconds or point.attainable) / longest for point in shown],
            facecolors=colour if measured else "none", edgecolors=colour, alpha=0.75, zorder=3,
        )  # fmt: skip


def _names(axis: Axes, points: Sequence[RooflinePoint]) -> None:
    """Beside the layers that took longest their names, above and below in turns."""
    groups = sorted(_groups(points), key=lambda group: group[0].intensity)
    for place, (first, *others) in enumerate(groups):
        more = f" and {len(others)} more" if others else ""
        axis.annotate(
            f"{first.name[-28:]}{more}", (first.intensity, _height(first)), fontsize=7.5,
            color=_DARK, xytext=(8, 6 if place % 2 else -13), textcoords="offset points",
        )  # fmt: skip


def _groups(points: Sequence[RooflinePoint]) -> list[list[RooflinePoint]]:
    """The layers that took longest, with those of the same format and about the same intensity."""
    groups: list[list[RooflinePoint]] = []
    for point in sorted(points, key=lambda p: -(p.seconds or p.attainable)):
        for group in groups:
            first = group[0]
            alike = abs(point.intensity / first.intensity - 1) < _ALIKE
            if alike and point.dtype is first.dtype:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups[:_NAMED]


def _height(point: RooflinePoint) -> float:
    """Billions of operations a second."""
    return point.flops / (point.seconds or point.attainable) / 1e9


def _tera(peak: float) -> str:
    return f"{peak / 1e12:.1f} TOP/s" if peak >= 1e12 else f"{peak / 1e9:.0f} GOP/s"
