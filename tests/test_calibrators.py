"""What every calibrator promises, over every file of the folder; then each one's own results."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit import divergence, histogram, numerics, plugins, rounding_error
from quantkit.calibrators.entropy import Entropy
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.calibrators.mse import MSE
from quantkit.calibrators.percentile import Percentile
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer
from quantkit.spec import QuantSpec
from quantkit.statistics import Average

NAMES = plugins.names_of("calibrators", Calibrator)
each = pytest.mark.parametrize("name", NAMES)
#: One row a channel: the tests lay samples out as ``(channels, samples)``.
SPECS = [
    QuantSpec(axis=0),
    QuantSpec(dtype="uint8", symmetric=False, axis=0),
    QuantSpec(dtype="int4", axis=0),
    QuantSpec(dtype="fp8_e4m3", axis=0),
]
every_grid = pytest.mark.parametrize("spec", SPECS, ids=str)

Bounds = tuple[Tensor, Tensor]


def make(name: str) -> Calibrator:
    return plugins.find("calibrators", name, Calibrator)()


def observed(
    calibrator: Calibrator, batches: Sequence[Tensor], spec: QuantSpec = SPECS[0]
) -> Observer:
    observer = Observer(spec, calibrator, channels=batches[0].shape[0], name="conv1")
    for batch in batches:
        observer(batch)
    return observer


def found(calibrator: Calibrator, batches: Sequence[Tensor], spec: QuantSpec = SPECS[0]) -> Bounds:
    return observed(calibrator, batches, spec).range()


def assert_same(one: Bounds, other: Bounds) -> None:
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def assert_close(one: Bounds, other: Bounds) -> None:
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])


def depends_on_batches(calibrator: Calibrator) -> bool:
    return any(isinstance(statistic, Average) for statistic in calibrator.statistics)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def several() -> list[Tensor]:
    """Batches of channels of many kinds, the last without a sign."""
    batches = []
    for seed in range(4):
        x = normal(6, 500, seed=seed) * (1.0 + seed)
        x[1] = x[1].relu() * 1e-4
        x[2] = -x[2].abs().square()
        x[3] = x[3] + 40.0
        x[4] = x[4].sign() * 0.5
        x[5] = 0.0
        batches.append(x)
    return batches


# --- the contract ---------------------------------------------------------------------------------


@each
def test_it_is_a_frozen_value_with_settings_that_have_defaults(name: str) -> None:
    kind = plugins.find("calibrators", name, Calibrator)
    assert kind.__name__.lower() == name.replace("_", "")
    assert dataclasses.is_dataclass(kind)
    calibrator = kind()
    assert calibrator == kind()
    assert hash(calibrator) == hash(kind())
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(calibrator, field.name, None)
    for statistic in calibrator.statistics:
        assert statistic == next(s for s in kind().statistics if type(s) is type(statistic))


@each
@every_grid
@pytest.mark.parametrize("channels", [1, 3])
def test_before_any_sample_the_range_is_empty(name: str, spec: QuantSpec, channels: int) -> None:
    low, high = Observer(spec, make(name), channels).range()
    assert torch.equal(low, torch.full((channels,), torch.inf))
    assert torch.equal(high, torch.full((channels,), -torch.inf))


@each
@every_grid
def test_the_range_is_ordered_and_nowhere_beyond_what_was_seen(name: str, spec: QuantSpec) -> None:
    batches = several()
    low, high = found(make(name), batches, spec)
    everything = torch.cat(batches, 1)
    assert low.shape == high.shape == (6,)
    assert low.dtype == high.dtype == torch.float32
    assert bool((low <= high).all())
    assert bool((low >= everything.amin(1)).all())
    assert bool((high <= everything.amax(1)).all())


@each
@every_grid
def test_the_range_of_a_whole_tensor_is_that_of_its_one_row(name: str, spec: QuantSpec) -> None:
    x = normal(5, 700)
    whole = Observer(dataclasses.replace(spec, axis=None), make(name))
    whole(x)
    assert_same(whole.range(), found(make(name), [x.reshape(1, -1)], spec))


@each
@every_grid
def test_a_grid_of_the_range_keeps_a_normal_signal(name: str, spec: QuantSpec) -> None:
    x = normal(1, 4096)
    restored = numerics.fake_quantize(x, observed(make(name), [x], spec).calculate_qparams())
    assert numerics.sqnr(x, restored) > (10 if spec.dtype == "int4" else 25)


@each
@every_grid
def test_channels_do_not_disturb_each_other(name: str, spec: QuantSpec) -> None:
    batches = several()
    low, high = found(make(name), batches, spec)
    for channel in range(6):
        alone = found(make(name), [batch[channel : channel + 1] for batch in batches], spec)
        assert_close((low[channel : channel + 1], high[channel : channel + 1]), alone)


@each
@every_grid
@pytest.mark.parametrize("value", [0.0, -3.0, 3.124, 1e-30, 1e30])
def test_a_constant_channel_has_a_range_that_makes_a_grid(
    name: str, spec: QuantSpec, value: float
) -> None:
    x = torch.stack([torch.full((64,), value), torch.linspace(-1, 1, 64)])
    restored = numerics.fake_quantize(x, observed(make(name), [x, x], spec).calculate_qparams())
    error = (restored - x).abs()[0]
    assert bool((error <= max(abs(value) * 0.02, numerics.SCALE_FLOOR)).all())


@each
@every_grid
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_data_of_one_sign_keep_it(name: str, spec: QuantSpec, sign: float) -> None:
    x = normal(1, 2000).abs() * sign
    low, high = found(make(name), [x], spec)
    assert (high if sign < 0 else -low).item() <= 0
    assert (-low if sign < 0 else high).item() > 1


@each
def test_it_leaves_the_statistics_alone_and_returns_none_of_them(name: str) -> None:
    observer = observed(make(name), several())
    before = {key: value.clone() for key, value in observer.state.items()}
    first = observer.range()
    kept = [bound.clone() for bound in first]
    for bound in first:
        bound.fill_(7.0)
    assert_same(observer.range(), (kept[0], kept[1]))
    for key, value in before.items():
        assert torch.equal(observer.state[key], value)


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_grid
def test_nan_and_infinity_are_reported_whenever_they_come(
    name: str, bad: float, spec: QuantSpec
) -> None:
    good = normal(1, 64)
    poisoned = good.clone()
    poisoned[0, 5] = bad
    for batches in ([poisoned, good], [good, poisoned], [good, poisoned, good]):
        observer = observed(make(name), batches, spec)
        low, high = observer.range()
        assert not (low.isfinite() & high.isfinite()).item()
        with pytest.raises(DataError, match="conv1"):
            observer.calculate_qparams()


@each
@every_grid
def test_a_nan_changes_no_other_channel(name: str, spec: QuantSpec) -> None:
    batches = several()
    poisoned = [batch.clone() for batch in batches]
    poisoned[2][1, 7] = math.nan
    low, high = found(make(name), poisoned, spec)
    expected = found(make(name), batches, spec)
    others = [0, 2, 3, 4, 5]
    assert_close((low[others], high[others]), (expected[0][others], expected[1][others]))


@each
def test_what_it_has_seen_is_saved_with_the_observer(name: str) -> None:
    observer = observed(make(name), several())
    fresh = Observer(SPECS[0], make(name), channels=6)
    fresh.load_state_dict(observer.state_dict())
    for module in (observer, fresh):
        module(normal(6, 128, seed=9) * 50)
    assert_same(observer.range(), fresh.range())


@each
@every_grid
def test_the_same_samples_give_the_same_range(name: str, spec: QuantSpec) -> None:
    assert_same(found(make(name), several(), spec), found(make(name), several(), spec))


@each
@every_grid
def test_the_order_of_batches_does_not_matter(name: str, spec: QuantSpec) -> None:
    calibrator = make(name)
    first, second = (found(calibrator, order, spec) for order in (several(), several()[::-1]))
    # A mean is added in another order.
    (assert_close if depends_on_batches(calibrator) else assert_same)(first, second)


@pytest.mark.parametrize("name", [name for name in NAMES if not depends_on_batches(make(name))])
@every_grid
@pytest.mark.parametrize("size", [1, 150, 2000])
def test_the_size_of_batches_does_not_matter(name: str, spec: QuantSpec, size: int) -> None:
    samples = torch.cat(several(), 1)[:, ::40] if size == 1 else torch.cat(several(), 1)
    assert_same(
        found(make(name), samples.split(size, dim=1), spec), found(make(name), [samples], spec)
    )


@each
@every_grid
def test_two_halves_of_the_data_merge_into_the_whole(name: str, spec: QuantSpec) -> None:
    calibrator = make(name)
    halves = [observed(calibrator, part, spec) for part in (several()[:1], several()[1:])]
    for statistic in halves[0].statistics:
        statistic.merge(halves[0].state, halves[1].state)
    whole = found(calibrator, several(), spec)
    (assert_close if depends_on_batches(calibrator) else assert_same)(halves[0].range(), whole)


# --- each one's own -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), min_size=1, max_size=5))
def test_min_max_is_the_range_of_everything(batches: list[list[float]]) -> None:
    low, high = found(MinMax(), [torch.tensor([batch]) for batch in batches])
    everything = [value for batch in batches for value in batch]
    assert (low.item(), high.item()) == (min(everything), max(everything))


@pytest.mark.parametrize("momentum", [None, 0.2, 1.0])
def test_moving_average_stays_between_the_narrowest_and_the_widest_batch(
    momentum: float | None,
) -> None:
    batches = [normal(1, 64, seed=s) * (1 + s % 3) for s in range(9)]
    low, high = found(MovingAverage(momentum=momentum), batches)
    lows, highs = [float(b.min()) for b in batches], [float(b.max()) for b in batches]
    assert min(lows) <= low.item() <= max(lows)
    assert min(highs) <= high.item() <= max(highs)


def samples_for_percentiles() -> Tensor:
    x = normal(4, 10_007) * torch.tensor([[1.0], [1e-8], [1e8], [1.0]])
    x[3] = x[3].exp() - 1
    return x


def ranked(x: Tensor, percent: float) -> Tensor:
    """The smallest sample that as many percent of a row's samples do not exceed."""
    return torch.from_numpy(np.percentile(x.numpy(), percent, axis=1, method="inverted_cdf"))


