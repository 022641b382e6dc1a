"""quantkit's quantizers inside torch.ao's eager flow."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from torch import Tensor, nn

from quantkit.calibrators.minmax import MinMax
from quantkit.errors import DataError, RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import QuantizedModel
from quantkit.numerics import choose_qparams, sqnr, tensor_range
from quantkit.onnx.export import export_onnx
from quantkit.passes.fold_batchnorm import FoldBatchNorm
from quantkit.recipe import Recipe
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets.onnxruntime import OnnxRuntime
from quantkit.torch_ao import AoFakeQuantize, AoObserver, from_torch_ao, qconfig

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


# --- what was trained, in quantkit's export -------------------------------------------------------


class Block(nn.Module):
    """A residual block and a linear layer, wide enough to be quantized; float layers around it."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(32, 32)
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv1, self.bn1 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.relu, self.act = nn.ReLU(), nn.ReLU()
        self.skip = torch.ao.nn.quantized.FloatFunctional()
        self.pool = pool
        self.fc = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 16, 8, 8)`` to ``(N, 32)``."""
        x = self.relu(self.bn1(self.conv1(self.quant(self.before(x)))))
        x = self.skip.add_relu(self.bn2(self.conv2(x)), x)
        x = self.act(self.fc(self.pool(x).flatten(1)))
        y: Tensor = self.after(self.dequant(x))
        return y


X = torch.randn(32, 16, 8, 8, generator=torch.Generator().manual_seed(2))
WEIGHTS = Scheme(weights=QuantSpec(axis=0), activations=None)
#: Of X86: everything that ONNX Runtime can run in integers.
INTEGERS = Recipe.model_validate(
    {
        "name": "integers",
        "target": "onnxruntime",
        "scheme": {
            "weights": {"per": "channel"},
            "activations": {"dtype": "uint8", "symmetric": False, "bits": 7},
        },
        "placement": {"residual": "both", "outputs": True, "small": True},
    }
)
#: Schemes, their recipes, and whose results torch.ao quantizes and the plan does not.
CASES: dict[str, tuple[Scheme, str | Recipe, tuple[str, ...]]] = {
    "int8": (INT8, "int8_ptq", ("conv2", "fc")),
    "x86": (X86, INTEGERS, ("fc",)),
    "weight-only": (WEIGHTS, "int8_weight_only", ("fc",)),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def trained(
    scheme: Scheme = INT8, *, pool: type[nn.Module] = nn.MaxPool2d, fused: bool = True
) -> Any:
    """A block after a few steps. It is made once: change a copy."""
    torch.manual_seed(0)
    net: Any = Block(pool(4)).train()  # type: ignore[call-arg]
    if fused:
        net = ao.fuse_modules_qat(net, [["conv1", "bn1", "relu"], ["conv2", "bn2"], ["fc", "act"]])
    net.qconfig = qconfig(scheme)
    net.before.qconfig = net.after.qconfig = None
    net = ao.prepare_qat(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(6):
        optimizer.zero_grad()
        (net(X) - X.mean((2, 3)).repeat(1, 2)).square().mean().backward()
        optimizer.step()
    return net.eval()


@functools.cache
def carried(case: str) -> QuantizedModel:
    scheme, recipe, _ = CASES[case]
    return from_torch_ao(trained(scheme), recipe, example_inputs=(X,))


def scale_of(net: nn.Module, path: str) -> Tensor:
    return net.get_submodule(path).get_buffer("scale")


def without_quantizers(net: nn.Module, paths: tuple[str, ...]) -> Any:
    """A copy in which the results of some modules stay in float."""
    net = copy.deepcopy(net)
    for path in paths:
        net.get_submodule(path).activation_post_process = nn.Identity()
    return net


def assert_alike(one: Tensor, other: Tensor, median: float) -> None:
    """Sums in another order may fall on the other side of a tie, in few samples."""
    each = sorted(sqnr(a, b) for a, b in zip(one.detach(), other.detach(), strict=True))
    assert each[len(each) // 2] > median, each
    assert each[0] > 25, each
    assert sqnr(one.detach(), other.detach()) > 45


def test_the_scales_of_training_are_those_of_the_quantized_model_to_the_bit() -> None:
    net, quantizers = trained(), carried("int8").quantizers
    paths = {
        "before": "quant.activation_post_process",
        "conv1.0.weight": "conv1.weight_fake_quant",
        "conv1.1/relu": "conv1.activation_post_process",
        "conv2.weight": "conv2.weight_fake_quant",
        "relu": "skip.activation_post_process",
        "fc.0.weight": "fc.weight_fake_quant",
    }
    assert quantizers.keys() == paths.keys()
    for grid, path in paths.items():
        assert quantizers[grid].scale.tolist() == scale_of(net, path).squeeze().tolist(), grid


def test_zero_points_carry_over_too() -> None:
    found = carried("x86").quantizers["conv2"].zero_point
    assert found == trained(X86).conv2.activation_post_process.zero_point
    assert found != 0


@every_case
def test_the_simulation_is_what_torch_ao_computes_on_these_grids(case: str) -> None:
    scheme, _, unplanned = CASES[case]
    net = without_quantizers(trained(scheme), unplanned)
    if case == "weight-only":  # whose convolutions run in float
        for conv in (net.conv1, net.conv2):
            conv.weight_fake_quant = nn.Identity()
    assert_alike(net(X), carried(case)(X), median=80)


@every_case
def test_onnx_runtime_computes_the_same_from_the_file(case: str, tmp_path: Path) -> None:
    model = carried(case)
    path = export_onnx(model, tmp_path / "m.onnx")
    (name,) = model.capture.input_names
    ((found,),) = OnnxRuntime(exact=True).run(path, [{name: X.numpy()}])
    assert_alike(model(X), torch.from_numpy(found), median=80)


def test_only_what_lies_between_torch_aos_stubs_is_quantized() -> None:
    assert carried("int8").plan.quantized == ("conv1.0", "conv2", "fc.0")


def test_of_weights_alone_only_linear_layers_are_quantized() -> None:
    (grid,) = carried("weight-only").quantizers.values()
    assert torch.equal(grid.scale, scale_of(trained(WEIGHTS), "fc.weight_fake_quant"))


def test_the_model_may_train_on_and_keeps_its_hooks() -> None:
    net = copy.deepcopy(trained()).train()
    net.apply(ao.disable_observer)
    seen: list[str] = []
    net.fc.register_forward_pre_hook(lambda *_: seen.append("fc"))
    before = copy.deepcopy(net.state_dict())
    model = from_torch_ao(net, "int8_ptq", example_inputs=(X,))
    assert seen, "the user's hook ran in capture"
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(m.training for m in net.modules())
    assert [type(m) for m in net.modules()] == [type(m) for m in trained().modules()]
    assert torch.equal(model(X), carried("int8")(X))
    net(X).sum().backward()


def test_batch_norm_that_torch_ao_did_not_fuse_stays_beside_the_weights_as_they_were_trained() -> (
    None
):
    net = trained(fused=False)
    model = from_torch_ao(net, "int8_ptq", example_inputs=(X,))
    assert torch.equal(
        model.quantizers["conv1.weight"].scale, scale_of(net, "conv1.weight_fake_quant")
    )
    # torch.ao quantizes no lone ReLU: what it puts out is on the grid of what it reads.
    assert model.quantizers["relu/relu"].scale == scale_of(net, "bn1.activation_post_process")
    reference = without_quantizers(net, ("conv1", "conv2", "bn2", "fc"))
    assert_alike(reference(X), model(X), median=80)


def test_an_average_pool_has_no_range_of_training_and_gets_one_from_calibration() -> None:
    net = trained(pool=nn.AvgPool2d)
    with pytest.raises(DataError, match=r"no range for pool/avg_pool2d; pass calibration=batches"):
        from_torch_ao(net, "int8_ptq", example_inputs=(X,))
    model = from_torch_ao(net, "int8_ptq", example_inputs=(X,), calibration=[X])
    assert model.quantizers["before"].scale == scale_of(net, "quant.activation_post_process")
    assert model.quantizers["conv2.weight"].scale.equal(scale_of(net, "conv2.weight_fake_quant"))
    assert sqnr(net(X).detach(), model(X).detach()) > 35


def test_a_layer_that_torch_ao_left_in_float_needs_calibration_or_an_override() -> None:
    net = ao.fuse_modules_qat(Block(nn.MaxPool2d(4)).train(), [["conv2", "bn2"]])
    net.qconfig = qconfig(INT8)
    net.fc.qconfig = net.before.qconfig = net.after.qconfig = None
    net = ao.prepare_qat(net)
    net(X)
    with pytest.raises(DataError, match=r"no range for fc\.weight; .* overrides of recipe mine"):
        from_torch_ao(net, mine(), example_inputs=(X,))
    left = from_torch_ao(net, mine(overrides=[{"module": "fc", "scheme": None}]),
                         example_inputs=(X,))  # fmt: skip
    assert "fc" not in left.plan.quantized
    model = from_torch_ao(net, mine(), example_inputs=(X,), calibration=[X])
    weight = net.fc.weight.detach()
    expected = choose_qparams(*tensor_range(weight, QuantSpec(axis=0)), QuantSpec(axis=0))
    assert torch.equal(model.quantizers["fc.weight"].scale, expected.scale)


def mine(**rest: Any) -> Recipe:
    scheme = {"weights": {"per": "channel"}, "activations": {}}
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **rest})


def test_another_form_than_the_recipes_is_refused() -> None:
    message = (
        r"before was trained as int8 symmetric per tensor \(quant\.activation_post_process\), but "
        r"recipe integers has uint8 \(7 bits\) asymmetric per tensor; give a recipe of the scheme"
    )
    with pytest.raises(RecipeError, match=message):
        from_torch_ao(trained(), INTEGERS, example_inputs=(X,))


def test_a_model_without_quantizers_of_ours_is_refused() -> None:
    with pytest.raises(RecipeError, match="Block has no quantizers of quantkit's; set its qconfig"):
        from_torch_ao(Block(nn.MaxPool2d(4)), "int8_ptq", example_inputs=(X,))


class Joined(nn.Module):
    """Two layers side by side, and one that reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.join = ao.QuantStub(), torch.ao.nn.quantized.FloatFunctional()
        self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        y: Tensor = self.c(self.join.cat([self.a(x), 2 * self.b(x)], dim=1))
        return y


