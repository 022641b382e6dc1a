"""The error of grids, computed from a histogram, against that of the samples themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quantkit import numerics, rounding_error
from quantkit.rounding_error import Spans
from quantkit.spec import QuantSpec
from quantkit.statistics import Histogram

SPECS = [
    QuantSpec(),
    QuantSpec(bits=7),
    QuantSpec(dtype="int4"),
    QuantSpec(dtype="int4", symmetric=False),
    QuantSpec(dtype="uint8"),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(dtype="fp8_e4m3"),
]
#: Of the largest value: from none of the samples clipped to most of them.
FRACTIONS = [1.0, 0.83, 0.5, 0.31, 0.1]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal() -> Tensor:
    return torch.randn(30_000, generator=generator())


def exponential() -> Tensor:
    return torch.empty(30_000).exponential_(generator=generator())


SAMPLES: dict[str, Callable[[], Tensor]] = {
    "normal": normal,
    "after a ReLU": lambda: normal().relu(),
    "uniform": lambda: torch.rand(30_000, generator=generator()) * 2 - 1,
    "laplace": lambda: exponential() * normal().sign(),
    "exponential": exponential,
    "negative": lambda: -exponential(),
    "heavy tail": lambda: normal() / (exponential() + 0.2),
    "off zero": lambda: normal() * 0.1 + 3.0,
    "tiny": lambda: normal() * 3.7e-3,
    "after a GELU": lambda: torch.nn.functional.gelu(normal() * 2),
}


def spans(x: Tensor, most: int | None = None) -> Spans:
    """Of samples ``(rows, samples)``."""
    state = Histogram().start(x.shape[0])
    Histogram().update(state, x, x.amin(1), x.amax(1))
    return rounding_error.spans(state["counts"], state["exponent"], most)


def true_noise(x: Tensor, low: Tensor, high: Tensor, spec: QuantSpec) -> float:
    qparams = numerics.choose_qparams(low.clamp(max=0.0), high.clamp(min=0.0), spec)
    return float((numerics.fake_quantize(x, qparams).double() - x.double()).square().sum())


def decibels(x: Tensor, spec: QuantSpec, most: int | None) -> list[float]:
    """How far the SQNR of the histogram is from that of the samples, for each range."""
    found = []
    both = spans(x.unsqueeze(0), most)
    for fraction in FRACTIONS:
        low, high = x.min() * fraction, x.max() * fraction
        ours = rounding_error.noise_of_ranges(both, low.view(1, 1), high.view(1, 1), spec).item()
        found.append(10 * math.log10(ours / true_noise(x, low, high, spec)))
    return found


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_noise_of_a_histogram_is_that_of_its_samples(name: str, spec: QuantSpec) -> None:
    """Within 0.05 dB of SQNR with all 4,096 bins a side."""
    assert max(map(abs, decibels(SAMPLES[name](), spec, None))) < 0.05


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_joined_bins_tell_nearly_as_much(name: str, spec: QuantSpec) -> None:
    """Within 0.15 dB with 1,024 spans; 0.5 where one span holds a peak, as GELU's at -0.17."""
    bound = 0.5 if name == "after a GELU" else 0.15
    assert max(map(abs, decibels(SAMPLES[name](), spec, 1024))) < bound


EDGES = torch.tensor([1.0, 4.0, 32.0, 33.0, 100.0, 256.0], dtype=torch.float64)
COUNTS = [3.0, 0.0, 7.0, 1.0, 2.0]


def flat_error(on_grid: Callable[[Tensor], Tensor]) -> float:
    """The squared error of samples that lie evenly in each span, one beside the other."""
    error = 0.0
    for count, first, last in zip(COUNTS, EDGES[:-1], EDGES[1:], strict=True):
        x = first + (last - first) * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        error += count * float((on_grid(x) - x).square().mean())
    return error


def flat_noise(scale: float, end: float, spec: QuantSpec) -> float:
    counts = torch.tensor([COUNTS], dtype=torch.float64)
    both = Spans(torch.zeros_like(counts), counts, EDGES, torch.ones(1, dtype=torch.float64))
    grids = [torch.full((1, 1), value, dtype=torch.float64) for value in (scale, 0.0, end)]
    return rounding_error.noise(both, *grids, spec).item()


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7, 40.0])
@pytest.mark.parametrize("end", [0.0, 8.1, 27.0, 120.0, 400.0])
def test_the_error_of_a_flat_density_is_integrated_exactly(scale: float, end: float) -> None:
    """However wide a step is beside the bins, and wherever the grid ends in them."""
    end = scale * round(end / scale)
    expected = flat_error(lambda x: ((x / scale).round() * scale).clamp(max=end))
    assert flat_noise(scale, end, QuantSpec()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 0.02, 0.3, 1.0, 40.0, 3e4])
