"""The figures of a bench, from the times of single runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.benching import timing

TIMES = st.floats(min_value=1e-3, max_value=1e6)
TURNS = st.lists(st.lists(TIMES, min_size=1, max_size=6), min_size=1, max_size=8)


@given(st.lists(TIMES, min_size=1), st.floats(min_value=0.01, max_value=1.0))
def test_at_least_the_share_does_not_exceed_a_quantile_and_it_is_the_least_such(
    values: list[float], share: float
) -> None:
    found = timing.quantile(values, share)
    need = round(share * len(values), 9)
    assert found in values
    assert sum(x <= found for x in values) >= need
    assert sum(x < found for x in values) < need


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_quantile_of_nothing_or_outside_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match=r"give one or more|must be over 0"):
        timing.quantile(values, share)


@given(TURNS)
def test_the_median_is_not_over_the_p95_and_both_lie_among_the_times(
    turns: list[list[float]],
) -> None:
    flat = [x for turn in turns for x in turn]
    assert min(flat) <= timing.median(turns) <= max(flat)
    # Of few runs the median may lie between two, and still not over the larger.
    assert timing.median(turns) <= timing.p95(turns) <= max(flat)


@given(TURNS)
def test_a_row_is_as_fast_as_itself(turns: list[list[float]]) -> None:
    found = timing.ratio(turns, turns)
    assert found == timing.Ratio(median=1.0, low=1.0, high=1.0)
    assert found.spread == 0.0


@given(TURNS, st.floats(min_value=0.1, max_value=10.0), st.data())
def test_what_slows_both_rows_in_a_turn_does_not_change_their_ratio(
    turns: list[list[float]], factor: float, data: st.DataObject
) -> None:
    noise = [data.draw(st.floats(min_value=1.0, max_value=100.0)) for _ in turns]
    disturbed = [[x * n for x in turn] for turn, n in zip(turns, noise, strict=True)]
    slower = [[x * factor for x in turn] for turn in disturbed]
    found = timing.ratio(slower, disturbed)
    assert found is not None
    for value in (found.median, found.low, found.high):
        assert value == pytest.approx(factor)


@given(TURNS, TURNS)
def test_the_quartiles_stand_around_the_median_ratio(
    one: list[list[float]], other: list[list[float]]
) -> None:
    found = timing.ratio(one, other)
    assert found is not None
    assert found.low <= found.median <= found.high


def test_a_row_without_turns_has_no_ratio() -> None:
    assert timing.ratio([[1.0]], []) is None


@given(TURNS, st.integers(min_value=1, max_value=64))
def test_throughput_is_the_batch_at_the_median(turns: list[list[float]], batch: int) -> None:
    assert timing.throughput(turns, batch) * timing.median(turns) == pytest.approx(1e3 * batch)


@given(st.floats(min_value=0.0, max_value=1e5), st.floats(min_value=1.0, max_value=1e3))
def test_a_turn_has_runs_enough_to_last_and_no_more(run_ms: float, turn_ms: float) -> None:
    count = timing.runs_a_turn(run_ms, turn_ms, 100)
    assert 1 <= count <= 100
    if 1 < count < 100:
        assert (count - 1) * run_ms < turn_ms <= count * run_ms * (1 + 1e-9)


@given(st.lists(st.integers(), unique=True, max_size=6), st.integers(0, 100))
def test_in_every_turn_each_row_runs_once_and_the_first_of_one_is_the_second_of_the_last(
    order: list[int], turn: int
) -> None:
    now, then = timing.rotated(order, turn), timing.rotated(order, turn + 1)
    assert sorted(now) == sorted(order)
    assert now[1:2] == then[:1] or len(order) < 2
