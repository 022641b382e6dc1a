"""Stubs mark where quantization begins and ends; quantkit's and torch.ao's mean the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn

import quantkit
from quantkit.errors import CaptureError, DataError
from quantkit.stubs import DeQuantStub, QuantStub

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

OURS = (QuantStub, DeQuantStub)
KINDS = [OURS, (ao.QuantStub, ao.DeQuantStub)]
IDS = ["quantkit", "torch.ao"]


class Net(nn.Module):
    """Linear layers before, between and after stubs; and a product of both."""

    def __init__(self, kinds: tuple[type[nn.Module], type[nn.Module]] = OURS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.inner, self.after = (nn.Linear(32, 32) for _ in range(3))
        self.relu = nn.ReLU()
        self.quant, self.dequant = kinds[0](), kinds[1]()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 32)`` to the same."""
        y = self.dequant(self.relu(self.inner(self.quant(self.before(x)))))
        out: Tensor = self.after(y)
        return out


def batches() -> list[Tensor]:
    return [torch.randn(8, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("kinds", KINDS, ids=IDS)
def test_only_what_lies_between_the_stubs_is_quantized(kinds: Any) -> None:
    model = quantkit.quantize(Net(kinds), calibration=batches())
    assert model.plan.quantized == ("inner",)
    assert {g for g, members in model.plan.grids.items() if members[0].role == "activation"} == {
        "before"
    }
    reasons = {d.op: d.reason for d in model.plan.decisions if not d.quantized}
    assert reasons == dict.fromkeys(["before", "after"], "not between QuantStub and DeQuantStub")


@pytest.mark.parametrize("kinds", KINDS, ids=IDS)
def test_stubs_change_no_value_and_the_users_model_has_no_hook_afterwards(kinds: Any) -> None:
    net = Net(kinds)
    model = quantkit.quantize(net, calibration=batches())
    assert not any(m._forward_hooks for m in net.modules())
    model.simulate(False)
    x = batches()[0]
    torch.testing.assert_close(model(x), net(x))


def test_without_stubs_everything_is_quantized_that_the_plan_says() -> None:
    model = quantkit.quantize(Net((nn.Identity, nn.Identity)), calibration=batches())
    assert model.plan.quantized == ("before", "inner", "after")


def test_the_file_has_the_same_layers_in_float(tmp_path: Path) -> None:
    model = quantkit.quantize(Net(), calibration=batches())
    quantkit.export_onnx(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    made = {o: node for node in graph.node for o in node.output}
    reads = {
        node.name: [made[i].op_type for i in node.input if i in made]
        for node in graph.node
        if node.op_type in {"Gemm", "MatMul"}
    }
    assert reads["inner"] == ["DequantizeLinear"] * 2
    assert "DequantizeLinear" not in reads["before"] + reads["after"]


def test_a_program_that_torch_export_saved_keeps_our_stubs(tmp_path: Path) -> None:
    program = torch.export.export(Net().eval(), (batches()[0],))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    assert quantkit.quantize(loaded, calibration=batches()).plan.quantized == ("inner",)


class Two(nn.Module):
    """What only one of two operands is marked of."""

    def __init__(self, *, both: bool, out: bool = True) -> None:
        super().__init__()
        self.one, self.other, self.end = QuantStub(), QuantStub(), DeQuantStub()
        self.both, self.out = both, out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A product of two activations."""
        y = self.other(y) if self.both else y
        z = self.one(x) @ y.transpose(-1, -2)
        return self.end(z) if self.out else z  # type: ignore[no-any-return]


@pytest.mark.parametrize("both", [True, False])
def test_a_product_is_quantized_where_both_its_operands_are_inside(both: bool) -> None:
    x = torch.randn(2, 32, 32)
    model = quantkit.quantize(Two(both=both), calibration=[(x, x + 1)])
    assert len(model.plan.quantized) == int(both)


def test_a_region_without_an_end_ends_with_the_model() -> None:
    x = torch.randn(2, 32, 32)
    model = quantkit.quantize(Two(both=True, out=False), calibration=[(x, x + 1)])
    assert len(model.plan.quantized) == 1


def test_an_end_without_a_beginning_is_refused() -> None:
    net = nn.Sequential(nn.Linear(32, 32), DeQuantStub())
    with pytest.raises(CaptureError, match="1 is a DeQuantStub, and there is no QuantStub"):
        quantkit.quantize(net, calibration=batches())


class Residual(nn.Module):
    """A convolution block with its shortcut, of which the stub marks all or the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.quant = QuantStub()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 16, H, W)`` to the same."""
        y = torch.relu(self.first(x))
        out: Tensor = torch.relu(self.second(self.quant(y)) + y)
        return out


def test_what_reads_a_tensor_outside_reads_it_in_float() -> None:
    model = quantkit.quantize(Residual(), calibration=[torch.randn(4, 16, 8, 8)])
    (activation,) = (t for t in model.plan.tensors if t.role == "activation")
    assert [(edge.op, edge.index) for edge in activation.edges] == [("second", 0)]


# --- what stubs see in training -------------------------------------------------------------------


def test_a_stub_keeps_a_moving_average_of_the_range_in_training_only() -> None:
    stub = QuantStub(momentum=0.5)
    x = torch.tensor([0.0, 4.0])
    assert stub.eval()(x) is x
    assert stub.range is None
    assert stub.train()(x) is x
    stub(torch.tensor([-2.0, 2.0]))
    assert stub.range == (torch.tensor([-1.0]), torch.tensor([3.0]))
    assert repr(stub) == "QuantStub(range -1 to 3)"


def test_what_a_stub_has_seen_is_the_grid_to_begin_with_until_calibration() -> None:
    net = Net().train()
    net.quant = QuantStub(momentum=1.0)
    net(batches()[0])
    low, high = net.before(batches()[0]).aminmax()
    expected = quantkit.numerics.choose_qparams(low, high, quantkit.QuantSpec())
    model = quantkit.prepare(net, "int8_qat", example_inputs=(batches()[0],))
    assert torch.equal(model.quantizers["before"].qparams.scale, expected.scale)
    model = quantkit.quantize(net, "int8_qat", calibration=[batches()[1] * 5])
    assert bool(model.quantizers["before"].qparams.scale > 2 * expected.scale)


def test_the_observer_goes_on_from_what_the_stub_has_seen() -> None:
    net = Net().train()
    net(batches()[0] * 50)
    model = quantkit.prepare(net, "int8_qat", example_inputs=(batches()[0],)).train()
    quantkit.train_quantizers(model, "follow")
    before = model.quantizers["before"].qparams.scale
    model(batches()[0])
    assert bool(model.quantizers["before"].qparams.scale > 0.9 * before)


def test_a_stub_that_saw_infinity_is_named() -> None:
    net = Net().train()
    net.quant(torch.tensor([torch.inf, 0.0]))
    with pytest.raises(DataError, match="QuantStub quant has seen NaN or infinity"):
        quantkit.prepare(net, "int8_qat", example_inputs=(batches()[0],))


def test_in_the_quantized_model_the_tensor_at_the_stub_is_averaged_on_in_training() -> None:
    model = quantkit.quantize(Net(), "int8_qat", calibration=batches()).train()
    quantkit.train_quantizers(model, "follow")
    before = model.quantizers["before"].qparams.scale
    model(batches()[0] * 20)
    after = model.quantizers["before"].qparams.scale
    assert bool(after > before)
    assert bool(after < 15 * before)  # it moves by a part


def test_a_state_of_the_model_before_it_had_stubs_loads() -> None:
    net = Net()
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("quant.")}
    Net().load_state_dict(state)
    net.train()(batches()[0])
    fresh = Net()
    fresh.load_state_dict(net.state_dict())
    assert fresh.quant.range == net.quant.range


def test_stubs_deep_copy_and_keep_their_range_in_half_precision() -> None:
    net = Net().train()
    net(batches()[0])
    other = copy.deepcopy(net).half()
    assert other.quant.average_minimum.dtype == torch.float32
    assert other.quant.range == net.quant.range
    assert np.isfinite(other.quant.average_maximum.item())