def test_the_error_of_fp8_is_integrated_exactly_too(scale: float) -> None:
    def on_grid(x: Tensor) -> Tensor:
        steps = (x / scale).clamp(max=448.0).float()
        return steps.to(torch.float8_e4m3fn).double() * scale

    noise = flat_noise(scale, 448.0 * scale, QuantSpec(dtype="fp8_e4m3"))
    assert noise == pytest.approx(flat_error(on_grid), rel=1e-5)


def test_what_lies_below_zero_is_clipped_by_its_own_end() -> None:
    x = normal().unsqueeze(0)
    spec = QuantSpec(dtype="uint8", symmetric=False)
    for low, high in ((-1.0, 3.0), (-4.0, 0.5), (0.0, 2.0), (-2.0, 0.0)):
        ends = torch.tensor([[low]]), torch.tensor([[high]])
        ours = rounding_error.noise_of_ranges(spans(x), *ends, spec).item()
        true = true_noise(x, *(end.squeeze() for end in ends), spec)
        assert ours == pytest.approx(true, rel=0.01)


def test_folded_spans_hold_the_magnitudes() -> None:
    x = normal().unsqueeze(0)
    folded, magnitudes = rounding_error.folded(spans(x)), spans(x.abs())
    assert torch.equal(folded.above, magnitudes.above)
    assert not folded.below.any()


@pytest.mark.parametrize("most", [None, 4096, 1024, 2])
def test_spans_hold_every_sample_beyond_the_bin_of_zero(most: int | None) -> None:
    x = normal().unsqueeze(0)
    both = spans(x, most)
    assert both.below.shape == both.above.shape == (1, both.edges.numel() - 1)
    assert both.edges[0] == 1
    assert bool((both.edges.diff() > 0).all())
    outside = x.abs() >= both.width
    assert both.above.sum() == (outside & (x > 0)).sum()
    assert both.below.sum() == (outside & (x < 0)).sum()


def test_samples_in_the_bin_of_zero_make_at_most_its_width_of_error_each() -> None:
    """They are taken as zeros: an outlier far beyond all else hides the error of the rest."""
    x = torch.cat([normal() * 1e-3, torch.tensor([50.0])])
    both = spans(x.unsqueeze(0))
    ours = rounding_error.noise_of_ranges(
        both, -x.max().view(1, 1), x.max().view(1, 1), QuantSpec()
    ).item()
    true = true_noise(x, -x.max(), x.max(), QuantSpec())
    assert ours <= true <= ours + x.numel() * both.width.item() ** 2


@pytest.mark.parametrize("at_once", [None, 1, 5_000])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_and_grids_together_are_those_of_each_alone(
    spec: QuantSpec, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.stack([SAMPLES[name]()[:2000] for name in SAMPLES])
    high = x.amax(1, keepdim=True).clamp(min=0) * torch.tensor(FRACTIONS)
    low = x.amin(1, keepdim=True).clamp(max=0) * torch.tensor(FRACTIONS)
    alone = torch.cat(
        [
            torch.cat(
                [
                    rounding_error.noise_of_ranges(
                        spans(x[row : row + 1], 256),
                        low[row, None, [k]],
                        high[row, None, [k]],
                        spec,
                    )
                    for k in range(len(FRACTIONS))
                ],
                dim=1,
            )
            for row in range(x.shape[0])
        ]
    )
    if at_once is not None:
        monkeypatch.setattr(rounding_error, "AT_ONCE", at_once)
    together = rounding_error.noise_of_ranges(spans(x, 256), low, high, spec)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_end_may_be_the_same_for_all_grids(spec: QuantSpec) -> None:
    both = spans(normal().unsqueeze(0))
    low, high = torch.tensor([[-2.0]]), torch.tensor([[1.0, 3.0, 4.0]])
    torch.testing.assert_close(
        rounding_error.noise_of_ranges(both, low, high, spec),
        rounding_error.noise_of_ranges(both, low.expand(1, 3), high, spec),
    )
