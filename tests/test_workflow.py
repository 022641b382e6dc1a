"""Quantize: what the model gives and keeps, what calibration sees, and what is refused when."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import small_models
from quantkit import numerics, workflow
from quantkit.errors import CaptureError, DataError, RecipeError
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calibrate
from quantkit.onnx.export import export_onnx
from quantkit.recipe import Recipe, parse_recipe
from quantkit.spec import QuantSpec
from quantkit.workflow import prepare, quantize, resolve_recipe, round_weights

CHANNEL = {"per": "channel"}


def recipe(weights: Any = None, activations: Any = None, **rest: Any) -> Recipe:
    scheme = {"weights": weights, "activations": activations}
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **rest})


def images(rows: int = 32) -> Tensor:
    return small_models.multi_branch().inputs(rows, seed=3)[0]


def mlp(**options: Any) -> QuantizedModel:
    model = small_models.mlp()
    data = [model.inputs(16, seed=seed) for seed in (1, 2)]
    return quantize(model, example_inputs=model.example_inputs, calibration=data, **options)


def scales(model: QuantizedModel) -> dict[str, Tensor]:
    return {name: q.scale.clone() for name, q in model.quantizers.items()}


def same_state(a: nn.Module, b: dict[str, Tensor]) -> bool:
    mine = a.state_dict()
    return mine.keys() == b.keys() and all(torch.equal(mine[name], b[name]) for name in b)


# What the quantized model computes.


@pytest.mark.parametrize("make", small_models.ALL)
def test_with_simulation_off_it_gives_the_float_models_result(
    make: Callable[[], small_models.SmallModel],
) -> None:
    model = make()
    quantized = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    calibrate(quantized, [model.inputs(16, seed=1)])
    x = model.inputs(3, seed=9)
    expected, simulated = model(*x), quantized(*x)
    quantized.simulate(False)
    assert numerics.sqnr(expected, quantized(*x)) > 110
    assert 15 < numerics.sqnr(expected, simulated) < 60
    quantized.simulate()
    assert torch.equal(quantized(*x), simulated)
    # Biases then move by half a step of the sums at most: little beside what the grids cost.
    round_weights(quantized)
    quantized.simulate(False)
    assert numerics.sqnr(expected, quantized(*x)) > 60


def test_prepared_weights_are_on_their_grids_and_activations_pass() -> None:
    model = small_models.mlp()
    prepared = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    assert all(q.calibrated and q.quantizing for q in prepared.of_role("weight"))
    assert not any(q.calibrated or q.quantizing for q in prepared.of_role("activation"))
    weights_only = quantize(model, "int8_weight_only", example_inputs=model.example_inputs)
    x = model.inputs(4, seed=9)
    assert numerics.sqnr(weights_only(*x), prepared(*x)) > 100


def test_quantize_is_its_three_steps() -> None:
    model = small_models.mlp()
    data = [model.inputs(16, seed=seed) for seed in (1, 2)]
    stepwise = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    calibrate(stepwise, data)
    round_weights(stepwise)
    assert same_state(mlp(), stepwise.state_dict())


def test_an_exported_program_is_quantized_as_its_model() -> None:
    model = small_models.mlp()
    data = [model.inputs(16, seed=1)]
    program = torch.export.export(
        model, model.example_inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    first = quantize(model, example_inputs=model.example_inputs, calibration=data)
    second = quantize(program, example_inputs=model.example_inputs, calibration=data)
    x = model.inputs(5, seed=9)
    assert torch.equal(first(*x), second(*x))
    assert first.plan == second.plan


# What stays as it was.


def test_the_users_model_is_not_changed() -> None:
    model = small_models.resnet()
    model.projection.train()
    model.fc.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: p.requires_grad for name, p in parameters.items()}

    quantized = quantize(model, calibration=[images(8)])
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.add_(1.0)
    quantized.train()

    assert same_state(model, before)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p is parameters[name] for name, p in model.named_parameters())


def test_a_model_that_cannot_be_captured_keeps_its_mode() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = Branching().train()
    with pytest.raises(CaptureError):
        quantize(model, calibration=[torch.ones(8, 4)])
    assert model.training


def test_calibration_keeps_the_mode_of_the_quantized_model() -> None:
    model = mlp()
    for mode in (True, False):
        model.train(mode)
        calibrate(model, [torch.randn(8, 32)])
        assert model.training is mode


# How the data are batched.


def generated(data: Tensor) -> Iterator[Tensor]:
    yield from data.split(8)


BATCHINGS: dict[str, Callable[[Tensor], Iterable[Any]]] = {
    "batches of 16": lambda data: data.split(16),
    "one batch of 32": lambda data: [data],
    "a generator": generated,
    "a data loader": lambda data: DataLoader(TensorDataset(data), batch_size=16),
    "tuples": lambda data: [(part,) for part in data.split(8)],
    "dicts": lambda data: [{"x": part} for part in data.split(8)],
    "numpy arrays": lambda data: [part.numpy() for part in data.split(8)],
}


@pytest.mark.parametrize("name", ["int8_ptq", "int8_asymmetric"])
def test_grids_do_not_depend_on_how_the_data_are_batched(name: str) -> None:
    model = small_models.multi_branch()
    prepared = prepare(model, name, example_inputs=model.example_inputs)
    data = images(32) * torch.logspace(0, 1, 32).view(-1, 1, 1, 1)
    calibrate(prepared, data.split(8))
    expected = scales(prepared)
    for told, batching in BATCHINGS.items():
        calibrate(prepared, batching(data))
        found = scales(prepared)
        assert all(torch.equal(found[grid], expected[grid]) for grid in expected), told
    calibrate(prepared, [data.flip(1)])
    assert any(not torch.equal(a, expected[grid]) for grid, a in scales(prepared).items())


@pytest.mark.parametrize("told", ["a generator", "dicts", "a data loader", "one batch of 32"])
def test_the_first_batch_serves_as_example_and_is_calibrated_with_as_well(told: str) -> None:
    model = small_models.multi_branch()
    data = torch.cat([100.0 * images(8), images(8)])
    expected = quantize(model, example_inputs=model.example_inputs, calibration=[data])
    found = quantize(model, calibration=BATCHINGS[told](data))
    assert found.plan == expected.plan
    wanted = scales(expected)
    assert all(torch.equal(scale, wanted[grid]) for grid, scale in scales(found).items())


def test_a_second_calibration_forgets_the_first() -> None:
    model, data = small_models.mlp(), torch.randn(16, 32)
    prepared = prepare(model, "int8_ptq", example_inputs=model.example_inputs)
    calibrate(prepared, [data])
    before = scales(prepared)
    calibrate(prepared, [1000.0 * data])
    assert not torch.equal(scales(prepared)["x"], before["x"])
    calibrate(prepared, [data])
    assert all(torch.equal(scale, before[grid]) for grid, scale in scales(prepared).items())


def test_calibration_runs_a_few_samples_at_a_time() -> None:
    model = mlp()
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    calibrate(model, [torch.randn(20, 32), torch.randn(3, 32)])
    handle.remove()
    assert seen == [8, 8, 7]


def test_a_model_of_fixed_shapes_gets_its_batches_whole() -> None:
    model = small_models.mlp()
    prepared = prepare(model, "int8_ptq", example_inputs=model.inputs(20), dynamic_shapes=None)
    seen: list[int] = []
    prepared.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    calibrate(prepared, [torch.randn(20, 32)])
    assert seen == [20]


def test_an_input_without_dimensions_goes_with_every_part_of_a_batch() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: Tensor, temperature: Tensor) -> Tensor:
            return self.fc(x / temperature)

    call = (torch.randn(20, 32), torch.tensor(2.0))
    model = Scaled().eval()
    quantized = quantize(model, example_inputs=call, calibration=[call])
    assert numerics.sqnr(model(*call), quantized(*call)) > 30


# What is wrong with the data.

GOOD = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
BAD: dict[str, tuple[Any, str]] = {
    "no batch": ([], "no batch"),
    "an empty batch": ([GOOD, GOOD[:0]], r"batch 1, input 0 is empty, shape \(0, 32\)"),
    "NaN": ([GOOD, GOOD / GOOD.sub(GOOD)], "batch 1, input 0 holds NaN or infinity"),
    "infinity": ([GOOD.new_full((8, 32), math.inf)], "batch 0, input 0 holds NaN or infinity"),
    "another width": (
        [GOOD, GOOD, GOOD[:, :31]],
        r"batch 2, input 0: got float32 \(8, 31\), expected float32 \(any, 32\)",
    ),
    "another rank": ([GOOD[0]], r"batch 0, input 0: got float32 \(32\), expected"),
    "another type": ([GOOD.double()], r"batch 0, input 0: got float64 \(8, 32\), expected float32"),
    "labels beside": ([(GOOD, torch.zeros(8))], "batch 0 has the inputs .*without labels"),
    "another name": ([{"y": GOOD}], r"batch 0 has the inputs \['y'\]"),
    "no tensor": (["text"], "batch 0, input 0 is a str"),
    "a single tensor": (GOOD, r"one Tensor, not an iterable of batches; pass \[batch\]"),
    "a path": ("data.npz", "no iterable of batches"),
}


@pytest.fixture(scope="module")
def calibrated() -> QuantizedModel:
    return mlp()


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_by_batch_and_input_and_the_model_stays_usable(
    calibrated: QuantizedModel, case: str
) -> None:
    data, told = BAD[case]
    expected, state = calibrated(GOOD), copy.deepcopy(calibrated.state_dict())
    with pytest.raises(DataError, match=told) as caught:
        calibrate(calibrated, data)
    assert "\n" not in str(caught.value)
    assert torch.equal(calibrated(GOOD), expected)
    grids = {name: value for name, value in state.items() if ".observer." not in name}
    now = calibrated.state_dict()
    assert all(torch.equal(now[name], value) for name, value in grids.items())


def test_numbers_that_become_nan_within_the_model_are_told_by_tensor() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.log(self.fc1(x) + 100.0))

    model = Logarithm().eval()
    quantized = quantize(model, example_inputs=(GOOD,), calibration=[GOOD])
    expected = quantized(GOOD)
    with pytest.raises(DataError, match=r"tensor 'log.*' has observed NaN or infinity"):
        calibrate(quantized, [1e4 * GOOD])
    assert torch.equal(quantized(GOOD), expected)


def test_activations_need_data() -> None:
    with pytest.raises(DataError, match="recipe int8_ptq quantizes activations and needs"):
        quantize(small_models.mlp(), example_inputs=(GOOD,))


def test_weights_alone_need_none() -> None:
    model = quantize(small_models.mlp(), "int8_weight_only", example_inputs=(GOOD,))
    assert all(q.calibrated for q in model.quantizers.values())
    assert list(model.of_role("activation")) == []


def test_something_must_be_given_to_capture_with() -> None:
    with pytest.raises(DataError, match="neither example_inputs nor calibration batches"):
        quantize(small_models.mlp(), "int8_weight_only")


# Recipes.


def test_a_recipe_is_a_name_a_path_or_a_value(tmp_path: Path) -> None:
    named = resolve_recipe("int8_ptq")
    path = tmp_path / "int8_ptq.yaml"
    path.write_text(named.to_yaml())
    assert resolve_recipe(path) == resolve_recipe(str(path)) == resolve_recipe(named) == named


def test_an_unknown_recipe_is_told_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'int8_ptk'; .*did you mean 'int8_ptq'\?"):
        quantize(small_models.mlp(), "int8_ptk", example_inputs=(GOOD,))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"calibrator": "minimax"}, r"no calibrator 'minimax'; .*did you mean 'minmax'\?"),
        ({"rounding": "nearst"}, r"no rounding 'nearst'; .*did you mean 'nearest'\?"),
        ({"passes": ["fold_batch"]}, r"no pass 'fold_batch'; .*did you mean 'fold_batchnorm'\?"),
        (
            {"calibrator": {"name": "moving_average", "settings": {"momentun": 0.1}}},
            r"moving_average does not take the settings \{'momentun': 0.1\}: .*see the fields of",
        ),
        (
            {"calibrator": {"name": "moving_average", "settings": {"momentum": 7.0}}},
            r"moving_average does not take the settings \{'momentum': 7.0\}: momentum",
        ),
        (
            {"rounding": {"name": "nearest", "settings": {"steps": 1}}},
            r"nearest does not take the settings \{'steps': 1\}",
        ),
    ],
)
def test_a_plugin_that_is_not_there_or_misset_is_refused_before_any_capture(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(workflow, "capture", lambda *_, **__: pytest.fail("captured"))
    with pytest.raises(RecipeError, match=told):
        quantize(small_models.mlp(), recipe(CHANNEL, {}, **change), calibration=[GOOD])


@pytest.mark.parametrize(
    ("name", "told"),
    [("int8_asymmetric", "TensorRT takes zero-point 0 only.*int8_ptq"), ("int8_cpu", "zero-point")],
)
def test_what_the_target_cannot_run_is_refused_before_any_capture(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setattr(workflow, "capture", lambda *_, **__: pytest.fail("captured"))
    with pytest.raises(RecipeError, match=f"recipe {name}: .*{told}"):
        quantize(small_models.mlp(), name, calibration=[GOOD], target="tensorrt_rtx")


def test_a_target_refuses_what_an_override_asks_for() -> None:
    override = {"module": "fc1", "scheme": {"activations": {"symmetric": False}}}
    with pytest.raises(RecipeError, match="zero-point 0 only"):
        resolve_recipe(recipe(CHANNEL, {}, overrides=[override]), target="tensorrt_rtx")


def test_a_target_takes_what_it_can_run() -> None:
    assert resolve_recipe("int8_ptq", target="tensorrt_rtx") == resolve_recipe("int8_ptq")


@pytest.mark.parametrize(
    ("cpu", "bits", "largest"), [("avx2", 7, 64), ("avx512", 7, 64), ("vnni", None, 128)]
)
def test_weights_have_seven_bits_only_for_processors_whose_sums_saturate(
    cpu: str, bits: int | None, largest: int
) -> None:
    model = mlp(recipe="int8_cpu", cpu=cpu)
    for quantizer in model.of_role("weight"):
        assert quantizer.spec == QuantSpec(axis=0, bits=bits)
    for layer in model.layers():
        assert layer.weight is not None
        weight = workflow.evaluate_constant(model.graph, layer.weight_source)
        stored = numerics.quantize(weight, layer.weight.qparams).int()
        assert largest // 2 < stored.abs().max() <= largest


def test_an_unknown_processor_is_told() -> None:
    with pytest.raises(RecipeError, match="pentium"):
        resolve_recipe("int8_cpu", cpu="pentium")


# Weights and biases on their grids.


@pytest.mark.parametrize("name", ["int8_ptq", "int8_cpu"])
def test_biases_are_multiples_of_the_step_of_the_sums_they_join(name: str) -> None:
    model = small_models.resnet()
    quantized = quantize(model, name, calibration=[images(16)], cpu="avx2")
    layers = [layer for layer in quantized.layers() if layer.bias is not None]
    assert len(layers) == len(quantized.plan.quantized)
    for layer in layers:
        assert layer.bias is not None
        assert layer.activation is not None
        assert layer.weight is not None
        step = layer.activation.scale.double() * layer.weight.scale.double()
        count = layer.bias.double() / step
        # To the precision of the float32 that holds it.
        assert torch.all((count - count.round()).abs() <= count.abs() * 2.0**-22 + 1e-6), layer.name


@pytest.mark.parametrize("name", ["int8_ptq", "int8_weight_only", "int8_cpu"])
@pytest.mark.parametrize("make", [small_models.inverted_residual, small_models.encoder])
def test_rounding_a_second_time_changes_nothing(
    name: str, make: Callable[[], small_models.SmallModel]
) -> None:
    model = make()
    quantized = quantize(model, name, calibration=[model.inputs(8, seed=1)])
    before = copy.deepcopy(quantized.state_dict())
    round_weights(quantized)
    assert same_state(quantized, before)


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ({"dtype": "int4", "per": "group", "group_size": 16}, {}),
        (CHANNEL, CHANNEL),
        ({"dtype": "fp8_e4m3", "per": "channel"}, {"dtype": "fp8_e4m3"}),
        (CHANNEL, None),
    ],
    ids=["groups", "activations per channel", "fp8", "weights alone"],
)
def test_a_bias_stays_where_no_integer_sum_has_one_step(weights: Any, activations: Any) -> None:
    model = small_models.mlp()
    quantized = quantize(model, recipe(weights, activations), calibration=[GOOD])
    for layer in quantized.layers():
        assert layer.bias_step is None
        assert layer.bias is not None
        assert torch.equal(layer.bias, model.get_submodule(layer.name).bias)
    # 4 bits give about 20 dB.
    assert numerics.sqnr(model(GOOD), quantized(GOOD)) > 15


def test_a_grouped_transposed_convolution_can_be_asked_for() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(16, 32, 2, stride=2, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x)

    torch.manual_seed(0)
    model, x = Up().eval(), torch.randn(4, 16, 8, 8)
    override = {"operator": "conv_transpose", "scheme": {"weights": CHANNEL, "activations": {}}}
    quantized = quantize(model, recipe(CHANNEL, {}, overrides=[override]), calibration=[x])
    assert quantized.plan.quantized == ("up",)
    assert numerics.sqnr(model(x), quantized(x)) > 30


class Single(nn.Module):
    """One convolution of 16 channels and its ReLU."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(16, 16, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