@pytest.mark.parametrize("percentile", [51.0, 80.0, 99.0, 99.9, 99.99, 100.0])
def test_a_symmetric_percentile_is_that_of_magnitudes_within_a_bin(percentile: float) -> None:
    x = samples_for_percentiles()
    observer = observed(Percentile(percentile=percentile), [x])
    low, high = observer.range()
    threshold = torch.maximum(-low, high).double()
    error = (threshold - ranked(x.abs(), percentile)).abs()
    assert bool((error <= histogram.widths(observer.state["exponent"])).all())


@pytest.mark.parametrize("percentile", [80.0, 99.0, 99.9, 99.99, 100.0])
def test_an_asymmetric_percentile_leaves_out_half_of_the_rest_at_either_end(
    percentile: float,
) -> None:
    x = samples_for_percentiles()
    observer = observed(Percentile(percentile=percentile), [x], QuantSpec(symmetric=False, axis=0))
    low, high = (bound.double() for bound in observer.range())
    rest = (100.0 - percentile) / 2
    width = histogram.widths(observer.state["exponent"])
    assert bool(((low + ranked(-x, 100.0 - rest)).abs() <= width).all())
    assert bool(((high - ranked(x, 100.0 - rest)).abs() <= width).all())


def test_a_percentile_of_100_is_min_max() -> None:
    for spec in SPECS:
        assert_same(
            found(Percentile(percentile=100.0), several(), spec), found(MinMax(), several(), spec)
        )


