"""A bench as a picture: a bar for each row, its p95, and how many times as fast it is."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantkit.benching.report import BenchReport, Row
from quantkit.benching.table import shown
from quantkit.errors import ExportError, MissingDependencyError
from quantkit.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that also colour-blind people tell apart (Okabe and Ito 2008), the first for float.
_COLOURS: Final = ("#9AA0A6", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_DARK: Final = "#202124"
_KINDS: Final = (".png", ".svg")


def require_drawable(path: Path) -> None:
    """Tell, before any work, that a picture could not be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ExportError: the suffix is of no kind of picture.
    """
    if path.suffix not in _KINDS:
        raise ExportError(f"{path}: is drawn as PNG or SVG; let its name end in .png or .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'pictures need matplotlib ({error}); pip install "quantkit[plots]"'
        ) from error


def save_plot(report: BenchReport, path: Path) -> None:
    """Draw the rows that have a result: a panel for each device and batch size.

    Args:
        report: with one such row at least.
        path: of a PNG or SVG, by its suffix; replaced only by a whole picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ExportError: there is nothing to draw, or the file cannot be written.
    """
    require_drawable(path)
    rows = [row for row in report.rows if row.turns]
    if not rows:
        raise ExportError(f"{path}: there is nothing to draw, since no row has a result")
    drawn = _drawn(report, rows, path.suffix.removeprefix("."))
    with replacing(path) as temporary:
        temporary.write_bytes(drawn)


def _drawn(report: BenchReport, rows: Sequence[Row], kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [list(found) for _, found in groupby(rows, key=lambda row: (row.device, row.batch))]
    heights = [len(panel) + 1.6 for panel in panels]
    figure = Figure(figsize=(9.0, 0.32 * sum(heights) + 0.7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    precisions = dict.fromkeys(row.precision for row in rows)
    looks = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(precisions)}
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel, looks, report)
    axes[-1].set_xlabel("milliseconds per run (bar: median, whisker: 95th percentile)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _panel(axis: Axes, rows: Sequence[Row], looks: Mapping[str, str], report: BenchReport) -> None:
    """Bars from the top in the order of the table, each with its figures at its end."""
    widest = max(row.p95_ms or 0.0 for row in rows)
    for place, row in enumerate(rows):
        median, p95 = row.median_ms or 0.0, row.p95_ms or 0.0
        axis.barh(place, median, height=0.7, color=looks[row.precision])
        axis.plot([median, p95], [place, place], color=_DARK, linewidth=1.1)
        axis.plot([p95], [place], color=_DARK, marker="|", markersize=7)
        axis.text(max(median, p95) + 0.012 * widest, place, _label(row), va="center", fontsize=9)
    names = [f"{row.target}  {row.precision}" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0.0, 1.3 * widest)
    threads = f"CPU, {report.threads} thread{'' if report.threads == 1 else 's'}"
    where = "GPU" if rows[0].device == "cuda" else threads
    axis.set_title(f"batch {rows[0].batch} ({where})", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=9)


def _label(row: Row) -> str:
    median = f"{shown(row.median_ms)} ms"
    if row.reference:
        return f"{median}, reference"
    return median if row.ratio is None else f"{median}, {row.ratio.median:.2f} times as fast"
