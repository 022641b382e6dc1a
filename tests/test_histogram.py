"""Histograms: exact whatever the order, the batches and the values; merged by joining bins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantkit import histogram

HALVES = [4, 64, 4096]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
mild = st.floats(-100.0, 100.0, width=32)
rows_of = st.integers(1, 3).flatmap(
    lambda rows: st.lists(
        st.lists(finite | mild, min_size=rows, max_size=rows), min_size=1, max_size=30
    )
)
half_of = st.sampled_from(HALVES)
checked = settings(max_examples=60, deadline=None, derandomize=True)


def empty(rows: int, half: int) -> tuple[Tensor, Tensor]:
    return (
        torch.zeros(rows, 2 * half, dtype=torch.int64),
        torch.full((rows,), histogram.FINEST, dtype=torch.int32),
    )


def built(batches: Sequence[Tensor], half: int) -> tuple[Tensor, Tensor]:
    """Counts and exponents of batches of shape ``(rows, samples)``."""
    counts, exponent = empty(batches[0].shape[0], half)
    for batch in batches:
        histogram.add_(counts, exponent, batch, batch.abs().amax(1))
    return counts, exponent


def plain(samples: Sequence[float], half: int) -> tuple[NDArray[np.int64], int]:
    """One row, sample by sample, in exact arithmetic: a division by a power of two has no error."""
    exponent = histogram.FINEST
    while any(abs(math.trunc(math.ldexp(x, -exponent))) >= half for x in samples):
        exponent += 1
    counts = np.zeros(2 * half, dtype=np.int64)
    for x in samples:
        counts[half + math.trunc(math.ldexp(x, -exponent))] += 1
    return counts, exponent


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checked
@given(rows_of, half_of)
def test_counts_are_those_of_a_plain_implementation(samples: list[list[float]], half: int) -> None:
    x = torch.tensor(samples).T
    counts, exponent = built([x], half)
    for row in range(x.shape[0]):
        expected, place = plain(x[row].tolist(), half)
        assert exponent[row].item() == place
        assert counts[row].tolist() == expected.tolist()


@checked
@given(rows_of, half_of, st.data())
def test_counts_depend_on_neither_the_order_nor_the_batches(
    samples: list[list[float]], half: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(samples))
    cuts = sorted([*data.draw(st.lists(st.integers(1, len(samples)), max_size=4)), len(samples)])
    parts, start = [], 0
    for cut in cuts:
        if cut > start:
            parts.append(torch.tensor(shuffled[start:cut]).T)
        start = cut
    assert_same(built(parts, half), built([torch.tensor(samples).T], half))


@checked
@given(rows_of, rows_of, half_of)
def test_two_histograms_merge_into_that_of_all_samples(
    first: list[list[float]], second: list[list[float]], half: int
) -> None:
    rows = min(len(first[0]), len(second[0]))
    a, b = torch.tensor(first).T[:rows], torch.tensor(second).T[:rows]
    ours, theirs = built([a], half), built([b], half)
    target = torch.maximum(ours[1], theirs[1])
    joined = sum(histogram.coarsen(*one, target) for one in (ours, theirs))
    assert isinstance(joined, Tensor)
    assert_same((joined, target), built([torch.cat([a, b], 1)], half))


@checked
@given(rows_of, half_of, st.integers(0, 40), st.integers(0, 40))
def test_widening_twice_is_widening_once_by_both(
    samples: list[list[float]], half: int, first: int, second: int
) -> None:
    counts, exponent = built([torch.tensor(samples).T], half)
    between, target = exponent + first, exponent + first + second
    in_two = histogram.coarsen(histogram.coarsen(counts, exponent, between), between, target)
    assert torch.equal(in_two, histogram.coarsen(counts, exponent, target))
    assert torch.equal(in_two.sum(1), counts.sum(1))


@checked
@given(st.lists(finite, min_size=1, max_size=20), half_of)
def test_the_largest_magnitude_lies_in_the_upper_half(samples: list[float], half: int) -> None:
    counts, exponent = built([torch.tensor([samples])], half)
    last = int(histogram.magnitudes(counts)[0].nonzero().max())
    assert last >= half // 2 or exponent.item() == histogram.FINEST


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "samples",
    [
        [0.0, -0.0],
        [1e-45, -1e-40, 0.0],
        [2.0**-126, 1e-30],
        [3.4028234e38, -3.4028234e38, 1e-38, 1.0],
        [1.0, 2.0, 4.0, -(2.0**20)],
        [-7.25] * 9,
        [math.nextafter(1.0, 0.0), 1.0],
    ],
    ids=str,
)
def test_extreme_values_are_counted_one_after_the_other(samples: list[float], half: int) -> None:
    x = torch.tensor([samples])
    counts, exponent = built([x[:, i : i + 1] for i in range(x.shape[1])], half)
    expected, place = plain(x[0].tolist(), half)
    assert exponent.item() == place
    assert counts[0].tolist() == expected.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_finite_counts_as_zero_and_changes_no_other_row(
    bad: float, first: bool
) -> None:
    x = normal(3, 50)
    poisoned, zeroed = x.clone(), x.clone()
    poisoned[1, 7], zeroed[1, 7] = bad, 0.0
    others = [normal(3, 20, seed=1) * 9]
    batches, expected = [poisoned], [zeroed]
    if first:
        batches, expected = batches + others, expected + others
    else:
        batches, expected = others + batches, others + expected
    assert_same(built(batches, 64), built(expected, 64))


def test_a_row_of_nothing_but_nan_is_a_row_of_zeros() -> None:
    counts, exponent = built([torch.full((1, 6), math.nan)], 8)
    assert (counts[0, 8].item(), counts.sum().item()) == (6, 6)
    assert exponent.item() == histogram.FINEST


def test_many_rows_are_those_of_each_alone() -> None:
    x = normal(3000, 7) * torch.logspace(-30, 30, 3000).unsqueeze(1)
    counts, exponent = built([x, x * 3], 16)
    for row in range(0, 3000, 251):
        alone = built([x[row : row + 1], x[row : row + 1] * 3], 16)
        assert_same((counts[row : row + 1], exponent[row : row + 1]), alone)


@pytest.mark.parametrize("chunk", [1, 5, 16, 50])
@pytest.mark.parametrize("rows", [1, 3])
def test_samples_are_counted_once_wherever_chunks_end(
    chunk: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(rows, 203)
    whole = built([x], 4)
    assert whole[0].sum().item() == x.numel()
    monkeypatch.setattr(histogram, "CHUNK", chunk)
    assert_same(built([x], 4), whole)


def test_the_layout_in_memory_does_not_matter() -> None:
    x = normal(203, 3)
    for samples in (x.T, x.repeat_interleave(2, 1).T[::2], x.T[:, ::2], x[:1].T.expand(3, 50)):
        assert not samples.is_contiguous()
        assert_same(built([samples], 16), built([samples.contiguous()], 16))


@checked
@given(rows_of, half_of, st.sampled_from([math.nan, math.inf, 0.5]))
def test_the_way_of_other_devices_counts_the_same(
    samples: list[list[float]], half: int, last: float
) -> None:
    x = torch.tensor(samples).T.clone()
    x[-1, -1] = last
    counts, exponent = empty(x.shape[0], half)
    for batch in (x[:, :1], x):
        histogram._add_at_once(counts, exponent, batch)
    assert_same((counts, exponent), built([x[:, :1], x], half))


def test_counting_compiles_into_one_graph() -> None:
    compiled = torch.compile(histogram.add_, backend="aot_eager", fullgraph=True)
    counts, exponent = empty(2, 64)
    batches = [normal(2, 90, seed=seed) * 10**seed for seed in range(3)]
    for batch in batches:
        compiled(counts, exponent, batch, batch.abs().amax(1))
    assert_same((counts, exponent), built(batches, 64))


def test_widths_and_their_reciprocals_are_exact_powers_of_two() -> None:
    exponent = torch.arange(histogram.FINEST, 127, dtype=torch.int32)
    powers = [math.ldexp(1.0, e) for e in exponent.tolist()]
    assert histogram.widths(exponent).tolist() == powers
    assert histogram._reciprocal(exponent).flatten().tolist() == [1.0 / p for p in powers]


@pytest.mark.parametrize("half", HALVES)
def test_no_float_is_too_large_for_a_reciprocal(half: int) -> None:
    largest = torch.tensor([torch.finfo(torch.float32).max])
    assert histogram.exponent_for(largest, half).item() <= 126


def test_magnitudes_and_sides_hold_every_sample() -> None:
    x = normal(2, 500)
    counts, exponent = built([x], 64)
    below, above = histogram.sides(counts)
    both = histogram.magnitudes(counts)
    assert torch.equal(both, built([x.abs()], 64)[0][:, 64:])
    assert torch.equal(both[:, 1:], (below + above)[:, 1:])
    nonzero = (x / histogram.widths(exponent).unsqueeze(1)).abs() >= 1
    assert torch.equal(above.sum(1), (nonzero & (x > 0)).sum(1))
    assert torch.equal(below.sum(1), (nonzero & (x < 0)).sum(1))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_the_power_is_that_of_the_samples_to_a_part_of_a_bin(scale: float) -> None:
    x = torch.stack([normal(5000), normal(5000, seed=1).relu(), normal(5000).exp()]) * scale
    counts, exponent = built([x], 4096)
    width, size = histogram.widths(exponent), x.double().abs()
    # x² changes by at most 2|x|w + w² in a bin of width w.
    bound = (size * 2 * width.unsqueeze(1) + width.unsqueeze(1).square()).sum(1)
    error = (histogram.power(counts, exponent) - size.square().sum(1)).abs()
    assert bool((error <= bound).all())
    assert bool((error / size.square().sum(1) < 1e-3).all())


@pytest.mark.parametrize("half", [4, 8, 4096])
def test_a_power_of_two_of_bins_is_taken(half: int) -> None:
    histogram.check_bins(half)


@pytest.mark.parametrize("half", [-4, 0, 1, 2, 3, 6, 1000, 4097])
def test_any_other_number_of_bins_is_refused(half: int) -> None:
    with pytest.raises(ValueError, match=f"a power of two of bins a side, 4 or more, got {half}"):
        histogram.check_bins(half)