def test_a_grid_that_tensors_share_cannot_have_several_of_training() -> None:
    net: Any = Joined().train()
    net.qconfig = qconfig(INT8)
    net = ao.prepare_qat(net)
    x = torch.randn(8, 32)
    net(x)
    model = from_torch_ao(net, mine(), example_inputs=(x,))
    joined = scale_of(net, "join.activation_post_process")
    assert model.quantizers["cat"].scale == joined
    with pytest.raises(RecipeError, match="cat has one grid in the plan of recipe mine, but was"):
        from_torch_ao(net, mine(placement={"concat": "shared"}), example_inputs=(x,))


def test_a_pass_that_changes_a_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(_: FoldBatchNorm, graph: torch.fx.GraphModule) -> int:
        graph.get_parameter("fc.0.weight").data.mul_(2)
        return 1

    monkeypatch.setattr(FoldBatchNorm, "apply", double)
    with pytest.raises(RecipeError, match=r"a pass of the recipe has changed fc\.0\.weight"):
        from_torch_ao(trained(), "int8_ptq", example_inputs=(X,))


def test_a_layer_of_another_kind_is_refused() -> None:
    net: Any = nn.Sequential(ao.QuantStub(), nn.Linear(32, 32))
    net.qconfig = qconfig(INT8)
    net = ao.prepare_qat(net)
    net.append(nn.Linear(32, 32))
    net[2].weight_fake_quant = nn.Identity()
    with pytest.raises(RecipeError, match="2 is a Linear, which has a weight_fake_quant but no to"):
        from_torch_ao(net, "int8_ptq", example_inputs=(torch.zeros(2, 32),))