@every_grid
def test_a_tensor_of_nearly_all_zeros_keeps_its_whole_range(spec: QuantSpec) -> None:
    x = torch.zeros(1, 1000)
    x[0, :2] = torch.tensor([-2.0, 5.0])
    low, high = found(Percentile(percentile=99.0), [x], spec)
    assert (low.item(), high.item()) == (-2.0, 5.0)


def test_entropy_covers_both_signs_to_one_threshold() -> None:
    x = normal(1, 50_000)
    low, high = found(Entropy(), [torch.cat([x, torch.tensor([[40.0, -30.0]])], 1)])
    assert low.item() == -high.item()
    assert high.item() < x.abs().max().item() * 1.1


def test_entropy_of_an_asymmetric_grid_of_one_sign_has_all_its_levels_there() -> None:
    x = normal(1, 20_000).square()
    for spec, count in ((QuantSpec(dtype="uint8", axis=0), 128), (SPECS[1], 256)):
        observer = observed(Entropy(bins=4096), [x], spec)
        magnitudes = histogram.magnitudes(observer.state["counts"])
        levels = torch.arange(count + 1, dtype=torch.float64) / count
        chosen = divergence.least(magnitudes, levels) * histogram.widths(observer.state["exponent"])
        assert observer.range()[1].item() == min(chosen.item(), x.max().item())


