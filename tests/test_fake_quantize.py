"""FakeQuantize: switches, grid, saving, and life inside graphs."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from quantkit import numerics
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import DataError
from quantkit.fake_quantize import FakeQuantize
from quantkit.observer import Observer
from quantkit.spec import QuantSpec

SPECS = [
    QuantSpec(),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(axis=1),
    QuantSpec(axis=0, bits=7, symmetric=False),
    QuantSpec(dtype="int4", axis=1, group_size=4),
    QuantSpec(dtype="fp8_e4m3"),
    QuantSpec(dtype="fp8_e4m3", axis=0),
]
SHAPE = (4, 6)


# torch.compile makes an instance of autograd.Function itself, which torch deprecates.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """torch.compile gives up on a function that many tests compile anew."""
    torch.compiler.reset()


each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def normal(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def prepared(spec: QuantSpec, momentum: float | None = None) -> FakeQuantize:
    shape = numerics.scale_shape(SHAPE, spec)
    calibrator = MinMax() if momentum is None else MovingAverage(momentum=momentum)
    observer = Observer(spec, calibrator, math.prod(shape), "conv1")
    return FakeQuantize(spec, shape=shape, observer=observer, name="conv1")


def calibrated(spec: QuantSpec, x: Tensor) -> FakeQuantize:
    quantizer = prepared(spec)
    quantizer.observe()
    quantizer(x)
    quantizer.calibrate()
    return quantizer


@each_spec
def test_a_new_quantizer_changes_nothing(spec: QuantSpec) -> None:
    x = normal()
    assert prepared(spec)(x) is x


@each_spec
def test_observing_alone_changes_nothing(spec: QuantSpec) -> None:
    quantizer, x = prepared(spec), normal()
    quantizer.observe()
    assert quantizer(x) is x


@each_spec
def test_calibrated_it_puts_values_on_the_grid_of_what_it_saw(spec: QuantSpec) -> None:
    x = normal()
    quantizer = calibrated(spec, x)
    expected = numerics.choose_qparams(*numerics.tensor_range(x, spec), spec)
    assert (quantizer.observing, quantizer.quantizing) == (False, True)
    assert torch.equal(quantizer.qparams.scale, expected.scale)
    assert torch.equal(quantizer.qparams.zero_point, expected.zero_point)
    other = normal(1) * 3
    assert torch.equal(quantizer(other), numerics.fake_quantize(other, expected))
    quantizer.quantize_values(False)
    assert quantizer(other) is other


@pytest.mark.parametrize("spec", [s for s in SPECS if s.axis is None and not s.is_float], ids=str)
def test_values_and_gradients_per_tensor_are_those_of_torch_bit_for_bit(spec: QuantSpec) -> None:
    quantizer = calibrated(spec, normal() / 2)
    ours, theirs = normal().requires_grad_(), normal().requires_grad_()
    upstream = normal(3)
    y = quantizer(ours)
    y.backward(upstream)
    native = torch.fake_quantize_per_tensor_affine(
        theirs, quantizer.scale.item(), int(quantizer.zero_point), spec.qmin, spec.qmax
    )
    native.backward(upstream)
    assert torch.equal(y, native)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < ours.grad.numel()


@pytest.mark.parametrize("spec", [s for s in SPECS if s.granularity == "channel"][:2], ids=str)
def test_values_and_gradients_per_channel_are_those_of_torch_bit_for_bit(spec: QuantSpec) -> None:
    quantizer = calibrated(spec, normal() / 2)
    ours, theirs = normal().requires_grad_(), normal().requires_grad_()
    upstream = normal(3)
    y = quantizer(ours)
    y.backward(upstream)
    assert spec.axis is not None
    native = torch.fake_quantize_per_channel_affine(
        theirs, quantizer.scale, quantizer.zero_point, spec.axis, spec.qmin, spec.qmax
    )
    native.backward(upstream)
    assert torch.equal(y, native)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < ours.grad.numel()


@each_spec
def test_in_training_the_grid_follows_the_observer(spec: QuantSpec) -> None:
    quantizer = prepared(spec, momentum=0.5)
    quantizer.observe()
    quantizer.quantize_values()
    for seed in range(3):
        x = normal(seed) * (seed + 1)
        y = quantizer(x)
        assert quantizer.observer is not None
        now = quantizer.observer.calculate_qparams()
        assert torch.equal(quantizer.scale.flatten(), now.scale.flatten())
        assert torch.equal(quantizer.zero_point.flatten(), now.zero_point.flatten())
        assert torch.equal(y, numerics.fake_quantize(x, quantizer.qparams))
    quantizer.observe(False)
    frozen = quantizer.scale.clone()
    quantizer(normal(9) * 50)
    assert torch.equal(quantizer.scale, frozen)


@pytest.mark.parametrize(
    "spec", [QuantSpec(), QuantSpec(symmetric=False), QuantSpec(axis=0)], ids=str
)
def test_nan_in_training_is_not_hidden(spec: QuantSpec) -> None:
    quantizer = prepared(spec)
    quantizer.observe()
    quantizer.quantize_values()
    x = normal()
    x[1, 1] = math.nan
    assert bool(quantizer(x)[1].isnan().any())
    with pytest.raises(DataError, match="'conv1' has observed NaN"):
        quantizer.calibrate()


def test_quantizing_without_calibration_is_refused_with_the_name() -> None:
    quantizer = prepared(QuantSpec())
    quantizer.quantize_values()
    with pytest.raises(DataError, match=r"quantizer 'conv1' has no grid.*call calibrate\(\)"):
        quantizer(normal())
    with pytest.raises(DataError, match="has no grid"):
        _ = quantizer.qparams


def test_calibrating_without_data_is_refused_and_leaves_the_switches() -> None:
    quantizer = prepared(QuantSpec())
    quantizer.observe()
    with pytest.raises(DataError, match="'conv1' has observed nothing"):
        quantizer.calibrate()
    assert (quantizer.observing, quantizer.quantizing, quantizer.calibrated) == (True, False, False)


def test_without_an_observer_there_is_nothing_to_calibrate_from() -> None:
    quantizer = FakeQuantize(QuantSpec(), name="w")
    with pytest.raises(DataError, match="'w' has no observer"):
        quantizer.calibrate()
    quantizer.set_qparams(
        numerics.choose_qparams(torch.tensor(-1.0), torch.tensor(1.0), QuantSpec())
    )
    quantizer.quantize_values()
    assert quantizer(torch.tensor([3.0])) == 1.0


@each_spec
def test_without_an_observer_the_grid_follows_the_tensor_of_the_moment(spec: QuantSpec) -> None:
    quantizer = FakeQuantize(spec, shape=numerics.scale_shape(SHAPE, spec), name="w")
    quantizer.observe()
    quantizer.quantize_values()
    for seed in (0, 1):
        x = normal(seed) * (3 - seed)
        expected = numerics.choose_qparams(*numerics.tensor_range(x, spec), spec)
        assert torch.equal(quantizer(x), numerics.fake_quantize(x, expected))
        assert torch.equal(quantizer.qparams.scale, expected.scale)


@each_spec
def test_in_evaluation_a_grid_in_use_stays(spec: QuantSpec) -> None:
    quantizer = prepared(spec, momentum=0.5)
    quantizer.observe()
    quantizer.quantize_values()
    quantizer(normal())
    assert quantizer.observer is not None
    scale, state = quantizer.scale.clone(), copy.deepcopy(quantizer.observer.state)
    quantizer.eval()(normal(1) * 10)
    assert torch.equal(quantizer.scale, scale)
    assert all(torch.equal(v, state[k]) for k, v in quantizer.observer.state.items())
    quantizer.train()(normal(1) * 10)
    assert not torch.equal(quantizer.scale, scale)


def test_a_grid_of_another_spec_or_size_is_refused() -> None:
    quantizer = FakeQuantize(QuantSpec(axis=0), shape=(3,), name="w")
    one, four = torch.tensor(1.0), torch.ones(4)
    with pytest.raises(ValueError, match="'w' is int8 symmetric per channel"):
        quantizer.set_qparams(numerics.choose_qparams(-one, one, QuantSpec()))
    with pytest.raises(ValueError, match="'w' has 3 scales, but the grid 4"):
        quantizer.set_qparams(numerics.choose_qparams(-four, four, QuantSpec(axis=0)))
    with pytest.raises(ValueError, match="scale_shape"):
        FakeQuantize(QuantSpec(), shape=(3,))


def test_qparams_are_a_copy() -> None:
    quantizer = calibrated(QuantSpec(), normal())
    qparams = quantizer.qparams
    before = qparams.scale.clone()
    quantizer.scale.mul_(2)
    assert torch.equal(qparams.scale, before)


# --- life with the model --------------------------------------------------------------------------


@each_spec
def test_a_saved_grid_loads_into_a_freshly_prepared_quantizer(
    spec: QuantSpec, tmp_path: Path
) -> None:
    quantizer, x = calibrated(spec, normal()), normal(1)
    file = tmp_path / "q.safetensors"
    safetensors.torch.save_file(quantizer.state_dict(), file)
    fresh = prepared(spec)
    fresh.load_state_dict(safetensors.torch.load_file(file))
    assert (fresh.observing, fresh.quantizing, fresh.calibrated) == (False, True, True)
    assert torch.equal(fresh(x), quantizer(x))
    assert str(fresh) == str(quantizer)


def test_the_switches_travel_with_the_state() -> None:
    for observing in (False, True):
        for quantizing in (False, True):
            quantizer = calibrated(QuantSpec(), normal())
            quantizer.observe(observing)
            quantizer.quantize_values(quantizing)
            fresh = prepared(QuantSpec())
            fresh.load_state_dict(quantizer.state_dict())
            assert (fresh.observing, fresh.quantizing) == (observing, quantizing)


def test_a_deep_copy_owns_its_grid() -> None:
    quantizer, x = calibrated(QuantSpec(), normal()), normal()
    expected = quantizer(x)
    other = copy.deepcopy(quantizer)
    other.scale.mul_(10)
    other.quantize_values(False)
    assert torch.equal(quantizer(x), expected)


def test_it_pickles_as_data_loaders_and_launchers_need() -> None:
    quantizer, x = calibrated(QuantSpec(axis=0), normal()), normal(2)
    assert torch.equal(pickle.loads(pickle.dumps(quantizer))(x), quantizer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_spec
def test_a_model_in_half_precision_keeps_its_grid(spec: QuantSpec, dtype: torch.dtype) -> None:
    quantizer = calibrated(spec, normal())
    before = quantizer.qparams
    quantizer.to(dtype)
    assert torch.equal(quantizer.qparams.scale, before.scale)
    x = normal(1).to(dtype)
    assert quantizer(x).dtype == dtype
    assert torch.equal(quantizer(x), numerics.fake_quantize(x, before))


def test_to_moves_the_grid() -> None:
    quantizer = calibrated(QuantSpec(), normal()).to("meta")
    assert {buffer.device.type for buffer in quantizer.buffers()} == {"meta"}
    assert "int8 symmetric per tensor" in repr(quantizer)


def test_it_prints_its_spec_its_scale_and_its_switches() -> None:
    quantizer = prepared(QuantSpec())
    assert quantizer.extra_repr() == "int8 symmetric per tensor, not calibrated"
    quantizer.observe()
    assert quantizer.extra_repr().endswith("observing")
    quantizer(torch.tensor([127.0, 1.0]))
    quantizer.calibrate()
    assert quantizer.extra_repr() == "int8 symmetric per tensor, scale=1"
    quantizer.quantize_values(False)
    assert quantizer.extra_repr().endswith("off")
    affine = calibrated(QuantSpec(dtype="uint8", symmetric=False), torch.full(SHAPE, 25.5))
    assert affine.extra_repr().endswith("scale=0.1, zero_point=0")
    assert calibrated(QuantSpec(axis=0), normal()).extra_repr().endswith("scales=(4,)")


# --- life inside graphs ---------------------------------------------------------------------------


class Layer(nn.Module):
    """A linear layer between quantizers."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(5))
        self.weight_quantizer = calibrated(spec, self.weight.detach())
        self.input_quantizer = prepared(QuantSpec(), momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.input_quantizer(x) @ self.weight_quantizer(self.weight).T
        return y


def layer(spec: QuantSpec) -> Layer:
    module = Layer(spec)
    module.input_quantizer.observe()
    module(normal())
    module.input_quantizer.calibrate()
    return module


@each_spec
def test_it_is_called_as_a_module_of_an_fx_graph(spec: QuantSpec) -> None:
    module = layer(spec)

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
            return isinstance(m, FakeQuantize)

    graph = Leaves().trace(module)
    assert [n.op for n in graph.nodes].count("call_module") == 2
    traced = torch.fx.GraphModule(module, graph)
    assert torch.equal(traced(normal(1)), module(normal(1)))
    assert torch.equal(copy.deepcopy(traced)(normal(1)), module(normal(1)))


@each_spec
@pytest.mark.parametrize("trainable", [True, False])
def test_it_exports_with_a_dynamic_batch(spec: QuantSpec, trainable: bool) -> None:
    module = layer(spec).eval().requires_grad_(trainable)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (normal(),), dynamic_shapes=({0: batch},))
    x = torch.cat([normal(1), normal(2), normal(3)])
    assert torch.equal(program.module()(x), module(x))


