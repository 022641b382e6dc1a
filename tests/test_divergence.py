"""The entropy search against a plain one, written from NVIDIA's description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy
from torch import Tensor

from quantkit import divergence
from quantkit.calibrators.entropy import Entropy
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

Floats = NDArray[np.float64]

#: What the reference's sums and ours may differ by: both are float64, added in another order.
SAME = 1e-9


def plain_divergences(histogram: Floats, levels: int) -> dict[int, float]:
    """KL(P ‖ Q) of each number of bins, as published: GTC 2017, S7310, and pytorch-quantization.

    P is ``bins[:i]`` with the outliers added to its last bin; Q is ``bins[:i]`` merged to the
    levels and spread over the bins of each that are not empty.
    """
    bins = histogram.astype(np.float64).copy()
    bins[0] = bins[1]
    found = {}
    for i in range(levels, len(bins) + 1):
        p = bins[:i].copy()
        p[-1] += bins[i:].sum()
        level = np.digitize(np.arange(i), np.linspace(0, i, levels + 1)) - 1
        level[bins[:i] == 0] = levels  # empty bins are of no level
        merged = np.bincount(level, weights=bins[:i], minlength=levels + 1)
        q = (merged / np.bincount(level, minlength=levels + 1).clip(1))[level]
        found[i] = float(entropy(p, q)) if q.sum() > 0 else math.inf
    return found


def plain_choice(found: dict[int, float], histogram: Floats) -> int:
    """The last of the least; sums of floats that differ by rounding alone are equal.

    Ours differs in one thing: at least half of the samples are inside.
    """
    bins = histogram.copy()
    bins[0] = bins[1]
    allowed = {i: value for i, value in found.items() if bins[:i].sum() >= bins.sum() / 2}
    least = min(allowed.values())
    return max(i for i, value in allowed.items() if value <= least + 1e-12)


def counts(samples: Floats, bins: int) -> Floats:
    """Magnitudes in bins of equal width, up to the largest."""
    return np.histogram(np.abs(samples), bins=bins, range=(0, np.abs(samples).max()))[0].astype(
        np.float64
    )


def spiked(bins: int) -> Floats:
    found = counts(np.random.default_rng(1).normal(size=50_000), bins)
    found[[5, bins // 3, bins // 2]] += 20_000
    return found


def sparse(bins: int) -> Floats:
    found = np.zeros(bins)
    found[np.random.default_rng(2).choice(bins, bins // 20, replace=False)] = 7
    found[[1, -1]] = 3
    return found


def few(bins: int) -> Floats:
    found = np.zeros(bins)
    found[[bins // 4, bins - 1]] = [5, 100_000]
    return found


RNG = np.random.default_rng
HISTOGRAMS = {
    "normal": lambda n: counts(RNG(0).normal(size=100_000), n),
    "laplace": lambda n: counts(RNG(0).laplace(size=100_000), n),
    "heavy tail": lambda n: counts(RNG(0).standard_t(2, size=100_000), n),
    "uniform": lambda n: counts(RNG(0).uniform(size=100_000), n),
    "after a ReLU": lambda n: counts(np.maximum(RNG(0).normal(size=100_000), 0), n),
    "few samples": lambda n: counts(RNG(0).normal(size=300), n),
    "one outlier": lambda n: counts(np.append(RNG(0).normal(size=20_000), 60.0), n),
    "flat": lambda n: np.full(n, 12.0),
    "spikes": spiked,
    "sparse": sparse,
    "two bins": few,
    "off zero": lambda n: counts(RNG(0).uniform(0.2, 1.0, size=256), n),
}
every = pytest.mark.parametrize("name", HISTOGRAMS)


def equal_levels(count: int) -> Tensor:
    return torch.arange(count + 1, dtype=torch.float64) / count


def search(histogram: Floats, levels: Tensor, stride: int = 1) -> int:
    chosen = divergence.least(torch.from_numpy(histogram).unsqueeze(0), levels, stride=stride)
    return int(chosen.item())


def assert_published(histogram: Floats, levels: int) -> None:
    """Each candidate's divergence and the choice are those of the plain search."""
    plain = plain_divergences(histogram, levels)
    counted = torch.from_numpy(histogram).unsqueeze(0).clone()
    counted[:, 0] = counted[:, 1]
    candidates = torch.tensor(list(plain))
    begins = torch.ceil(candidates.unsqueeze(1) * equal_levels(levels)).long()
    ours = divergence._divergence(counted, candidates, begins)[0]
    for (i, value), found in zip(plain.items(), ours.tolist(), strict=True):
        assert found == pytest.approx(value, abs=SAME), i
    assert search(histogram, equal_levels(levels)) == plain_choice(plain, histogram)


@pytest.mark.parametrize(
    ("spec", "count"),
    [(QuantSpec(), 128), (QuantSpec(dtype="uint8"), 128), (QuantSpec(dtype="int4"), 8)],
    ids=str,
)
def test_the_levels_of_symmetric_integers_are_equal_ones(spec: QuantSpec, count: int) -> None:
    assert torch.equal(divergence.levels(spec), equal_levels(count))


def test_a_grid_on_one_side_has_all_its_levels_there() -> None:
    spec = QuantSpec(dtype="uint8", symmetric=False)
    assert torch.equal(divergence.levels(spec, one_sided=True), equal_levels(256))


def test_the_levels_of_fp8_end_halfway_between_its_values() -> None:
    ends = divergence.levels(QuantSpec(dtype="fp8_e4m3")) * 448
    inside = (ends[:-1] + ends[1:]) / 2  # each rounds to one value, and each to another
    values = inside.float().to(torch.float8_e4m3fn).float()
    assert values.unique().numel() == ends.numel() - 1
    nudged = (ends[1:-1] * (1 + 1e-6)).float().to(torch.float8_e4m3fn).float()
    assert torch.equal(nudged, values[1:])


