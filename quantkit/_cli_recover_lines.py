"""What ``quantkit recover`` tells while it runs, and at its end."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit._cli_show import Screen, count

if TYPE_CHECKING:
    from quantkit.recipe import Recipe
    from quantkit.recovering.goal import Attempt, Goal
    from quantkit.recovering.report import Recovery

#: Widths of the columns: with the spaces between them, and a star, a line of 80.
_STEP, _CHANGE, _FIGURES = 16, 26, (9, 6, 7, 7)


class Lines:
    """A line for each candidate, as soon as it is measured; a star for the best so far."""

    def __init__(self, show: Screen, recipe: Recipe) -> None:
        self._show, self._recipe = show, recipe
        self._goal: Goal | None = None

    def start(self, goal: Goal) -> None:
        """The float model is measured."""
        self._goal = goal
        unit = f" {goal.unit}" if goal.unit else ""
        self._show.line(
            f"Float model: {goal.metric} {goal.floating:.2f}{unit}; at most {goal.max_drop:g} may "
            "be lost on held-out data"
        )
        self._show.line()
        self._row("step", "change", (goal.metric[:9], "drop", "SQNR dB", "seconds"), "bold")

    def attempt(self, attempt: Attempt) -> None:
        """A candidate was measured, or a step was skipped."""
        measured, goal = attempt.measured, self._goal
        assert goal is not None
        if measured is None:
            style = "dim" if attempt.status == "skipped" else "yellow"
            what = f"{attempt.change}: " if attempt.change else ""
            self._wrapped(f"{attempt.step:<{_STEP}}  ", f"{what}{attempt.status}: {attempt.note}",
                          style)  # fmt: skip
            return
        change = self._recipe.name if attempt.step == "baseline" else attempt.change
        figures = (
            _number(measured.value), _number(goal.drop(measured.value)), _number(measured.sqnr, 1),
            f"{attempt.seconds:.1f}",
        )  # fmt: skip
        self._row(attempt.step, change, figures, mark=" *" if attempt.better else "")
        if attempt.note:
            self._wrapped(" " * (_STEP + 2), attempt.note, "dim")

    def result(self, found: Recovery, written: dict[Path, str], command: str) -> None:
        """What was found and written, and what to do next."""
        self._show.line()
        measured = [a for a in found.attempts if a.measured is not None]
        tried = f"{count(len(measured), 'candidate')} in {found.seconds:.0f} s"
        self._show.line(f"{found.told}; {tried}", "bold green" if found.met else "bold red")
        if found.coarse:
            self._show.line(
                f"One prediction is worth {found.one:.2f} points, more than --max-drop, so none "
                "may be lost: give more held-out data to tell smaller drops.", "yellow",
            )  # fmt: skip
        if not found.met:
            self._show.line(
                "What is written is the best that was found. Way out: more --time-limit, --train "
                "TRAIN.yaml, more calibration data, or a larger --max-drop.", "yellow",
            )  # fmt: skip
        for path, what in written.items():
            self._show.line(f"Wrote {path}: {what}", "green")
        self._show.line(f"Next: {command}", "dim", copied=True)

    def _row(
        self, step: str, change: str, figures: tuple[str, ...], style: str = "", mark: str = ""
    ) -> None:
        first, *rest = textwrap.wrap(change, _CHANGE) or [""]
        cells = " ".join(f"{x:>{width}}" for x, width in zip(figures, _FIGURES, strict=True))
        self._show.line(f"{step:<{_STEP}}  {first:<{_CHANGE}} {cells}{mark}", style)
        for line in rest:
            self._show.line(f"{'':<{_STEP}}  {line}")

    def _wrapped(self, before: str, text: str, style: str) -> None:
        width = max(self._show.width - len(before), 30)
        for index, line in enumerate(textwrap.wrap(text, width)):
            self._show.line((before if index == 0 else " " * len(before)) + line, style)


def _number(value: float, digits: int = 2) -> str:
    """A figure; what is no number in words."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "exact" if value > 0 else "none"
    return f"{value:.{digits}f}"
