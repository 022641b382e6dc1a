"""What a search has found, as a value, as JSON and as a recipe file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.data import DataSpec
from quantkit.recipe import Recipe
from quantkit.recovering.goal import Attempt, Goal

if TYPE_CHECKING:
    from quantkit.recovering.making import Built


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What ``recover`` has found.

    Attributes:
        goal: what was wanted.
        attempts: every candidate and every step that was skipped, in order.
        best: the best candidate.
        met: whether it meets the goal, simulated and deployed.
        samples: how many held-out samples judged.
        seconds: that the search took.
        one: points of the metric that one prediction is worth; ``None`` where it counts none.
        calibration: the rows that calibrated, where the data were split.
        model: the quantized model of the best; ``None`` where it was not asked for.
    """

    goal: Goal
    attempts: tuple[Attempt, ...]
    best: Attempt
    met: bool
    samples: int
    seconds: float
    one: float | None = None
    calibration: DataSpec | None = None
    model: Built | None = None

    @property
    def recipe(self) -> Recipe:
        """The best recipe."""
        assert self.best.candidate is not None  # it was measured
        return self.best.candidate.recipe

    @property
    def trained(self) -> bool:
        """Whether the best was trained as well: ``finetune`` makes it again, by the recipe."""
        assert self.best.candidate is not None
        return self.best.candidate.trained

    @property
    def drop(self) -> float:
        """What the best has lost, simulated or deployed, whichever is more."""
        return self.best.drop(self.goal)

    @property
    def coarse(self) -> bool:
        """Whether one prediction is worth more than may be lost: then none may be lost."""
        return self.one is not None and self.one > self.goal.max_drop > 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything but the model; what is not finite is null."""
        goal = self.goal
        return {
            "met": self.met, "metric": goal.metric, "unit": goal.unit, "float": goal.floating,
            "max_drop": goal.max_drop, "drop": _finite(self.drop), "samples": self.samples,
            "seconds": self.seconds, "trained": self.trained,
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "attempts": [_attempt(attempt, goal) for attempt in self.attempts],
        }  # fmt: skip

    def to_yaml(self, command: str = "") -> str:
        """The best recipe as a file, with what it is worth on top.

        Args:
            command: what makes the model by it.
        """
        lines = [f"# {line}" if line else "#" for line in self._head(command)]
        changed = ", ".join(self.best.changes) or "nothing"
        about = f"Found by recover; changed: {changed}."
        recipe = self.recipe.model_copy(update={"description": about})
        return "\n".join(lines) + "\n" + recipe.to_yaml()

    def _head(self, command: str) -> Iterator[str]:
        goal, measured = self.goal, self.best.measured
        assert measured is not None
        yield f"{self.told}"
        if measured.deployed is not None:
            yield f"In ONNX Runtime: {goal.metric} {measured.deployed:.2f} {goal.unit}".rstrip()
        if self.trained:
            yield "The model is trained: quantize alone does not make it."
        if command:
            yield f"Made again by: {command}"

    @property
    def told(self) -> str:
        """The result on one line."""
        goal, measured = self.goal, self.best.measured
        assert measured is not None
        allowed = f"{goal.max_drop:g} allowed"
        verdict = "Recovered" if self.met else "NOT recovered"
        unit = f" {goal.unit}" if goal.unit else ""
        return (
            f"{verdict}: {goal.metric} {measured.value:.2f}{unit} of {goal.floating:.2f}{unit}, a "
            f"drop of {self.drop:.2f} ({allowed}), on {self.samples} held-out samples"
        )


def _attempt(attempt: Attempt, goal: Goal) -> dict[str, Any]:
    measured = attempt.measured
    found: dict[str, Any] = {
        "step": attempt.step, "change": attempt.change, "status": attempt.status,
        "seconds": attempt.seconds, "best_so_far": attempt.better, "note": attempt.note,
    }  # fmt: skip
    if measured is not None:
        found |= {
            "value": _finite(measured.value), "drop": _finite(goal.drop(measured.value)),
            "gained": _finite(attempt.gained), "sqnr": _finite(measured.sqnr),
            "deployed": None if measured.deployed is None else _finite(measured.deployed),
        }  # fmt: skip
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
