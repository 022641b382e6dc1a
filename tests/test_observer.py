"""The observer: layout, statistics as buffers, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator
from quantkit.numerics import choose_qparams, scale_shape, tensor_range
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

SPECS = [
    QuantSpec(),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(axis=0),
    QuantSpec(axis=-1, symmetric=False),
    QuantSpec(dtype="int4", axis=1, group_size=2),
    QuantSpec(dtype="fp8_e4m3"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observer_for(x: Tensor, spec: QuantSpec, calibrator: Calibrator | None = None) -> Observer:
    channels = math.prod(scale_shape(x.shape, spec))
    return Observer(spec, calibrator or MinMax(), channels, "features.0")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_grid_of_two_batches_is_that_of_both_together(spec: QuantSpec) -> None:
    first, second = normal(4, 5, 3, seed=1), normal(4, 5, 3, seed=2) * 2
    observer = observer_for(first, spec)
    observer(first)
    observer(second)
    ranges = [tensor_range(x, spec) for x in (first, second)]
    expected = choose_qparams(
        torch.minimum(ranges[0][0], ranges[1][0]), torch.maximum(ranges[0][1], ranges[1][1]), spec
    )
    qparams = observer.calculate_qparams()
    assert torch.equal(qparams.scale.flatten(), expected.scale.flatten())
    assert torch.equal(qparams.zero_point.flatten(), expected.zero_point.flatten())


def test_forward_returns_the_very_tensor_and_its_gradient_flows() -> None:
    x = normal(3, 4).requires_grad_()
    observer = Observer(QuantSpec(), MinMax())
    y = observer(x * 1.0)
    y.sum().backward()
    assert observer(x) is x
    assert x.grad is not None
    assert not any(buffer.requires_grad for buffer in observer.buffers())


def test_an_empty_tensor_is_skipped() -> None:
    observer = Observer(QuantSpec(axis=1), MinMax(), channels=3)
    assert observer(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(DataError, match="observed nothing"):
        observer.calculate_qparams()
    observer(normal(2, 3))
    before = observer.range()
    observer(torch.zeros(0, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, observer.range(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("calibrator", [MinMax(), MovingAverage()], ids=str)
def test_nan_and_infinity_pass_forward_and_are_reported_with_the_name(
    bad: float, calibrator: Calibrator
) -> None:
    x = normal(4, 5)
    poisoned = x.clone()
    poisoned[2, 3] = bad
    observer = Observer(QuantSpec(), calibrator, name="features.0")
    for batch in (x, poisoned, x):
        observer(batch)
    with pytest.raises(DataError, match=r"'features\.0' has observed NaN or infinity"):
        observer.calculate_qparams()


def test_nothing_observed_is_reported_with_the_name() -> None:
    with pytest.raises(DataError, match=r"'features\.0' has observed nothing"):
        Observer(QuantSpec(), MinMax(), name="features.0").calculate_qparams()


def test_another_number_of_channels_is_reported_with_the_shape() -> None:
    observer = Observer(QuantSpec(axis=0), MinMax(), channels=3, name="w")
    with pytest.raises(DataError, match=r"'w' has 4 slices .* \(4, 2\).* prepared for 3"):
        observer(torch.zeros(4, 2))


def test_per_tensor_with_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="give an axis"):
        Observer(QuantSpec(), MinMax(), channels=2)


def test_half_precision_tensors_are_observed_exactly() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = normal(64).to(dtype)
        observer = Observer(QuantSpec(), MinMax())
        observer(x)
        assert observer.calculate_qparams().scale == x.float().abs().max() / 127


def test_reset_forgets_and_keeps_the_buffers() -> None:
    observer = Observer(QuantSpec(), MinMax())
    before = dict(observer.named_buffers())
    observer(normal(8))
    observer.reset()
    assert all(observer.get_buffer(key) is value for key, value in before.items())
    with pytest.raises(DataError, match="observed nothing"):
        observer.calculate_qparams()


def test_statistics_are_buffers_under_the_calibrators_names_and_round_trip() -> None:
    observer = Observer(QuantSpec(axis=0), MinMax(), channels=3)
    assert set(observer.state_dict()) == set(MinMax().start(3))
    observer(normal(3, 9))
    fresh = Observer(QuantSpec(axis=0), MinMax(), channels=3)
    fresh.load_state_dict(observer.state_dict())
    assert torch.equal(fresh.calculate_qparams().scale, observer.calculate_qparams().scale)


def test_a_deep_copy_owns_its_statistics() -> None:
    observer = Observer(QuantSpec(), MinMax())
    observer(torch.ones(4))
    other = copy.deepcopy(observer)
    other(torch.full((4,), 100.0))
    assert observer.calculate_qparams().scale == torch.tensor(1.0) / 127
    assert other.calculate_qparams().scale == torch.tensor(100.0) / 127


def test_half_keeps_the_statistics_in_float32() -> None:
    observer = Observer(QuantSpec(), MinMax())
    observer(torch.tensor([1e6, -0.1]))
    expected = observer.calculate_qparams().scale
    observer.half()
    assert observer.calculate_qparams().scale == expected
    assert {buffer.dtype for buffer in observer.buffers()} == {torch.float32}


def test_to_moves_the_statistics() -> None:
    observer = Observer(QuantSpec(), MinMax()).to("meta")
    assert {buffer.device.type for buffer in observer.buffers()} == {"meta"}


def test_statistics_are_taken_in_inference_mode() -> None:
    observer = Observer(QuantSpec(), MovingAverage())
    with torch.inference_mode():
        observer(torch.ones(3))
    observer(torch.ones(3))
    assert observer.calculate_qparams().scale == torch.tensor(1.0) / 127


@dataclass(frozen=True, kw_only=True)
class Recorder(Calibrator):
    """Keeps the rows' sums, to see what the observer hands over."""

    def start(self, channels: int) -> dict[str, Tensor]:
        return {"sums": torch.zeros(channels), "count": torch.zeros((), dtype=torch.int64)}

    def update(self, state: Mapping[str, Tensor], samples: Tensor) -> None:
        state["sums"].add_(samples.sum(1))
        state["count"].add_(samples.shape[1])

    def range(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return -state["sums"].abs(), state["sums"].abs()


def test_a_calibrator_is_given_channels_by_samples_in_float32() -> None:
    x = normal(2, 3, 4).double()
    observer = Observer(QuantSpec(axis=1), Recorder(), channels=3)
    observer(x)
    assert observer.get_buffer("count").item() == 8
    assert observer.get_buffer("sums").dtype == torch.float32
    torch.testing.assert_close(observer.get_buffer("sums"), x.float().sum((0, 2)))


@pytest.mark.parametrize("calibrator", [MinMax(), MovingAverage()], ids=str)
def test_observing_compiles_into_one_graph(calibrator: Calibrator) -> None:
    observer = Observer(QuantSpec(axis=1), calibrator, channels=3)
    eager = copy.deepcopy(observer)
    compiled = torch.compile(observer, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = normal(5, 3, seed=seed)
        compiled(x)
        eager(x)
    assert torch.equal(eager.calculate_qparams().scale, observer.calculate_qparams().scale)
