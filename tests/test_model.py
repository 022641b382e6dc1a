"""The quantized model is an ordinary module: it saves, copies, moves, trains and prints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import small_models
from quantkit import numerics
from quantkit.errors import ExportError, ModelFileError
from quantkit.model import QuantizedModel, keys_of
from quantkit.recipe import Recipe
from quantkit.workflow import prepare, quantize

CNN, TRANSFORMER = small_models.multi_branch, small_models.encoder


def quantized(
    make: Callable[[], small_models.SmallModel], recipe: str = "int8_ptq", **options: Any
) -> QuantizedModel:
    model = make()
    return quantize(model, recipe, calibration=[model.inputs(8, seed=1)], **options)


def simple(model: nn.Module, *inputs: Tensor, **options: Any) -> QuantizedModel:
    return quantize(model.eval(), example_inputs=inputs, calibration=[inputs], **options)


@pytest.fixture(scope="module")
def cnn() -> QuantizedModel:
    """Calibrated; no test changes it."""
    return quantized(CNN)


# Saving and loading.


@pytest.mark.parametrize("recipe", ["int8_ptq", "int8_weight_only", "int8_asymmetric"])
@pytest.mark.parametrize("make", [CNN, TRANSFORMER])
def test_a_state_dict_in_a_freshly_prepared_model_gives_equal_results(
    tmp_path: Path, make: Callable[[], small_models.SmallModel], recipe: str
) -> None:
    saved = quantized(make, recipe)
    model = make()
    x = model.inputs(3, seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    direct = prepare(model, recipe, example_inputs=model.example_inputs)
    assert not torch.equal(direct(*x), saved(*x))
    direct.load_state_dict(saved.state_dict())
    assert torch.equal(direct(*x), saved(*x))

    saved.save(tmp_path / "model.safetensors")
    by_file = prepare(model, recipe, example_inputs=model.example_inputs)
    by_file.load(tmp_path / "model.safetensors")
    assert torch.equal(by_file(*x), saved(*x))
    assert by_file.state_dict().keys() == saved.state_dict().keys()


def test_the_file_is_plain_safetensors_with_the_names_of_the_float_model(
    tmp_path: Path, cnn: QuantizedModel
) -> None:
    path = tmp_path / "model.safetensors"
    cnn.save(path)
    state = load_file(path)
    assert state.keys() == cnn.state_dict().keys()
    assert "graph.fc.weight" in state
    assert state["graph.fc.weight"].shape == small_models.multi_branch().fc.weight.shape


def test_a_file_of_a_state_dict_without_notes_loads_too(
    tmp_path: Path, cnn: QuantizedModel
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in cnn.state_dict().items()}, path)
    other = quantized(CNN)
    other.load(path)
    x = CNN().inputs(3, seed=5)
    assert torch.equal(other(*x), cnn(*x))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (lambda path: quantized(small_models.mlp).save(path), "only in the"),
    "another recipe": (
        lambda path: quantized(CNN, "int8_weight_only").save(path),
        "is only in the model",
    ),
    "the same tensors of another format": (
        lambda path: quantized(CNN, "int8_asymmetric").save(path),
        r"is uint8 asymmetric per tensor there, int8 symmetric per tensor here|only in",
    ),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG" * 30), "not a safetensors file"),
    "a cut file": (
        lambda path: (quantized(CNN).save(path), path.write_bytes(path.read_bytes()[:2000])),
        "not a safetensors file",
    ),
    "nothing": (lambda path: None, "not a safetensors file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_and_the_model_stays_as_it_was(tmp_path: Path, case: str) -> None:
    model, path = quantized(CNN), tmp_path / "wrong.safetensors"
    make, told = WRONG[case]
    make(path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelFileError, match=rf"wrong\.safetensors: .*({told})") as caught:
        model.load(path)
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_of_another_width_of_bits_are_refused_although_they_have_the_same_shapes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    quantized(CNN, "int8_cpu", cpu="vnni").save(path)
    with pytest.raises(ModelFileError, match=r"int8 symmetric .* there, int8 \(7 bits\)"):
        quantized(CNN, "int8_cpu", cpu="avx2").load(path)


def test_a_layer_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    simple(nn.Sequential(nn.Linear(32, 32)), torch.randn(4, 32)).save(path)
    other = simple(nn.Sequential(nn.Linear(48, 32)), torch.randn(4, 48))
    with pytest.raises(ModelFileError, match=r"0\.weight is \(32, 32\) there, \(32, 48\) here"):
        other.load(path)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, cnn: QuantizedModel) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        cnn.save(tmp_path / "nowhere" / "model.safetensors")


# Copying and moving.


def test_a_deep_copy_owns_its_grid_and_its_weights(cnn: QuantizedModel) -> None:
    x = CNN().inputs(3, seed=5)
    twin, expected = copy.deepcopy(cnn), cnn(*x)
    assert torch.equal(twin(*x), expected)
    kept = [[*model.parameters(), *model.buffers()] for model in (cnn, twin)]
    assert not {t.data_ptr() for t in kept[0]} & {t.data_ptr() for t in kept[1]}
    assert not {id(q) for q in twin.quantizers.values()} & {id(q) for q in cnn.quantizers.values()}
    with torch.no_grad():
        for quantizer in twin.quantizers.values():
            quantizer.scale.mul_(3.0)
    assert not torch.equal(twin(*x), expected)
    assert torch.equal(cnn(*x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_float_types_keep_the_grids_exact(dtype: torch.dtype, cnn: QuantizedModel) -> None:
    model = copy.deepcopy(cnn).to(dtype)
    scales = {name: q.scale for name, q in model.quantizers.items()}
    assert all(torch.equal(scale, cnn.quantizers[name].scale) for name, scale in scales.items())
    (x,) = CNN().inputs(3, seed=5)
    found = model(x.to(dtype))
    assert found.dtype is dtype
    assert numerics.sqnr(cnn(x), found.float()) > 20
    if dtype is torch.float64:
        assert torch.equal(model.float()(x), cnn(x))


def test_it_moves_to_another_device(cnn: QuantizedModel) -> None:
    model = copy.deepcopy(cnn).to("meta")
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {q.scale.device.type for q in model.quantizers.values()} == {"meta"}


# Training.


class Dropping(nn.Module):
    """Dropout between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(32, 64), nn.Dropout(0.5), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(F.relu(self.fc1(x))))


