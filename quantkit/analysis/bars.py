"""Sensitivities as a picture: a bar for each layer in order, the longer the more it costs."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantkit.analysis.losses import Loss, Sensitivity, decibels, told
from quantkit.benching.plot import require_drawable
from quantkit.errors import ExportError
from quantkit.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours that also colour-blind people tell apart (Okabe and Ito 2008): most, and the worst.
_PLAIN: Final = "#56B4E9"
_WORST: Final = "#D55E00"
_DARK: Final = "#202124"
#: Of so many bars one is told apart as among the worst, and three where there are some more.
_SHARE: Final = 10
_LEAST: Final = 3
#: Characters of a name.
_LONGEST: Final = 44


def save_bars(sensitivity: Sensitivity, path: Path) -> None:
    """Draw a panel for each format: bars of SQNR that grow to the right as it falls.

    Args:
        sensitivity: formats without any loss (float) have no panel.
        path: of a PNG or SVG, by its suffix; replaced only by a whole picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ExportError: there is nothing to draw, or the file cannot be written.
    """
    require_drawable(path)
    drawn = _drawn(sensitivity, path)
    with replacing(path) as temporary:
        temporary.write_bytes(drawn)


def _drawn(sensitivity: Sensitivity, path: Path) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = {
        name: [part.losses[i] for part in sensitivity.parts]
        for i, name in enumerate(sensitivity.columns)
        if any(part.losses[i] is not None and part.losses[i].noise for part in sensitivity.parts)  # type: ignore[union-attr]
    }
    if not columns:
        raise ExportError(f"{path}: there is nothing to draw, since no format has any loss")
    names = [_short(part.name) for part in sensitivity.parts]
    width = 0.075 * max(map(len, names)) + 3.1 * max(len(columns), 1.6)
    figure = Figure(figsize=(width, 0.21 * len(names) + 1.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (name, losses) in zip(axes, columns.items(), strict=True):
        _panel(axis, name, losses)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(
        f"SQNR of the outputs with one {sensitivity.by} quantized: the longer, the more it costs",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."))
    return buffer.getvalue()


def _panel(axis: Axes, name: str, losses: list[Loss | None]) -> None:
    """The bars of one format, each with its figure at its end, and a line for all together."""
    sqnr = [None if loss is None else loss.sqnr for loss in losses]
    known = [value for value in sqnr if value is not None and math.isfinite(value)]
    total = decibels(sum(loss.noise for loss in losses if loss is not None))
    lowest = min([*known, total]) if math.isfinite(total) else min(known, default=0.0)
    base = max(known, default=lowest) + 0.08 * (max(known, default=lowest) - lowest) + 1.0
    told_apart = max(1, min(_LEAST, len(known) // 4), len(known) // _SHARE)
    worst = sorted([*known, math.inf])[:told_apart][-1]
    room = base - lowest
    for place, (value, loss) in enumerate(zip(sqnr, losses, strict=True)):
        at = base if value is None or value == math.inf else max(value, lowest)
        colour = _WORST if value is not None and value <= worst else _PLAIN
        axis.barh(place, base - at, left=at, height=0.74, color=colour)
        axis.text(at - 0.015 * room, place, told(loss), va="center", fontsize=7.5, color=_DARK)
    if math.isfinite(total):
        axis.axvline(total, color=_DARK, linewidth=1.0, linestyle=":")
    axis.set_xlim(base, lowest - 0.17 * room)
    whole = f"dotted: all together, about {total:.1f} dB" if math.isfinite(total) else ""
    axis.set_title(f"{name}\n{whole}", loc="left", fontsize=9)
    axis.set_xlabel("dB", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)


def _short(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST + 1 :]}"
