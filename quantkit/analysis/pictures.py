"""Pictures of tensors: the histogram that calibration kept, and the thresholds that were chosen."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantkit import histogram
from quantkit.analysis.calibrators import TensorComparison
from quantkit.errors import ExportError, MissingDependencyError
from quantkit.files import replacing
from quantkit.observer import Observer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: About so many bars a picture.
BARS = 200
#: Colours that also colour-blind people tell apart (Okabe and Ito 2008), and line styles.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Bars:
    """A histogram as it is drawn.

    Attributes:
        edges: ``(bars + 1,)``, in the tensor's own units.
        counts: samples in each bar, ``(bars,)``.
    """

    edges: Tensor
    counts: Tensor


def bars(counts: Tensor, exponent: Tensor, most: int = BARS) -> Bars:
    """The counts of all channels, joined to ``most`` bars at most over where there are samples.

    Args:
        counts: ``(channels, 2 * half)``, as `quantkit.histogram` has them.
        exponent: ``(channels,)``.
        most: bars.

    Example:
        >>> found = bars(torch.tensor([[0, 0, 1, 0, 5, 2, 0, 0]]), torch.tensor([0]), most=4)
        >>> found.edges.tolist(), found.counts.tolist()
        ([-3.0, -2.0, -1.0, 1.0, 2.0], [1, 0, 5, 2])
    """
    widest = exponent.max().expand_as(exponent)
    joined = histogram.coarsen(counts, exponent, widest).sum(dim=0).cpu()
    half = joined.numel() // 2
    step = 1
    while True:
        # Both sides by magnitude: bin 0 lies on both sides of zero, and is drawn as one bar.
        above = joined[half + 1 :]
        below = joined[1:half].flip(0)
        sides = [_joined(side, step) for side in (below, above)]
        used = [int(side.nonzero().max()) + 1 if bool(side.any()) else 0 for side in sides]
        if sum(used) + 1 <= most:
            break
        step *= 2
    width = float(histogram.widths(exponent.max()))
    left, right = (side[:n] for side, n in zip(sides, used, strict=True))
    ends = [1.0 + step * torch.arange(n + 1, dtype=torch.float64) for n in used]
    edges = torch.cat([-ends[0].flip(0), ends[1]]) * width
    return Bars(edges, torch.cat([left.flip(0), joined[half : half + 1], right]))


def _joined(side: Tensor, step: int) -> Tensor:
    room = -side.numel() % step
    return torch.nn.functional.pad(side, (0, room)).reshape(-1, step).sum(dim=1)


def picture(observer: Observer, comparison: TensorComparison) -> bytes:
    """A PNG of one tensor: its histogram, and the range that each calibrator would choose.

    Args:
        observer: it has kept a histogram.
        comparison: what calibrators make of the tensor.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from quantkit.analysis.calibrators import compare_calibrators
        >>> from quantkit.model_calibration import activations, observers_of
        >>> from quantkit.workflow import prepare
        >>> x = torch.randn(16, 64)
        >>> model = prepare(torch.nn.Linear(64, 64), "int8_ptq", example_inputs=(x,))
        >>> tensor = compare_calibrators(model, [x]).tensors[0]
        >>> picture(observers_of(activations(model))[0], tensor)[1:4]
        b'PNG'
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    state = observer.state
    found = bars(state["counts"], state["exponent"])
    axes.stairs(found.counts.numpy(), found.edges.numpy(), fill=True, color="#B8BDC4")
    zero = int(found.counts[(found.edges[:-1] < 0) & (found.edges[1:] > 0)].sum())
    if zero:
        share = zero / int(found.counts.sum())
        axes.vlines(
            0.0, 0.0, zero, color="#7A828C", linewidth=2.5, label=f"next to zero\n{share:.1%}"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlabel("value")
    axes.set_ylabel(f"samples in a bar (of {int(found.counts.sum()):,})")
    axes.set_title(f"{_short(comparison.tensor)}\n{comparison.form}", fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _thresholds(axes, comparison)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _thresholds(axes: Axes, comparison: TensorComparison) -> None:
    """A line for each end of each range; the legend, beside the bars, can overlap nothing."""
    best = comparison.best
    for number, chosen in enumerate(comparison.ranges):
        ends = [end for end in (chosen.low, chosen.high) if end != 0.0]
        mark = " (best)" if chosen == best else ""
        sqnr = "no error" if math.isinf(chosen.sqnr) else f"{chosen.sqnr:.1f} dB"
        span = " to ".join(f"{end:.4g}" for end in (chosen.low, chosen.high))
        for place, end in enumerate(ends):
            axes.axvline(
                end, color=_COLOURS[number % len(_COLOURS)],
                linestyle=_STYLES[number % len(_STYLES)], linewidth=2.6 if mark else 1.5,
                label=f"{chosen.calibrator}{mark}\n{sqnr}, {span}" if place == 0 else None,
            )  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9,
                labelspacing=0.9, handlelength=3.0)  # fmt: skip


def _short(name: str) -> str:
    """The end of a long name, which tells layers apart."""
    return name if len(name) <= 70 else f"…{name[-69:]}"


def write_pictures(
    folder: Path, observers: Sequence[Observer], comparisons: Iterable[TensorComparison]
) -> list[Path]:
    """A PNG of each tensor in ``folder``, which is made; returns the files.

    Args:
        folder: where they go; a file of the same name is replaced.
        observers: of all tensors.
        comparisons: of the tensors to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ExportError: the folder cannot be made or written to.
    """
    require_matplotlib()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"{folder}: cannot be made ({error.strerror}); choose a folder inside one that exists"
        ) from error
    named = {observer.name: observer for observer in observers}
    written: list[Path] = []
    for comparison in comparisons:
        stem = re.sub(r"[^\w.-]+", "_", comparison.tensor).strip("._") or "tensor"
        path = folder / f"{stem}.png"
        if path in written:  # two names that differ only in what a file's name may not have
            path = folder / f"{stem}_{len(written)}.png"
        drawn = picture(named[comparison.tensor], comparison)
        with replacing(path) as temporary:
            temporary.write_bytes(drawn)
        written.append(path)
    return written


def require_matplotlib() -> None:
    """Tell, before any work, how to install what draws.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'pictures need matplotlib ({error}); pip install "quantkit[plots]"'
        ) from error
