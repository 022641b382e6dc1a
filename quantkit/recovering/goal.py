"""What a search wants and finds, as values: the goal, the time, and a row for each attempt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from quantkit.recovering.steps import Candidate


class OutOfTimeError(Exception):
    """The time limit has come inside a step, which is given up."""


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """When the climb ends.

    Attributes:
        at: on the clock, in seconds; infinite for no limit.
        clock: such as ``time.perf_counter``.
    """

    at: float
    clock: Callable[[], float]

    @property
    def left(self) -> float:
        """Seconds; never below 0."""
        return max(self.at - self.clock(), 0.0)

    def check(self) -> None:
        """Raise `OutOfTimeError` where it is over."""
        if self.left == 0.0:
            raise OutOfTimeError


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted.

    Attributes:
        metric: its name.
        unit: of its values.
        floating: its value for the float model.
        max_drop: the most that may be lost of it, in its own points.
        lower_is_better: as of an error; a drop is a rise then.
        resolution: differences below it are luck.
    """

    metric: str
    unit: str
    floating: float
    max_drop: float
    lower_is_better: bool = False
    resolution: float = 0.0

    def drop(self, value: float) -> float:
        """What is lost; below 0 where the value is better than that of the float model.

        Example:
            >>> Goal(metric="accuracy", unit="%", floating=90.0, max_drop=0.5).drop(89.0)
            1.0
        """
        return value - self.floating if self.lower_is_better else self.floating - value

    def is_met(self, value: float) -> bool:
        """Whether no more is lost than is allowed; what float arithmetic adds does not count."""
        return self.drop(value) <= self.max_drop + 1e-9


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a candidate is worth on held-out data.

    Attributes:
        value: the metric, simulated in PyTorch.
        sqnr: of its outputs beside the float model's, in dB.
        seconds: that it took to build and measure.
        digest: of its weights and grids: equal ones need not be measured twice.
        deployed: the metric of the exported file in ONNX Runtime; ``None`` where it was not run.
    """

    value: float
    sqnr: float
    seconds: float
    digest: str
    deployed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One row of the table.

    Attributes:
        step: the step's name.
        change: what was tried; empty for a step that was not.
        candidate: the same with its recipe; ``None`` likewise.
        changes: all that its recipe differs in from the baseline, in order.
        measured: what it is worth; ``None`` where it was skipped, failed, or ran out of time.
        status: what became of it.
        seconds: that it took in this run.
        better: whether it was the best so far.
        gained: the drop that it won back beside the best before it.
        note: why it was skipped or failed, or what is to be said of it.
    """

    step: str
    change: str = ""
    candidate: Candidate | None = None
    changes: tuple[str, ...] = ()
    measured: Measured | None = None
    status: Literal["measured", "skipped", "failed", "stopped"] = "measured"
    seconds: float = 0.0
    better: bool = False
    gained: float = 0.0
    note: str = ""

    def drop(self, goal: Goal) -> float:
        """What it has lost, simulated or deployed, whichever is more; infinite if not measured."""
        if self.measured is None:
            return math.inf
        values = (self.measured.value, self.measured.deployed)
        drops = [goal.drop(value) for value in values if value is not None]
        return math.inf if any(map(math.isnan, drops)) else max(drops)