@every
def test_the_search_of_2048_bins_for_8_bits_is_the_published_one(name: str) -> None:
    assert_published(HISTOGRAMS[name](2048), 128)


@every
def test_the_search_of_256_bins_for_4_bits_is_the_published_one(name: str) -> None:
    assert_published(HISTOGRAMS[name](256), 8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 2, 50, 10_000]), min_size=31, max_size=31),
    st.integers(1, 10_000),
)
def test_any_histogram_is_searched_as_published(counted: list[int], last: int) -> None:
    assert_published(np.array([*counted, last], dtype=np.float64), 8)


def test_of_equal_thresholds_the_largest_is_chosen() -> None:
    """Two bins, each a level of its own: nothing is lost with either, so nothing is clipped."""
    assert search(few(2048), equal_levels(128)) == 2048


@pytest.mark.parametrize("name", [name for name in HISTOGRAMS if name != "off zero"])
def test_no_more_than_half_is_cut_by_the_published_search_either(name: str) -> None:
    histogram = HISTOGRAMS[name](2048)
    plain = plain_divergences(histogram, 128)
    least = min(plain.values())
    published = max(i for i, value in plain.items() if value <= least + 1e-12)
    assert published == plain_choice(plain, histogram)


def test_one_bin_below_all_others_is_not_the_threshold() -> None:
    """The published search keeps one sample of 256 here, whose own distribution it is then."""
    histogram = HISTOGRAMS["off zero"](2048)
    plain = plain_divergences(histogram, 128)
    published = min(plain, key=lambda i: plain[i])
    assert histogram[:published].sum() < 0.1 * histogram.sum()
    found = search(histogram, equal_levels(128))
    assert histogram[:found].sum() > 0.9 * histogram.sum()


def test_bins_beyond_the_largest_magnitude_change_nothing() -> None:
    counted = HISTOGRAMS["laplace"](512)
    padded = np.concatenate([counted, np.zeros(500)])
    assert search(padded, equal_levels(8)) == search(counted, equal_levels(8))


def test_all_in_fewer_bins_than_levels_is_covered_whole() -> None:
    counted = np.zeros(2048)
    counted[[0, 3, 40]] = 9
    assert search(counted, equal_levels(128)) == 41


@pytest.mark.parametrize("only", [None, 0, 1])
def test_rows_without_a_candidate_give_their_last_bin(only: int | None) -> None:
    counted = np.zeros(64)
    if only is not None:
        counted[only] = 5
    assert search(counted, equal_levels(8)) == 1 + (only or 0)


@pytest.mark.parametrize("stride", [3, 8, 200])
def test_a_stride_searches_every_so_many(stride: int) -> None:
    counted = HISTOGRAMS["heavy tail"](256)
    plain = plain_divergences(counted, 8)
    searched = {i: value for i, value in plain.items() if (i - 8) % stride == 0}
    assert search(counted, equal_levels(8), stride) == plain_choice(searched, counted)


@pytest.mark.parametrize("at_once", [None, 1, 200_000])
@pytest.mark.parametrize(
    "levels",
    [equal_levels(8), divergence.levels(QuantSpec(dtype="fp8_e4m3"))],
    ids=["int4", "fp8"],
)
def test_rows_together_are_those_of_each_alone(
    levels: Tensor, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.stack([make(512) for make in HISTOGRAMS.values()])
    alone = [search(row, levels) for row in rows]
    if at_once is not None:
        monkeypatch.setattr(divergence, "AT_ONCE", at_once)
    assert divergence.least(torch.from_numpy(rows), levels).tolist() == alone


def test_the_counts_that_are_searched_stay_as_they_are() -> None:
    counted = torch.from_numpy(HISTOGRAMS["normal"](64)).unsqueeze(0)
    before = counted.clone()
    divergence.least(counted, equal_levels(8))
    assert torch.equal(counted, before)


# --- the calibrator, on samples -------------------------------------------------------------------

SAMPLES = {
    "normal": lambda: RNG(7).normal(size=100_000),
    "laplace": lambda: RNG(7).laplace(size=100_000),
    "exponential": lambda: RNG(7).exponential(size=100_000),
    "tailed": lambda: RNG(7).standard_t(4, size=100_000),
    "after a ReLU": lambda: np.maximum(RNG(7).normal(size=100_000), 0),
    "uniform": lambda: RNG(7).uniform(size=100_000),
    "one outlier": lambda: np.append(RNG(7).normal(size=100_000), 60.0),
}


def compared(samples: Floats, calibrator: Entropy) -> tuple[float, float]:
    """Threshold and divergence beside those of the published search, as ratios.

    That divides ``[0, amax]`` into 2,048 bins; a histogram that merges has bins whose width is a
    power of two. Near its minimum the divergence is flat and uneven, so that the two may choose
    thresholds some way apart, of nearly one divergence: the least within 8 bins of ours.
    """
    x = samples.astype(np.float32)
    counted = counts(x.astype(np.float64), 2048)
    plain = plain_divergences(counted, 128)
    best = plain_choice(plain, counted)
    observer = Observer(QuantSpec(), calibrator)
    observer(torch.from_numpy(x))
    found = torch.stack(observer.range()).abs().max().item() / float(np.abs(x).max()) * 2048
    near = min(value for i, value in plain.items() if abs(i - max(found, 128)) <= 8)
    return found / best, near / plain[best]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_threshold_of_samples_is_as_good_as_the_published_one(name: str) -> None:
    threshold, loss = compared(SAMPLES[name](), Entropy())
    assert threshold == pytest.approx(1.0, abs=0.3)
    assert loss < 1.15