def in_onnx_runtime(model: QuantizedModel, x: Tensor, path: Path) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(export_onnx(model, path), options)
    (result,) = session.run(None, {"x": x.numpy()})
    assert isinstance(result, np.ndarray)
    return torch.from_numpy(result)


@pytest.mark.parametrize("name", ["int8_ptq", "int8_cpu"])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_dead_channel_gives_its_bias_and_nothing_infinite(
    tmp_path: Path, name: str, groups: int
) -> None:
    model, x = Single(groups).eval(), torch.randn(8, 16, 6, 6)
    with torch.no_grad():
        model.conv.weight[3] = 0.0
        model.conv.weight[5] = 0.0
        model.conv.bias[3] = 0.75
        model.conv.bias[5] = 0.0
    scheme = resolve_recipe(name, cpu="vnni")
    small = scheme.placement.model_copy(update={"small": True})
    quantized = quantize(model, scheme.model_copy(update={"placement": small}), calibration=[x])
    assert quantized.plan.quantized == ("conv",)
    for result in (quantized(x), in_onnx_runtime(quantized, x, tmp_path / "dead.onnx")):
        assert bool(result.isfinite().all())
        assert result[:, 3].allclose(torch.tensor(0.75), atol=0.02)
        assert not bool(result[:, 5].any())
        assert numerics.sqnr(model(x), result) > 30


