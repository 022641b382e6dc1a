"""What every calibrator promises, over every file of the folder; then each one's own results."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import quantkit.calibrators
from quantkit import numerics
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(quantkit.calibrators.__path__)
    if not module.name.startswith("_")
)
each = pytest.mark.parametrize("name", NAMES)


def classes(name: str) -> list[type[Calibrator]]:
    module = importlib.import_module(f"quantkit.calibrators.{name}")
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Calibrator)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]


def make(name: str) -> Calibrator:
    (kind,) = classes(name)
    return kind()


def run(
    calibrator: Calibrator, batches: Sequence[Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    state = calibrator.start(batches[0].shape[0])
    for batch in batches:
        calibrator.update(state, batch)
    return *calibrator.range(state), state


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@each
def test_a_file_holds_one_frozen_calibrator_with_settings_that_have_defaults(name: str) -> None:
    (kind,) = classes(name)
    assert kind.__name__.lower() == name.replace("_", "")
    assert dataclasses.is_dataclass(kind)
    calibrator = kind()
    assert calibrator == kind()
    hash(calibrator)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(calibrator, field.name, None)


@each
@pytest.mark.parametrize("channels", [1, 3])
def test_before_any_sample_the_range_is_empty(name: str, channels: int) -> None:
    calibrator = make(name)
    low, high = calibrator.range(calibrator.start(channels))
    assert torch.equal(low, torch.full((channels,), torch.inf))
    assert torch.equal(high, torch.full((channels,), -torch.inf))


@each
def test_the_range_is_finite_ordered_and_not_beyond_what_was_seen(name: str) -> None:
    batches = [normal(3, 512, seed=s) * (1 + s) for s in range(3)]
    low, high, _ = run(make(name), batches)
    amax = torch.cat(batches, 1).abs().amax(1)
    assert low.shape == high.shape == (3,)
    assert bool((low < high).all())
    # Calibrators of |x| cover both signs; a histogram may cover its last bin whole.
    assert bool((torch.maximum(low.abs(), high.abs()) <= amax * 1.02).all())


@each
def test_a_grid_of_the_range_keeps_a_normal_signal(name: str) -> None:
    x = normal(1, 4096)
    low, high, _ = run(make(name), [x])
    spec = QuantSpec()
    qparams = numerics.choose_qparams(low.reshape(()), high.reshape(()), spec)
    assert numerics.sqnr(x, numerics.fake_quantize(x, qparams)) > 25


@each
def test_channels_do_not_disturb_each_other(name: str) -> None:
    batches = [normal(2, 512, seed=s) * torch.tensor([[1.0], [50.0]]) for s in range(2)]
    low, high, _ = run(make(name), batches)
    for channel in range(2):
        alone_low, alone_high, _ = run(make(name), [b[channel : channel + 1] for b in batches])
        torch.testing.assert_close(low[channel : channel + 1], alone_low)
        torch.testing.assert_close(high[channel : channel + 1], alone_high)


@each
@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30])
def test_a_constant_channel_has_a_range_that_makes_a_grid(name: str, value: float) -> None:
    x = torch.stack([torch.full((64,), value), torch.linspace(-1, 1, 64)])
    low, high, _ = run(make(name), [x, x])
    qparams = numerics.choose_qparams(low, high, QuantSpec(axis=0))
    restored = numerics.fake_quantize(x, qparams)
    assert bool(restored.isfinite().all())
    error = (restored - x).abs()[0]
    assert bool((error <= max(abs(value) * 0.02, numerics.SCALE_FLOOR)).all())


@each
def test_the_state_changes_in_place_and_keeps_its_form(name: str) -> None:
    calibrator = make(name)
    state = calibrator.start(2)
    before = {key: (value, value.shape, value.dtype) for key, value in state.items()}
    for seed in range(3):
        calibrator.update(state, normal(2, 64, seed=seed) * 10**seed)
    assert set(state) == set(before)
    for key, (value, shape, dtype) in before.items():
        assert state[key] is value
        assert (value.shape, value.dtype) == (shape, dtype)
        assert not value.requires_grad


@each
def test_it_leaves_samples_alone_and_keeps_no_reference_to_them(name: str) -> None:
    calibrator = make(name)
    x = normal(2, 64)
    kept = x.clone()
    state = calibrator.start(2)
    calibrator.update(state, x)
    before = calibrator.range(state)
    assert torch.equal(x, kept)
    x.zero_()
    for a, b in zip(before, calibrator.range(state), strict=True):
        assert torch.equal(a, b)
        a.fill_(7.0)  # what it returned is not its state either
    assert not torch.equal(before[0], calibrator.range(state)[0])


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_reported_whenever_they_come(name: str, bad: float) -> None:
    good = normal(64)
    poisoned = good.clone()
    poisoned[5] = bad
    for batches in ([poisoned, good], [good, poisoned], [good, poisoned, good]):
        observer = Observer(QuantSpec(), make(name), name="conv1")
        for batch in batches:
            observer(batch)
        with pytest.raises(DataError, match="conv1"):
            observer.calculate_qparams()


@each
def test_what_it_has_seen_is_saved_with_the_observer(name: str) -> None:
    spec = QuantSpec(axis=0)
    observer, fresh = (Observer(spec, make(name), channels=2) for _ in range(2))
    observer(normal(2, 128))
    fresh.load_state_dict(observer.state_dict())
    for module in (observer, fresh):
        module(normal(2, 128, seed=1))
    assert torch.equal(observer.calculate_qparams().scale, fresh.calculate_qparams().scale)


@each
def test_the_same_samples_give_the_same_range(name: str) -> None:
    batches = [normal(2, 256, seed=s) for s in range(2)]
    first, second = run(make(name), batches), run(make(name), batches)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# --- each one's own -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), min_size=1, max_size=5))
def test_min_max_is_the_range_of_everything(batches: list[list[float]]) -> None:
    low, high, _ = run(MinMax(), [torch.tensor([batch]) for batch in batches])
    everything = [value for batch in batches for value in batch]
    assert (low.item(), high.item()) == (min(everything), max(everything))


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_moving_average_equals_torch_ao_bit_for_bit(momentum: float) -> None:
    from torch.ao.quantization.observer import MovingAveragePerChannelMinMaxObserver

    theirs = MovingAveragePerChannelMinMaxObserver(averaging_constant=momentum)
    batches = [normal(4, 32, seed=s) * (1 + s) for s in range(6)]
    for batch in batches:
        theirs(batch)
    low, high, _ = run(MovingAverage(momentum=momentum), batches)
    assert torch.equal(low, theirs.min_val)
    assert torch.equal(high, theirs.max_val)


def test_moving_average_stays_between_the_narrowest_and_the_widest_batch() -> None:
    batches = [normal(1, 64, seed=s) * (1 + s % 3) for s in range(9)]
    low, high, _ = run(MovingAverage(momentum=0.2), batches)
    lows, highs = [float(b.min()) for b in batches], [float(b.max()) for b in batches]
    assert min(lows) <= low.item() <= max(lows)
    assert min(highs) <= high.item() <= max(highs)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, math.nan])
def test_a_momentum_that_is_no_weight_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must be above 0"):
        MovingAverage(momentum=momentum)
