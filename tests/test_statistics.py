"""Statistics: what they keep in place, and that parts of the data give what all of it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit import histogram
from quantkit.interfaces import Statistic
from quantkit.statistics import Average, Histogram, Range

STATISTICS = [Range(), Average(), Average(momentum=0.1), Histogram(half=64), Histogram()]
each = pytest.mark.parametrize("statistic", STATISTICS, ids=str)
#: A mean in float64, added in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

State = dict[str, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def several(count: int, rows: int = 3) -> list[Tensor]:
    return [normal(rows, 20 + 7 * seed, seed=seed) * (1.0 + seed) for seed in range(count)]


def seen(statistic: Statistic, batches: Sequence[Tensor], rows: int = 3) -> State:
    state = statistic.start(rows)
    for batch in batches:
        statistic.update(state, batch, batch.amin(1), batch.amax(1))
    return state


def merged(statistic: Statistic, parts: Sequence[Sequence[Tensor]], rows: int = 3) -> State:
    state = statistic.start(rows)
    for part in parts:
        statistic.merge(state, seen(statistic, part, rows))
    return state


def reduced(statistic: Statistic, parts: Sequence[Sequence[Tensor]], rows: int = 3) -> list[State]:
    """As that many processes would end: each is a thread, and a reduction waits for all."""
    given: dict[int, Tensor] = {}
    together = Barrier(len(parts), timeout=30)
    combine = {"min": torch.amin, "max": torch.amax, "sum": torch.sum}

    def process(rank: int) -> State:
        def reduce(x: Tensor, how: Literal["min", "max", "sum"]) -> None:
            given[rank] = x.clone()
            together.wait()
            result = combine[how](torch.stack(list(given.values())), dim=0)
            together.wait()
            x.copy_(result)

        state = seen(statistic, parts[rank], rows)
        statistic.reduce(state, reduce)
        return state

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(process, range(len(parts))))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **CLOSE)


@each
def test_a_state_changes_in_place_and_keeps_its_form(statistic: Statistic) -> None:
    state = statistic.start(2)
    before = {key: (value, value.shape, value.dtype) for key, value in state.items()}
    for batch in several(3, rows=2):
        statistic.update(state, batch, batch.amin(1), batch.amax(1))
    statistic.merge(state, seen(statistic, several(2, rows=2), rows=2))
    statistic.reduce(state, lambda x, how: None)
    assert set(state) == set(before)
    for key, (value, shape, dtype) in before.items():
        assert state[key] is value
        assert (value.shape, value.dtype) == (shape, dtype)


@each
def test_the_other_state_of_a_merge_stays_as_it_is(statistic: Statistic) -> None:
    other = seen(statistic, several(2))
    before = {key: value.clone() for key, value in other.items()}
    statistic.merge(seen(statistic, several(3)), other)
    assert_same(other, before)


@each
def test_states_of_two_statistics_have_other_names(statistic: Statistic) -> None:
    for other in STATISTICS:
        if type(other) is not type(statistic):
            assert not set(statistic.start(1)) & set(other.start(1))


@each
def test_to_merge_what_has_seen_nothing_changes_nothing(statistic: Statistic) -> None:
    state, expected = seen(statistic, several(3)), seen(statistic, several(3))
    statistic.merge(state, statistic.start(3))
    assert_same(state, expected)
    assert_same(merged(statistic, [[], several(3)]), expected)
    assert_same(merged(statistic, [[], []]), statistic.start(3))


@each
def test_one_process_reduces_to_what_it_has_seen(statistic: Statistic) -> None:
    expected = seen(statistic, several(3))
    # An average goes through sums: (x * n) / n.
    torch.testing.assert_close(reduced(statistic, [several(3)])[0], expected)


@each
def test_processes_without_any_data_reduce_to_nothing_seen(statistic: Statistic) -> None:
    for state in reduced(statistic, [[], [], []]):
        assert_same(state, statistic.start(3))


EXACT = [s for s in STATISTICS if not isinstance(s, Average)]
SHARES = [
    [several(4)[:2], several(4)[2:]],
    [several(4)[:1], [], several(4)[1:]],
    [[], several(4)],
    [several(4)[::2], several(4)[1::2]],
]


@pytest.mark.parametrize("statistic", EXACT, ids=str)
@pytest.mark.parametrize("shares", SHARES, ids=["2", "none in the middle", "none first", "dealt"])
def test_ranges_and_histograms_of_parts_are_exactly_those_of_all(
    statistic: Statistic, shares: list[list[Tensor]]
) -> None:
    expected = seen(statistic, several(4))
    assert_same(merged(statistic, shares), expected)
    for state in reduced(statistic, shares):
        assert_same(state, expected)


@pytest.mark.parametrize("shares", SHARES, ids=["2", "none in the middle", "none first", "dealt"])
def test_a_plain_mean_of_parts_is_that_of_all(shares: list[list[Tensor]]) -> None:
    expected = seen(Average(), several(4))
    assert_close(merged(Average(), shares), expected)
    for state in reduced(Average(), shares):
        assert_close(state, expected)


@pytest.mark.parametrize("shares", SHARES, ids=["2", "none in the middle", "none first", "dealt"])
def test_moving_averages_of_processes_are_averaged_by_their_numbers_of_batches(
    shares: list[list[Tensor]],
) -> None:
    statistic = Average(momentum=0.2)
    parts = [seen(statistic, share) for share in shares if share]
    counts = torch.stack([part["batches"] for part in parts]).unsqueeze(1)
    found = [merged(statistic, shares), *reduced(statistic, shares)]
    for key in ("average_minimum", "average_maximum"):
        stacked = torch.stack([part[key].double() for part in parts])
        expected = ((stacked * counts).sum(0) / counts.sum()).float()
        for state in found:
            torch.testing.assert_close(state[key], expected)
    assert all(state["batches"].item() == 4 for state in found)


# --- the range ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=1), min_size=1, max_size=5))
def test_the_range_is_that_of_everything(batches: list[list[float]]) -> None:
    state = seen(Range(), [torch.tensor([batch]) for batch in batches], rows=1)
    everything = [value for batch in batches for value in batch]
    assert state["minimum"].item() == min(everything)
    assert state["maximum"].item() == max(everything)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_finite_stays_in_the_range_of_its_row(bad: float, where: int) -> None:
    batches = several(3)
    batches[where][1, 4] = bad
    expected = seen(Range(), several(3))
    parts = [batches[:1], batches[1:]]
    for state in (seen(Range(), batches), merged(Range(), parts), *reduced(Range(), parts)):
        poisoned = torch.stack([state["minimum"], state["maximum"]]).isfinite().all(0)
        assert poisoned.tolist() == [True, False, True]
        for key, value in expected.items():
            assert torch.equal(state[key][::2], value[::2])


def test_a_nan_survives_a_reduction_that_ignores_nan() -> None:
    """As some backends do: ``fmin`` of a NaN and a number is the number."""
    batch = several(1)
    poisoned = [batch[0].clone()]
    poisoned[0][1, 0] = math.nan
    states = [seen(Range(), poisoned), seen(Range(), batch)]
    handed: dict[str, list[Tensor]] = {"min": [], "max": []}
    for state in states:
        Range().reduce(state, lambda x, how: handed[how].append(x))
    low, high = torch.fmin(*handed["min"]), torch.fmax(*handed["max"])
    assert (low.isfinite() & high.isfinite()).tolist() == [True, False, True]


# --- the average ----------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_a_moving_average_equals_torch_ao_bit_for_bit(momentum: float) -> None:
    from torch.ao.quantization.observer import MovingAveragePerChannelMinMaxObserver

    theirs = MovingAveragePerChannelMinMaxObserver(averaging_constant=momentum)
    batches = several(6)
    for batch in batches:
        theirs(batch)
    state = seen(Average(momentum=momentum), batches)
    assert torch.equal(state["average_minimum"], theirs.min_val)
    assert torch.equal(state["average_maximum"], theirs.max_val)


def test_the_first_batch_counts_as_it_is_and_then_by_the_momentum() -> None:
    batches = [torch.tensor([[-1.0, 1.0]]), torch.tensor([[-3.0, 9.0]])]
    state = seen(Average(momentum=0.25), batches[:1], rows=1)
    assert (state["average_minimum"].item(), state["average_maximum"].item()) == (-1.0, 1.0)
    state = seen(Average(momentum=0.25), batches, rows=1)
    assert (state["average_minimum"].item(), state["average_maximum"].item()) == (-1.5, 3.0)


def test_of_a_momentum_of_one_only_the_newest_batch_counts() -> None:
    state = seen(Average(momentum=1.0), several(4))
    torch.testing.assert_close(state["average_maximum"], several(4)[-1].amax(1))


def test_without_a_momentum_it_is_the_mean_whatever_the_order() -> None:
    batches = several(7)
    expected = torch.stack([batch.amax(1).double() for batch in batches]).mean(0)
    for order in (batches, batches[::-1]):
        torch.testing.assert_close(seen(Average(), order)["average_maximum"], expected, **CLOSE)


def test_a_mean_of_many_batches_keeps_the_last() -> None:
    """float32 would stand still: 1e6 + 1 / 20,000 is 1e6 there."""
    statistic = Average()
    state = statistic.start(1)
    for index in range(20_000):
        value = torch.tensor([1e6 + index % 2])
        statistic.update(state, value.unsqueeze(1), value, value)
    assert state["average_maximum"].item() == pytest.approx(1e6 + 0.5, rel=1e-12)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_a_nan_stays_in_an_average(momentum: float | None) -> None:
    batches = several(3)
    batches[1][0, 0] = math.nan
    state = seen(Average(momentum=momentum), batches)
    assert state["average_maximum"].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, math.nan])
def test_a_momentum_that_is_no_weight_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must be above 0 and at most 1"):
        Average(momentum=momentum)


# --- the histogram --------------------------------------------------------------------------------


def test_a_histogram_counts_every_sample() -> None:
    batches = several(3)
    state = seen(Histogram(half=64), batches)
    assert state["counts"].sum(1).tolist() == [sum(batch.shape[1] for batch in batches)] * 3
    amax = torch.cat(batches, 1).abs().amax(1)
    assert bool((amax < 64 * histogram.widths(state["exponent"])).all())


def test_counts_beyond_the_integers_of_float32_are_exact() -> None:
    state = seen(Histogram(half=8), several(1))
    many = {key: value.clone() for key, value in state.items()}
    many["counts"].mul_(1 << 40)
    Histogram(half=8).merge(many, state)
    assert torch.equal(many["counts"], state["counts"] * ((1 << 40) + 1))


@pytest.mark.parametrize("half", [0, 3, 1000])
def test_a_number_of_bins_that_does_not_merge_is_refused(half: int) -> None:
    with pytest.raises(ValueError, match="a power of two of bins a side"):
        Histogram(half=half)