@pytest.mark.parametrize("name", ["int8_ptq", "int8_cpu"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_bias_beyond_the_sums_of_tiny_weights_is_held_by_coarser_weights(
    tmp_path: Path, name: str, per: str
) -> None:
    model, x = Single().eval(), torch.randn(8, 16, 6, 6)
    with torch.no_grad():
        tiny = slice(2, 3) if per == "channel" else slice(None)
        model.conv.weight[tiny] *= 1e-9
        model.conv.bias[2] = 5.0
    chosen = resolve_recipe(name, cpu="vnni")
    assert chosen.scheme.weights is not None
    weights = chosen.scheme.weights.model_copy(update={"per": per})
    scheme = chosen.scheme.model_copy(update={"weights": weights})
    quantized = quantize(model, chosen.model_copy(update={"scheme": scheme}), calibration=[x])
    (layer,) = quantized.layers()
    assert layer.bias is not None
    assert layer.bias_step is not None
    assert bool(((layer.bias / layer.bias_step).abs() < 2.0**31).all())
    assert layer.bias[2].item() == pytest.approx(5.0, rel=1e-6)
    result = in_onnx_runtime(quantized, x, tmp_path / "tiny.onnx")
    assert numerics.sqnr(model(x), quantized(x)) > 30
    assert numerics.sqnr(quantized(x), result) > 60


def test_a_recipe_that_quantizes_nothing_gives_the_float_model() -> None:
    model = small_models.mlp()
    quantized = quantize(model, parse_recipe("scheme: {}", name="none"), example_inputs=(GOOD,))
    assert quantized.quantizers == {}
    assert torch.equal(quantized(GOOD), model(GOOD))
