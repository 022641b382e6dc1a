"""The climb, with a bench that knows no model and a clock that does what it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from quantkit.errors import DataError, QuantkitError
from quantkit.recipe import Recipe, SchemeChoice
from quantkit.recovering.goal import Attempt, Deadline, Goal, Measured, OutOfTimeError
from quantkit.recovering.search import Bench, Climb
from quantkit.recovering.steps import Candidate, Facts, Propose, Skip, Step

BASE = Recipe(name="base", scheme=SchemeChoice())


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake(Bench):
    """Values by change; each candidate takes ``seconds``, and those of ``broken`` fail."""

    clock: Clock
    values: Mapping[str, float]
    noise: Mapping[str, float] = field(default_factory=dict)
    deployed: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    broken: Mapping[str, QuantkitError] = field(default_factory=dict)
    before: Mapping[str, Measured] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)
    built_on: list[str] = field(default_factory=list)

    def facts(self, best: Recipe, deadline: Deadline, *, ranked: bool) -> Facts:
        self.built_on.append(best.name)
        if ranked:
            self.clock.now += 3.0
        return Facts(ranking=(("a",), ("b",)) if ranked else None)

    def known(self, candidate: Candidate) -> Measured | None:
        return self.before.get(candidate.change)

    def measure(self, candidate: Candidate, deadline: Deadline) -> Measured:
        self.tried.append(candidate.change)
        seconds = self.seconds.get(candidate.change, 1.0)
        if deadline.left < seconds:
            self.clock.now += deadline.left
            raise OutOfTimeError
        self.clock.now += seconds
        if candidate.change in self.broken:
            raise self.broken[candidate.change]
        value = self.values.get(candidate.change, 80.0)
        sqnr = self.noise.get(candidate.change, value)
        return Measured(value=value, sqnr=sqnr, seconds=seconds, digest=f"{value} {sqnr}")

    def deploy(self, candidate: Candidate, measured: Measured) -> Measured:
        value = self.deployed.get(candidate.change, measured.value)
        return Measured(
            value=measured.value, sqnr=measured.sqnr, seconds=measured.seconds,
            digest=measured.digest, deployed=value,
        )  # fmt: skip


def step(name: str, *changes: str, cost: float = 1.0, ranked: bool = False) -> Step:
    def propose(best: Recipe, facts: Facts) -> tuple[Candidate, ...]:
        own = [best.model_copy(update={"name": change}) for change in changes]
        return tuple(
            Candidate(step=name, change=change, recipe=r)
            for change, r in zip(changes, own, strict=True)
        )

    return Step(name=name, cost=cost, propose=propose, ranked=ranked)


def climbed(
    fake: Fake, ladder: Sequence[Step], *, drop: float = 1.0, limit: float = math.inf,
    resolution: float = 0.0,
) -> Climb:  # fmt: skip
    goal = Goal(metric="accuracy", unit="%", floating=90.0, max_drop=drop, resolution=resolution)
    told: list[Attempt] = []
    climb = Climb(fake, goal, Deadline(at=limit, clock=fake.clock), told.append)
    climb.run(BASE, ladder)
    assert told == climb.attempts
    return climb


def fake(values: Mapping[str, float], **others: object) -> Fake:
    return Fake(Clock(), {"the recipe as it is": 80.0, **values}, **others)  # type: ignore[arg-type]


def changes(climb: Climb) -> list[str]:
    return [attempt.change for attempt in climb.attempts]


def test_the_recipe_as_it_is_ends_it_where_it_is_good_enough() -> None:
    bench = fake({"the recipe as it is": 89.5})
    climb = climbed(bench, [step("one", "a")])
    assert climb.met
    assert changes(climb) == ["the recipe as it is"]


def test_it_stops_at_the_first_that_meets_the_goal() -> None:
    bench = fake({"a": 85.0, "b": 89.0, "c": 90.0, "d": 90.0})
    climb = climbed(bench, [step("one", "a", "b", "c"), step("two", "d")])
    assert bench.tried == ["the recipe as it is", "a", "b"]
    assert climb.best is not None
    assert (climb.best.change, climb.met) == ("b", True)
    assert [attempt.better for attempt in climb.attempts] == [True, True, True]
    assert [attempt.gained for attempt in climb.attempts] == [0.0, 5.0, 4.0]


def test_each_step_builds_on_the_best_so_far() -> None:
    bench = fake({"a": 85.0, "b": 82.0, "c": 86.0})
    climb = climbed(bench, [step("one", "a", "b"), step("two", "c"), step("three", "d")])
    assert bench.built_on == ["base", "a", "c"]
    assert climb.best is not None
    assert climb.best.changes == ("a", "c")
    assert not climb.met


def test_what_is_worse_deployed_is_not_enough() -> None:
    bench = fake({"a": 89.5, "b": 89.2}, deployed={"a": 70.0})
    climb = climbed(bench, [step("one", "a"), step("two", "b")])
    assert climb.best is not None
    assert (climb.best.change, climb.met) == ("b", True)
    assert not climb.attempts[1].better
    assert "20.00" in climb.attempts[1].note


def test_a_candidate_that_fails_is_a_row_and_the_climb_goes_on() -> None:
    bench = fake({"b": 89.5}, broken={"a": DataError("no such thing; give another")})
    climb = climbed(bench, [step("one", "a", "b")])
    assert (climb.attempts[1].status, climb.attempts[1].note) == (
        "failed", "no such thing; give another",
    )  # fmt: skip
    assert climb.met


def test_a_recipe_that_fails_as_it_is_is_an_error() -> None:
    bench = fake({}, broken={"the recipe as it is": DataError("broken; mend it")})
    with pytest.raises(DataError, match="broken"):
        climbed(bench, [step("one", "a")])


def test_a_defect_is_no_row() -> None:
    bench = fake({}, broken={"a": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        climbed(bench, [step("one", "a")])


def test_a_step_with_nothing_to_propose_says_why() -> None:
    why: Propose = lambda best, facts: Skip(why="it has no batch-norm")  # noqa: E731
    climb = climbed(fake({}), [Step(name="one", cost=1.0, propose=why)])
    assert (climb.attempts[1].status, climb.attempts[1].note) == ("skipped", "it has no batch-norm")


def test_a_step_that_would_take_too_long_is_skipped_and_a_cheaper_one_is_not() -> None:
    bench = fake({"b": 85.0})
    climb = climbed(bench, [step("dear", "a", cost=10.0), step("cheap", "b")], limit=5.0)
    assert climb.attempts[1].note == "would take about 10 s, and 4 s are left"
    assert bench.tried == ["the recipe as it is", "b"]


def test_what_a_candidate_took_is_what_the_next_of_its_step_is_expected_to_take() -> None:
    bench = fake({}, seconds={"a": 4.0})
    climb = climbed(bench, [step("one", "a", "b", "c")], limit=8.0)
    assert bench.tried == ["the recipe as it is", "a"]
    assert climb.attempts[2].note == "would take about 4 s, and 3 s are left"


def test_time_that_ends_inside_a_step_ends_the_step() -> None:
    bench = fake({"a": 89.9}, seconds={"a": 100.0})
    climb = climbed(bench, [step("one", "a"), step("two", "b")], limit=5.0)
    assert [attempt.status for attempt in climb.attempts] == ["measured", "stopped", "skipped"]
    assert climb.attempts[2].note == "no time is left"
    assert bench.clock.now == 5.0


def test_the_recipe_as_it_is_is_measured_whatever_the_limit() -> None:
    bench = fake({}, seconds={"the recipe as it is": 100.0})
    climb = climbed(bench, [step("one", "a")], limit=5.0)
    assert climb.best is not None
    assert climb.best.step == "baseline"
    assert bench.tried == ["the recipe as it is"]


def test_layers_are_ranked_only_where_there_is_time() -> None:
    late = fake({})
    climbed(late, [step("one", "a", cost=10.0, ranked=True)], limit=5.0)
    assert late.clock.now == 1.0
    early = fake({})
    climb = climbed(early, [step("one", "a", cost=10.0, ranked=True)], limit=50.0)
    assert climb.attempts[1].seconds == 4.0  # the ranking counts


def test_what_an_earlier_run_has_measured_is_not_measured_again() -> None:
    known = Measured(value=85.0, sqnr=20.0, seconds=50.0, digest="x")
    bench = fake({"b": 89.5}, before={"a": known})
    climb = climbed(bench, [step("one", "a"), step("two", "b")], limit=5.0)
    assert bench.tried == ["the recipe as it is", "b"]
    assert climb.attempts[1].note == "of an earlier run"
    assert climb.attempts[1].seconds == 0.0


def test_of_candidates_that_differ_by_luck_that_of_less_noise_is_built_on() -> None:
    values, noise = {"a": 82.0, "b": 81.0, "c": 80.5}, {"a": 10.0, "b": 20.0, "c": 30.0}
    climb = climbed(fake(values, noise=noise), [step("one", "a", "b", "c")], resolution=1.0)
    # c is 1.5 behind a: more than luck.
    assert [attempt.better for attempt in climb.attempts] == [True, True, True, False]


def test_the_best_of_a_climb_that_fails_is_that_of_the_least_drop() -> None:
    values, noise = {"a": 82.0, "b": 81.0}, {"a": 10.0, "b": 20.0}
    climb = climbed(fake(values, noise=noise), [step("one", "a", "b")], resolution=1.0)
    assert climb.best is not None
    assert climb.best.change == "a"


def test_better_than_float_is_luck_so_noise_decides() -> None:
    values, noise = {"a": 95.0, "b": 90.0}, {"a": 10.0, "b": 20.0}
    bench = fake(values, noise=noise, deployed={"a": 90.0, "b": 90.0})
    # Nothing may be gained by a target that wants the impossible.
    goal = Goal(metric="accuracy", unit="%", floating=90.0, max_drop=-0.5)
    climb = Climb(bench, goal, Deadline(at=math.inf, clock=bench.clock), lambda attempt: None)
    for change in ("a", "b"):
        climb._note(
            Attempt(
                step="one", change=change,
                measured=bench.measure(
                    Candidate(step="one", change=change, recipe=BASE), climb.deadline
                ),
            )
        )  # fmt: skip
    assert climb.best is not None
    assert climb.best.change == "b"


def test_equal_models_are_told_of() -> None:
    climb = climbed(fake({"a": 85.0, "b": 85.0}), [step("one", "a", "b")])
    assert climb.attempts[2].note == "the same model as one: a"
    assert not climb.attempts[2].better


def test_of_an_error_less_is_better() -> None:
    goal = Goal(metric="mse", unit="", floating=1.0, max_drop=0.5, lower_is_better=True)
    assert goal.is_met(1.5)
    assert not goal.is_met(1.6)
    assert goal.is_met(0.1)


def test_no_number_is_never_enough() -> None:
    goal = Goal(metric="accuracy", unit="%", floating=90.0, max_drop=0.5)
    assert not goal.is_met(math.nan)
    measured = Measured(value=math.nan, sqnr=1.0, seconds=1.0, digest="x")
    assert Attempt(step="one", measured=measured).drop(goal) == math.inf