DISTRIBUTIONS: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: normal(1, 20_000),
    "after a ReLU": lambda: normal(1, 20_000).relu(),
    "after a GELU": lambda: torch.nn.functional.gelu(normal(1, 20_000) * 2),
    "squares": lambda: normal(1, 20_000).square(),
    "negative": lambda: -normal(1, 20_000).square(),
    "cubes": lambda: normal(1, 20_000) ** 3,
    "off zero": lambda: normal(1, 20_000) + 5.0,
    "one outlier": lambda: torch.cat([normal(1, 20_000), torch.tensor([[60.0]])], 1),
    "two values": lambda: normal(1, 20_000).sign() * 0.75 + 0.25,
}


def true_error(x: Tensor, observer: Observer) -> float:
    restored = numerics.fake_quantize(x, observer.calculate_qparams())
    return float((restored.double() - x.double()).square().sum())


@pytest.mark.parametrize("candidates", [2, 33, 64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@every_grid
def test_mse_is_never_worse_than_min_max(
    distribution: str, spec: QuantSpec, candidates: int
) -> None:
    """In the error that it searches; and within 2 % in the samples' own."""
    x = DISTRIBUTIONS[distribution]()
    ours, plain = (observed(c, [x], spec) for c in (MSE(candidates=candidates), MinMax()))
    both = rounding_error.spans(ours.state["counts"], ours.state["exponent"], 1024)
    if spec.symmetric and spec.dtype != "int4":
        both = rounding_error.folded(both)
    errors = [
        rounding_error.noise_of_ranges(both, *(bound.unsqueeze(1) for bound in o.range()), spec)
        for o in (ours, plain)
    ]
    assert errors[0].item() <= errors[1].item() * (1 + 1e-6)
    assert true_error(x, ours) <= true_error(x, plain) * 1.02 + 1e-12


@every_grid
def test_mse_finds_the_least_error_of_any_threshold(spec: QuantSpec) -> None:
    """Within 2 % of an exhaustive search over the samples themselves."""
    x = DISTRIBUTIONS["squares"]()
    clipped = []
    for end in torch.linspace(0.05, 1.0, 60) * x.max():
        qparams = observed(MinMax(), [x.clamp(max=float(end))], spec).calculate_qparams()
        restored = numerics.fake_quantize(x, qparams).double()
        clipped.append(float((restored - x.double()).square().sum()))
    assert true_error(x, observed(MSE(), [x], spec)) <= min(clipped) * 1.02


def test_mse_uses_the_code_that_int4_has_more_below_zero() -> None:
    """Of an even spread from -3 to 0 and n steps of s, the error n s³ / 12 + (3 - n s)³ / 3 is
    least where s = 3 / (n + 1/2); n is 8, not 7.
    """
    spec = QuantSpec(dtype="int4", axis=0)
    x = -3.0 * torch.rand(1, 50_000, generator=torch.Generator().manual_seed(0))
    scale = observed(MSE(), [x], spec).calculate_qparams().scale.item()
    assert scale == pytest.approx(3.0 / 8.5, rel=0.01)


REFUSED: list[tuple[Callable[..., Calibrator], dict[str, Any], str]] = [
    *((MovingAverage, {"momentum": bad}, "momentum") for bad in (0.0, -0.1, 1.5, math.nan)),
    *((Percentile, {"percentile": bad}, "percentile") for bad in (50.0, -1.0, 100.1, math.nan)),
    *((MSE, {"candidates": bad}, "candidates") for bad in (1, 0, -4)),
    *((Entropy, {"bins": bad}, "bins|power of two") for bad in (0, 3, 1000, 8192)),
    *((Entropy, {"stride": bad}, "stride") for bad in (0, -1)),
    *((kind, {"half": 1000}, "power of two") for kind in (Percentile, MSE, Entropy)),
]


@pytest.mark.parametrize(("kind", "chosen", "why"), REFUSED)
def test_settings_that_make_no_sense_are_refused(
    kind: Callable[..., Calibrator], chosen: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        kind(**chosen)
    assert str(next(iter(chosen.values()))) in str(raised.value)