@pytest.mark.parametrize("captured_in", [True, False])
def test_train_and_eval_switch_dropout(captured_in: bool) -> None:
    x = torch.randn(8, 32)
    model = quantize(Dropping().train(captured_in), example_inputs=(x,), calibration=[x])
    assert not model.training
    assert torch.equal(model(x), model(x))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("make", small_models.ALL)
def test_every_weight_gets_a_gradient_and_one_step_lowers_the_loss(
    make: Callable[[], small_models.SmallModel],
) -> None:
    model = quantized(make)
    model.train()
    x = make().inputs(8, seed=2)
    with torch.no_grad():
        target = make()(*x) * 0.5

    def loss() -> Tensor:
        return F.mse_loss(model(*x), target)

    before = loss()
    before.backward()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(weights) == len(list(make().parameters())) - 2 * _batchnorms(make()) + _biases(make)
    assert all(p.grad is not None and bool(p.grad.any()) for p in weights.values())
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    assert loss() < before


def _batchnorms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def _biases(make: Callable[[], nn.Module]) -> int:
    """Folding a batch-norm gives its convolution a bias."""
    return _batchnorms(make())


# What is printed.


def test_it_prints_what_is_quantized_and_why(cnn: QuantizedModel) -> None:
    text = repr(cnn)
    assert text == f"QuantizedModel(calibrated)\n{cnn.plan}"
    assert "Plan of recipe int8_ptq: 5 of 5 layers quantized" in text
    model = CNN()
    fresh = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    assert repr(fresh).startswith("QuantizedModel(not calibrated)\n")


# Models of every form.


class Shared(nn.Module):
    """One layer used twice, and another with its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.relu(self.a(x)))))


def test_a_weight_that_layers_share_has_one_grid_and_stays_shared() -> None:
    x = torch.randn(8, 32)
    model = simple(Shared(), x)
    assert len(list(model.of_role("weight"))) == 1
    assert len(list(model.layers())) == 3
    assert numerics.sqnr(Shared().eval()(x), model(x)) > 25
    model(x).sum().backward()
    gradients = [p for p in model.parameters() if p.grad is not None]
    assert sum(p.shape == (32, 32) for p in gradients) == 1


def test_a_product_of_a_tensor_with_itself_reads_the_grid_on_both_sides() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    x = torch.randn(4, 32, 32)
    model = simple(Square(), x)
    assert model.plan.quantized == ("matmul",)
    (quantizer,) = model.quantizers.values()
    rounded = numerics.fake_quantize(x, quantizer.qparams)
    torch.testing.assert_close(model(x), rounded @ rounded)


class TwoInputs(nn.Module):
    """Two inputs, the second by name if so called; a dictionary comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 32), nn.Linear(16, 32)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = F.relu(self.a(x))
        return {"sum": hidden + self.b(y) * scale, "hidden": hidden}


