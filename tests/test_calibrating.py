"""From statistics to grids: all tensors at once are each tensor alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from quantkit import plugins
from quantkit.calibrating import choose, ranges
from quantkit.calibrators.entropy import Entropy
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.calibrators.mse import MSE
from quantkit.calibrators.percentile import Percentile
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator
from quantkit.numerics import QParams
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

FORMS = [
    (QuantSpec(), 1),
    (QuantSpec(axis=1), 3),
    (QuantSpec(axis=1), 5),
    (QuantSpec(dtype="uint8", symmetric=False), 1),
    (QuantSpec(dtype="uint8", symmetric=False, axis=1), 4),
    (QuantSpec(dtype="int4"), 1),
    (QuantSpec(bits=7), 1),
    (QuantSpec(dtype="fp8_e4m3"), 1),
]
CALIBRATORS = [
    plugins.find("calibrators", name, Calibrator)()
    for name in plugins.names_of("calibrators", Calibrator)
]
each = pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)


def samples(seed: int, channels: int) -> Tensor:
    x = torch.randn(40, channels, 6, generator=torch.Generator().manual_seed(seed))
    return x.relu() if seed % 3 == 2 else x * 10.0 ** (seed % 7 - 3)


def seen(observer: Observer, seed: int) -> Observer:
    for batch in samples(seed, observer.channels).split(16):
        observer(batch)
    return observer


def mixed(calibrator: Calibrator) -> Iterator[Observer]:
    for seed, (spec, channels) in enumerate([*FORMS, *FORMS]):
        yield seen(Observer(spec, calibrator, channels, name=f"layer{seed}"), seed)


def assert_same(found: QParams, expected: QParams) -> None:
    assert found.spec == expected.spec
    torch.testing.assert_close(found.scale, expected.scale)
    assert torch.equal(found.zero_point, expected.zero_point)


@each
def test_all_tensors_at_once_have_the_grids_of_each_alone(calibrator: Calibrator) -> None:
    observers = list(mixed(calibrator))
    for observer, qparams in zip(observers, choose(observers), strict=True):
        assert_same(qparams, observer.calculate_qparams())


def test_each_tensor_follows_its_own_calibrator() -> None:
    kinds = [MinMax(), Percentile(percentile=90.0), MovingAverage(), MinMax(), MSE(half=64), MSE()]
    observers = [
        seen(Observer(QuantSpec(), kind, name=f"layer{i}"), i) for i, kind in enumerate(kinds)
    ]
    for observer, qparams in zip(observers, choose(observers), strict=True):
        assert_same(qparams, observer.calculate_qparams())


@each
def test_another_calibrator_is_asked_without_the_data(calibrator: Calibrator) -> None:
    observers = []
    for seed, (spec, channels) in enumerate(FORMS):
        observer = Observer(spec, MinMax(), channels, name=f"layer{seed}")
        observer.keep(calibrator.statistics)
        observers.append(seen(observer, seed))
    own = list(mixed(calibrator))[: len(FORMS)]
    for observer, qparams in zip(own, choose(observers, calibrator), strict=True):
        assert_same(qparams, observer.calculate_qparams())
    for observer, qparams in zip(observers, choose(observers), strict=True):
        assert_same(qparams, observer.calculate_qparams())


@pytest.mark.parametrize("asked", [Entropy(), MovingAverage(), MSE(half=64)], ids=str)
def test_a_calibrator_whose_statistics_were_not_kept_is_refused(asked: Calibrator) -> None:
    observer = Observer(QuantSpec(), MinMax(), name="features.0")
    if isinstance(asked, MSE):
        observer.keep(MSE().statistics)
    seen(observer, 0)
    with pytest.raises(DataError, match=r"was not kept of tensor 'features\.0'; keep it"):
        choose([observer], asked)


def test_a_tensor_that_cannot_be_calibrated_is_named_among_others() -> None:
    good = seen(Observer(QuantSpec(), Entropy(), name="good"), 0)
    unseen = Observer(QuantSpec(), Entropy(), name="unseen")
    with pytest.raises(DataError, match="'unseen' has observed nothing"):
        choose([good, unseen])
    unseen(torch.tensor([1.0, math.nan]))
    with pytest.raises(DataError, match="'unseen' has observed NaN"):
        choose([good, unseen])


def test_no_tensors_have_no_grids() -> None:
    assert choose([]) == []


@each
def test_the_ranges_of_many_states_are_those_of_each(calibrator: Calibrator) -> None:
    spec = QuantSpec(axis=1)
    observers = [
        seen(Observer(spec, calibrator, channels), seed)
        for seed, channels in enumerate([3, 1, 7, 3])
    ]
    before = [{key: value.clone() for key, value in o.state.items()} for o in observers]
    low, high = ranges([o.state for o in observers], calibrator, spec)
    for observer, *found in zip(observers, low, high, strict=True):
        for bound, expected in zip(found, observer.range(), strict=True):
            assert bound.shape == (observer.channels,)
            torch.testing.assert_close(bound, expected)
    for observer, state in zip(observers, before, strict=True):
        assert all(torch.equal(observer.state[key], value) for key, value in state.items())


def test_the_axis_of_a_grid_changes_no_range() -> None:
    observer = seen(Observer(QuantSpec(axis=1), Entropy(), channels=3), 0)
    for axis in (0, 1, None):
        spec = dataclasses.replace(observer.spec, axis=axis)
        (low,), (high,) = ranges([observer.state], Entropy(), spec)
        assert torch.equal(low, observer.range()[0])
        assert torch.equal(high, observer.range()[1])