@compiles
@each_spec
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_into_one_graph_with_equal_gradients(spec: QuantSpec, training: bool) -> None:
    eager = layer(spec)
    eager.input_quantizer.observe(training)
    module = copy.deepcopy(eager)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=training)
    for seed in range(2):
        x = normal(seed + 1)[: 3 + seed]
        expected, y = eager(x), compiled(x)
        expected.square().sum().backward()
        y.square().sum().backward()
        assert torch.equal(y, expected)
        assert torch.equal(module.weight.grad, eager.weight.grad)
        assert torch.equal(module.input_quantizer.scale, eager.input_quantizer.scale)


@compiles
def test_training_from_scratch_compiles_and_counts_as_calibrated() -> None:
    quantizer = prepared(QuantSpec())
    quantizer.observe()
    quantizer.quantize_values()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    x = normal()
    first = compiled(x)
    assert torch.equal(compiled(x), first)
    quantizer.observe(False)
    assert quantizer.calibrated
    assert torch.equal(compiled(x), first)


def test_training_through_the_quantizer_lowers_the_loss() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(64, 6), torch.randn(6, 4)
    y = x @ target
    module = Layer(QuantSpec(dtype="int4", axis=1, group_size=3))
    module.input_quantizer.observe()
    module.input_quantizer.quantize_values()
    module.weight_quantizer.observe()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (module(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