def test_inputs_by_order_and_by_name_and_outputs_by_name() -> None:
    model, x, y = TwoInputs().eval(), torch.randn(8, 32), torch.randn(8, 16)
    expected = model(x, y)
    by_order = quantize(model, calibration=[(x, y)])
    by_name = quantize(model, calibration=[{"x": x, "y": y}])
    mixed = quantize(
        model, example_inputs=(x,), example_kwargs={"y": y}, calibration=[{"x": x, "y": y}]
    )
    results = [by_order(x, y), by_name(x=x, y=y), mixed(x, y=y)]
    for result in results:
        assert list(result) == ["sum", "hidden"]
        for name, value in result.items():
            assert numerics.sqnr(expected[name], value) > 30
            assert torch.equal(value, results[0][name])


NAMES = ["odd name", "ünï-cødé", "a/b", "0", "fc_1", "quantizers", "weight"]


class Odd(nn.Module):
    """Modules of odd names, one of them called as quantkit calls its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            self.add_module(name, nn.Linear(32, 32))
        self.fc = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))

    def forward(self, values: Tensor) -> Tensor:
        for name in NAMES:
            values = F.relu(self.get_submodule(name)(values)) + 0.1 * values
        return self.fc(values)


def test_modules_and_inputs_may_have_any_name(tmp_path: Path) -> None:
    x = torch.randn(8, 32)
    model = simple(Odd(), x)
    assert set(model.plan.quantized) == {*NAMES, "fc.0", "fc.1"}
    assert {"quantizers.weight", "fc_1.weight", "fc.1.weight", "values"} <= set(model.quantizers)
    assert numerics.sqnr(Odd().eval()(x), model(x)) > 20
    model.save(tmp_path / "model.safetensors")
    again = prepare(Odd().eval(), "int8_ptq", example_inputs=(x,))
    again.load(tmp_path / "model.safetensors")
    assert torch.equal(again(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_every_grid_has_a_key_of_its_own() -> None:
    grids = ["a.b", "a_b", "a_b_", "a/b", "keys", "items", "training", "forward", "0.w"]
    keys = keys_of(grids)
    assert list(keys) == grids
    assert len(set(keys.values())) == len(grids)
    nn.ModuleDict({key: nn.Identity() for key in keys.values()})
    assert keys_of(grids) == keys


def test_a_model_without_anything_to_quantize_is_kept_as_it_is() -> None:
    x = torch.randn(4, 8)
    model = simple(nn.Sequential(nn.ReLU(), nn.LayerNorm(8)), x)
    assert model.quantizers == {}
    assert torch.equal(model(x), F.layer_norm(F.relu(x), (8,)))


def test_layers_know_their_quantizers_behind_what_only_moves_values() -> None:
    class Moving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(16, 16, 3), nn.Linear(144, 32)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.conv(x)), 2)
            return self.fc(x.flatten(1))

    model = simple(Moving(), torch.randn(4, 16, 8, 8))
    layers = {layer.name: layer for layer in model.layers()}
    assert set(layers) == {"conv", "fc"}
    for layer in layers.values():
        assert layer.activation is not None
        assert layer.weight is not None
        assert layer.bias is not None
        assert layer.bias_step is not None
        assert layer.bias_step.shape == layer.bias.shape
    assert layers["conv"].activation is not layers["fc"].activation


def test_layers_without_a_weight_or_a_quantized_input_have_no_step() -> None:
    def steps(model: QuantizedModel) -> Iterator[Tensor | None]:
        return (layer.bias_step for layer in model.layers())

    assert not any(step is not None for step in steps(quantized(CNN, "int8_weight_only")))
    attention = quantized(TRANSFORMER)
    products = [layer for layer in attention.layers() if layer.weight is None]
    assert len(products) == 2
    assert all(layer.bias_step is None and layer.bias is None for layer in products)


def test_weights_in_groups_of_four_bits_are_simulated() -> None:
    weights = {"dtype": "int4", "per": "group", "group_size": 16}
    recipe = Recipe.model_validate({"name": "w4", "scheme": {"weights": weights}})
    model = small_models.mlp()
    result = quantize(model, recipe, example_inputs=model.example_inputs)
    x = model.inputs(8, seed=4)
    assert 10 < numerics.sqnr(model(*x), result(*x)) < 30
    assert all(
        q.scale.shape[1] == q.scale.numel() // q.scale.shape[0] for q in result.of_role("weight")
    )
