"""The observer: layout, statistics as buffers, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from quantkit.calibrators.entropy import Entropy
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.calibrators.percentile import Percentile
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator, Reduce, Statistic
from quantkit.numerics import choose_qparams, scale_shape, tensor_range
from quantkit.observer import Observer
from quantkit.spec import QuantSpec
from quantkit.statistics import Average, Histogram, Range

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


def test_statistics_are_buffers_under_their_own_names_and_round_trip() -> None:
    observer = Observer(QuantSpec(axis=0), MinMax(), channels=3)
    assert set(observer.state_dict()) == set(Range().start(3))
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
class Sums(Statistic):
    """The rows' sums, to see what the observer hands over."""

    weight: float = 1.0

    def start(self, channels: int) -> dict[str, Tensor]:
        return {"sums": torch.zeros(channels), "count": torch.zeros((), dtype=torch.int64)}

    def update(
        self, state: Mapping[str, Tensor], samples: Tensor, low: Tensor, high: Tensor
    ) -> None:
        assert samples.dtype == low.dtype == high.dtype == torch.float32
        assert torch.equal(low, samples.amin(1))
        assert torch.equal(high, samples.amax(1))
        state["sums"].add_(samples.sum(1), alpha=self.weight)
        state["count"].add_(samples.shape[1])

    def merge(self, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def reduce(self, state: Mapping[str, Tensor], reduce: Reduce) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Others(Sums):
    """Of the same names as another statistic."""


def test_a_statistic_is_given_channels_by_samples_in_float32_and_their_ranges() -> None:
    x = normal(2, 3, 4).double()
    observer = Observer(QuantSpec(axis=1), MinMax(), channels=3)
    observer.keep([Sums()])
    observer(x)
    assert observer.state["count"].item() == 8
    torch.testing.assert_close(observer.state["sums"], x.float().sum((0, 2)))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_histogram_is_taken_of_any_layout(axis: int) -> None:
    x = normal(4, 5, 3)
    rows = x.movedim(axis, 0).flatten(1)
    observer = observer_for(x, QuantSpec(axis=axis), Entropy())
    observer(x.movedim(0, -1).contiguous().movedim(-1, 0))
    expected = Observer(QuantSpec(axis=0), Entropy(), channels=rows.shape[0])
    expected(rows.contiguous())
    assert torch.equal(observer.state["counts"], expected.state["counts"])


# --- what is kept ---------------------------------------------------------------------------------


def test_the_state_is_the_buffers_themselves() -> None:
    observer = Observer(QuantSpec(), Entropy())
    observer(normal(9))
    assert set(observer.state) == {key for key, _ in observer.named_buffers()}
    assert all(observer.get_buffer(key) is value for key, value in observer.state.items())


def test_one_pass_serves_calibrators_that_come_later() -> None:
    x = normal(3, 400)
    observer = Observer(QuantSpec(axis=0), MinMax(), channels=3)
    observer.keep([*Entropy().statistics, *MovingAverage().statistics])
    observer(x)
    for calibrator in (Entropy(), MovingAverage(), MinMax()):
        own = Observer(QuantSpec(axis=0), calibrator, channels=3)
        own(x)
        for found, expected in zip(
            calibrator.range(observer.state, observer.spec), own.range(), strict=True
        ):
            assert torch.equal(found, expected)


def test_what_is_kept_beside_is_not_saved_with_the_model() -> None:
    observer = Observer(QuantSpec(), MinMax())
    before = set(observer.state_dict())
    observer.keep(Entropy().statistics)
    assert set(observer.state_dict()) == before
    assert set(observer.state) > before


def test_to_keep_a_statistic_twice_is_to_keep_it_once() -> None:
    observer = Observer(QuantSpec(), Entropy())
    observer(normal(9))
    before = observer.state
    observer.keep([Range(), *Entropy().statistics, *Percentile().statistics])
    assert observer.statistics == (Range(), Histogram())
    assert all(observer.state[key] is value for key, value in before.items())


def test_what_is_kept_later_follows_a_copy_a_device_and_a_reset() -> None:
    observer = Observer(QuantSpec(), MinMax())
    observer.keep(Entropy().statistics)
    observer(normal(9))
    other = copy.deepcopy(observer)
    other.reset()
    assert (observer.state["counts"].sum().item(), other.state["counts"].sum().item()) == (9, 0)
    other.to("meta")
    assert {value.device.type for value in other.state.values()} == {"meta"}


@pytest.mark.parametrize(
    ("kept", "refused"),
    [
        (Histogram(), Histogram(half=64)),
        (Average(), Average(momentum=0.1)),
        (Sums(), Sums(weight=2.0)),
        (Sums(), Others()),
    ],
    ids=str,
)
def test_one_statistic_with_two_settings_is_refused(kept: Statistic, refused: Statistic) -> None:
    observer = Observer(QuantSpec(), MinMax(), name="features.0")
    observer.keep([kept])
    before = set(observer.state)
    with pytest.raises(ValueError, match=r"'features\.0' keeps .* the same settings") as raised:
        observer.keep([refused])
    assert str(kept) in str(raised.value)
    assert str(refused) in str(raised.value)
    assert set(observer.state) == before


def test_check_refuses_nothing_and_what_is_not_finite_and_passes_the_rest() -> None:
    observer = Observer(QuantSpec(axis=0), MinMax(), channels=2, name="features.0")
    with pytest.raises(DataError, match=r"'features\.0' has observed nothing"):
        observer.check()
    observer(normal(2, 5))
    observer.check()
    observer(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(DataError, match=r"'features\.0' has observed NaN or infinity"):
        observer.check()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_grid_of_its_own_range_is_its_grid(spec: QuantSpec) -> None:
    x = normal(4, 5, 3)
    observer = observer_for(x, spec)
    observer(x)
    expected, found = observer.calculate_qparams(), observer.grid(*observer.range())
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.zero_point, expected.zero_point)
    assert found.scale.shape == (() if spec.axis is None else (observer.channels,))


CALIBRATORS = [MinMax(), MovingAverage(), MovingAverage(momentum=0.1), Entropy()]


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_statistics_keep_their_dtypes_and_values(calibrator: Calibrator, convert: str) -> None:
    observer = Observer(QuantSpec(axis=0), calibrator, channels=2)
    observer.keep([Histogram(), *calibrator.statistics])
    for seed in range(3):
        observer(normal(2, 2000, seed=seed) * 1e5)
    before = {key: value.clone() for key, value in observer.state.items()}
    getattr(observer, convert)()
    observer.to(torch.float16)
    for key, value in before.items():
        assert observer.state[key].dtype == value.dtype
        assert torch.equal(observer.state[key], value)
    observer(normal(2, 50).half())
    assert observer.state["counts"].sum().item() == 2 * (3 * 2000 + 50)


@pytest.mark.parametrize("calibrator", CALIBRATORS, ids=str)
def test_observing_compiles_into_one_graph(calibrator: Calibrator) -> None:
    observer = Observer(QuantSpec(axis=1), calibrator, channels=3)
    eager = copy.deepcopy(observer)
    compiled = torch.compile(observer, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        x = normal(5, 3, seed=seed) * 10**seed
        compiled(x)
        eager(x)
    for key, value in eager.state.items():
        assert torch.equal(observer.state[key], value)
