"""quantkit's quantizers inside torch.ao's eager flow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn

from quantkit.calibrators.minmax import MinMax
from quantkit.errors import DataError, RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.numerics import choose_qparams, tensor_range
from quantkit.spec import QuantSpec, Scheme
from quantkit.torch_ao import AoFakeQuantize, AoObserver, qconfig

# The eager flow is deprecated as a whole; this file is about those who still use it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]

INT8 = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
#: What torch's own quantized x86 kernels take; 7 bits keep them from saturating without VNNI.
X86 = Scheme(
    weights=QuantSpec(axis=0), activations=QuantSpec(dtype="uint8", symmetric=False, bits=7)
)


class Net(nn.Module):
    """A small network as torch.ao's eager tutorial writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = ao.QuantStub()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(8 * 16, 4)
        self.dequant = ao.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        y: Tensor = self.dequant(self.fc(x.flatten(1)))
        return y


def prepare(scheme: Scheme) -> nn.Module:
    torch.manual_seed(0)
    net = ao.fuse_modules_qat(Net().train(), [["conv", "bn", "relu"]])
    net.qconfig = qconfig(scheme)
    prepared: nn.Module = ao.prepare_qat(net)
    return prepared


def train(net: nn.Module, steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, 4, 4, generator=generator)
    y = torch.randn(16, 4, generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def quantizers(net: nn.Module) -> list[FakeQuantize]:
    return [module for module in net.modules() if isinstance(module, FakeQuantize)]


@pytest.mark.parametrize(
    ("scheme", "count"),
    [
        (INT8, 5),
        (X86, 5),
        (Scheme(weights=QuantSpec(axis=0), activations=None), 2),
        (Scheme(weights=None, activations=QuantSpec()), 3),
    ],
    ids=["int8", "x86", "weight-only", "activation-only"],
)
def test_prepare_qat_trains_with_finite_scales(scheme: Scheme, count: int) -> None:
    net = prepare(scheme)
    assert len(quantizers(net)) == count
    losses = train(net, 3)
    assert losses[2] < losses[0]
    for quantizer in quantizers(net):
        assert quantizer.calibrated
        assert bool((quantizer.scale.isfinite() & (quantizer.scale > 0)).all())
        assert quantizer.qparams.spec == quantizer.spec


def test_weights_are_on_the_grid_of_their_own_range_of_this_step() -> None:
    net = prepare(INT8)
    train(net, 2)
    layer = net.get_submodule("fc")
    weight = layer.weight.detach()
    layer.weight_fake_quant(weight)
    expected = choose_qparams(*tensor_range(weight, QuantSpec(axis=0)), QuantSpec(axis=0))
    torch.testing.assert_close(layer.weight_fake_quant.scale, expected.scale)


def test_torch_aos_switches_reach_the_quantizers() -> None:
    net = prepare(INT8)
    x = torch.randn(2, 3, 4, 4)
    net.eval()(x)
    net.apply(ao.disable_observer)
    assert not any(quantizer.observing for quantizer in quantizers(net))
    before = [quantizer.scale.clone() for quantizer in quantizers(net)]
    net(x * 100)
    after = [quantizer.scale for quantizer in quantizers(net)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    net.apply(ao.disable_fake_quant)
    assert not any(quantizer.quantizing for quantizer in quantizers(net))
    net.apply(ao.enable_fake_quant)
    net.apply(ao.enable_observer)
    assert all(q.observing and q.quantizing for q in quantizers(net))


@pytest.mark.skipif(
    not {"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines),
    reason="needs torch's quantized kernels for x86",
)
def test_torch_aos_convert_gives_what_was_trained() -> None:
    net = prepare(X86)
    train(net, 5)
    net.apply(ao.disable_observer)
    net.eval()
    converted = ao.convert(net)  # type: ignore[no-untyped-call]
    x = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    step = net.get_submodule("fc").get_submodule("activation_post_process").get_buffer("scale")
    assert "QuantizedConvReLU2d" in repr(converted)
    # Sums in another order than in float may fall on the other side of a tie: one step.
    assert bool((converted(x) - net(x)).abs().max() <= 1.01 * step)


def test_a_trained_state_loads_into_a_freshly_prepared_model() -> None:
    net = prepare(INT8)
    train(net, 2)
    net.apply(ao.disable_observer)
    fresh = prepare(INT8)
    fresh.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(fresh.eval()(x), net.eval()(x))
    assert torch.equal(copy.deepcopy(fresh)(x), net(x))


def test_ao_observer_serves_prepare() -> None:
    net: Any = Net().eval()
    make_config: Any = ao.QConfig  # untyped in torch, as is prepare
    net.qconfig = make_config(
        activation=AoObserver.with_args(spec=X86.activations, calibrator=MinMax()),
        weight=AoObserver.with_args(spec=X86.weights, calibrator=MinMax()),
    )
    prepared = ao.prepare(net)  # type: ignore[no-untyped-call]
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(prepared(x), net(x))
    scale, zero_point = prepared.quant.activation_post_process.calculate_qparams()
    expected = choose_qparams(x.min(), x.max(), QuantSpec(dtype="uint8", symmetric=False, bits=7))
    assert (scale, zero_point) == (expected.scale, expected.zero_point)


@pytest.mark.parametrize("kind", [AoFakeQuantize, AoObserver])
def test_nothing_observed_is_reported(kind: type[AoFakeQuantize] | type[AoObserver]) -> None:
    for spec in (QuantSpec(), QuantSpec(axis=0)):
        with pytest.raises(DataError):
            kind(spec, MinMax()).calculate_qparams()


@pytest.mark.parametrize(
    "spec", [QuantSpec(dtype="fp8_e4m3"), QuantSpec(axis=0, group_size=2)], ids=str
)
def test_what_torch_ao_cannot_hold_is_refused_before_prepare(spec: QuantSpec) -> None:
    with pytest.raises(RecipeError, match="no form for"):
        qconfig(Scheme(weights=spec, activations=None))


def test_the_attributes_are_those_torch_ao_reads() -> None:
    quantizer: Any = AoFakeQuantize(QuantSpec(axis=0), MinMax())
    assert (quantizer.dtype, quantizer.qscheme) == (torch.qint8, torch.per_channel_symmetric)
    assert (quantizer.quant_min, quantizer.quant_max, quantizer.ch_axis) == (-128, 127, 0)
    assert not quantizer.is_dynamic
