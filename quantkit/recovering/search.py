"""The climb: try what each step proposes, keep the best, and stop at the first that is enough.

It knows no model: whatever builds and measures candidates is a `Bench`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from quantkit.errors import QuantkitError
from quantkit.recipe import Recipe
from quantkit.recovering.goal import Attempt, Deadline, Goal, Measured, OutOfTimeError
from quantkit.recovering.steps import Candidate, Facts, Skip, Step


class Bench(ABC):
    """What builds candidates and measures them."""

    @abstractmethod
    def facts(self, best: Recipe, deadline: Deadline, *, ranked: bool) -> Facts:
        """What proposals depend on; ``ranked``: with the ranking of layers."""

    @abstractmethod
    def known(self, candidate: Candidate) -> Measured | None:
        """What an earlier run has measured, which costs no time."""

    @abstractmethod
    def measure(self, candidate: Candidate, deadline: Deadline) -> Measured:
        """Build and measure; `OutOfTimeError` where the deadline comes before the end."""

    @abstractmethod
    def deploy(self, candidate: Candidate, measured: Measured) -> Measured:
        """The same with the metric of its exported file; it was built last."""


@dataclass
class Climb:
    """One search, as far as it has come.

    Attributes:
        bench: builds and measures.
        goal: what is wanted.
        deadline: when it ends.
        tell: called with each attempt as it ends.
        attempts: all so far.
        best: the best of them.
    """

    bench: Bench
    goal: Goal
    deadline: Deadline
    tell: Callable[[Attempt], None]
    attempts: list[Attempt] = field(default_factory=list)
    best: Attempt | None = None

    def run(self, recipe: Recipe, ladder: Sequence[Step]) -> None:
        """Measure the recipe as it is, then climb until the goal is met or nothing is left.

        Raises:
            QuantkitError: the recipe as it is cannot be built or measured.
        """
        first = Candidate(step="baseline", change="the recipe as it is", recipe=recipe)
        unlimited = replace(self.deadline, at=math.inf)
        start = self.deadline.clock()
        # Whatever the limit is: there is nothing to write without it.
        self._note(self._measured(first, (), start, unlimited))
        unit = self._best.measured.seconds if self._best.measured else 0.0
        for step in ladder:
            if self.met:
                return
            self._step(step, step.cost * unit)
        if not self.met:
            # Steps build on what has least noise; what is handed on has lost least.
            self.best = min(self.attempts, key=self._rank)

    @property
    def met(self) -> bool:
        """Whether the best meets the goal, simulated and deployed."""
        return self.best is not None and self._is_enough(self.best)

    @property
    def _best(self) -> Attempt:
        assert self.best is not None  # the baseline is one
        return self.best

    def _step(self, step: Step, expected: float) -> None:
        base, start = self._best, self.deadline.clock()
        assert base.candidate is not None
        try:
            found = self._proposed(step, base.candidate.recipe, expected)
        except OutOfTimeError:
            self._note(self._ended(step.name, "", start, "stopped", "the time was up"))
            return
        except QuantkitError as error:
            self._note(self._ended(step.name, "", start, "failed", str(error)))
            return
        if isinstance(found, Skip):
            self._note(self._ended(step.name, "", start, "skipped", found.why))
            return
        for candidate in found:
            known = self.bench.known(candidate)
            if known is None and (why := self._too_long(expected)) is not None:
                self._note(self._ended(step.name, candidate.change, start, "skipped", why))
                return
            attempt = self._tried(candidate, base, start)
            self._note(attempt)
            if self.met or attempt.status == "stopped":
                return
            if attempt.measured is not None:
                expected = attempt.measured.seconds
            start = self.deadline.clock()

    def _proposed(self, step: Step, best: Recipe, expected: float) -> tuple[Candidate, ...] | Skip:
        """What a step proposes; the layers are ranked only where there is time to use it."""
        found = step.propose(best, self.bench.facts(best, self.deadline, ranked=False))
        if not step.ranked or isinstance(found, Skip):
            return found
        if (why := self._too_long(expected)) is not None:
            return Skip(why=why)
        return step.propose(best, self.bench.facts(best, self.deadline, ranked=True))

    def _too_long(self, expected: float) -> str | None:
        left = self.deadline.left
        if expected < left:
            return None
        if left == 0.0:
            return "no time is left"
        return f"would take about {expected:.0f} s, and {left:.0f} s are left"

    def _tried(self, candidate: Candidate, base: Attempt, start: float) -> Attempt:
        """A candidate that builds on another, whatever comes of it."""
        changes = (*base.changes, candidate.change)
        try:
            return self._measured(candidate, changes, start, self.deadline)
        except OutOfTimeError:
            why = "the time was up before it was measured"
            ended = self._ended(candidate.step, candidate.change, start, "stopped", why)
        except QuantkitError as error:
            ended = self._ended(candidate.step, candidate.change, start, "failed", str(error))
        return replace(ended, candidate=candidate)

    def _measured(
        self, candidate: Candidate, changes: tuple[str, ...], start: float, deadline: Deadline
    ) -> Attempt:
        """A candidate, measured; what seems to be enough is run as it would be deployed."""
        known = self.bench.known(candidate)
        measured = known or self.bench.measure(candidate, deadline)
        notes = [] if known is None else ["of an earlier run"]
        twin = next((a for a in self.attempts if _same(a, measured)), None)
        if twin is not None:
            notes.append(f"the same model as {twin.step}: {twin.change}")
        if measured.deployed is None and self.goal.is_met(measured.value):
            measured = self.bench.deploy(candidate, measured)
        if measured.deployed is not None and self.goal.is_met(measured.value):
            drop = self.goal.drop(measured.deployed)
            notes.append(f"in ONNX Runtime the drop is {drop:.2f}")
        return Attempt(
            step=candidate.step, change=candidate.change, candidate=candidate, changes=changes,
            measured=measured, seconds=self.deadline.clock() - start, note="; ".join(notes),
        )  # fmt: skip

    def _ended(
        self,
        step: str,
        change: str,
        start: float,
        status: Literal["skipped", "failed", "stopped"],
        why: str,
    ) -> Attempt:
        seconds = self.deadline.clock() - start
        return Attempt(step=step, change=change, status=status, seconds=seconds, note=why)

    def _note(self, attempt: Attempt) -> None:
        before = self.best
        if attempt.measured is not None and (before is None or self._is_better(attempt, before)):
            gained = 0.0 if before is None else before.drop(self.goal) - attempt.drop(self.goal)
            attempt = replace(attempt, better=True, gained=gained)
            self.best = attempt
        self.attempts.append(attempt)
        self.tell(attempt)

    def _is_better(self, attempt: Attempt, other: Attempt) -> bool:
        """Whether to build on it: a lesser drop, or less noise where drops differ by luck.

        Of all drops so far the least is what another may be behind by luck, so that luck does not
        add up from step to step.
        """
        own, best = attempt.measured, other.measured
        assert own is not None
        assert best is not None
        if self._is_enough(attempt):
            return True
        drop, luck = self._lost(attempt), self.goal.resolution
        if drop < self._lost(other) - luck:
            return True
        least = min(self._lost(a) for a in self.attempts if a.measured is not None)
        return drop <= least + luck and own.sqnr > best.sqnr

    def _rank(self, attempt: Attempt) -> tuple[float, float]:
        """Less for less drop, and of equal drops for less noise."""
        measured = attempt.measured
        return self._lost(attempt), math.inf if measured is None else -measured.sqnr

    def _lost(self, attempt: Attempt) -> float:
        """Its drop; to be better than the float model is luck, and counts for nothing."""
        return max(attempt.drop(self.goal), 0.0)

    def _is_enough(self, attempt: Attempt) -> bool:
        """Whether it meets the goal, simulated and deployed."""
        if attempt.measured is None or attempt.measured.deployed is None:
            return False
        return attempt.drop(self.goal) <= self.goal.max_drop + 1e-9


def _same(attempt: Attempt, measured: Measured) -> bool:
    return attempt.measured is not None and attempt.measured.digest == measured.digest
