"""The contract of every pass over a quantized model: it runs, is deployed, and is no worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from exported_models import assert_same, opened
from torch import Tensor

import small_models
from quantkit import numerics, plugins
from quantkit.interfaces import ModelPass
from quantkit.model import QuantizedModel, copied
from quantkit.model_calibration import calibrate, calls_of
from quantkit.onnx.export import export_onnx
from quantkit.recipe import Recipe
from quantkit.reconstruction.layers import set_weight
from quantkit.workflow import prepare, round_weights

NAMES = plugins.names_of("passes", ModelPass)
MODELS: dict[str, Callable[[], small_models.SmallModel]] = {
    make.__name__: make
    for make in (small_models.resnet, small_models.inverted_residual, small_models.encoder)
}

every_pass = pytest.mark.parametrize("name", NAMES)
every_model = pytest.mark.parametrize("model", MODELS)
#: Weights of 4 bits leave a pass something to win back.
every_model_and_bits = pytest.mark.parametrize(
    ("model", "bits"), [*((model, 8) for model in MODELS), ("resnet", 4)]
)


def recipe_with(name: str, bits: int) -> Recipe:
    """A recipe that ends with the pass, with the grids that it is for."""
    weights = {"per": "channel", "bits": bits}
    return Recipe.model_validate(
        {
            "name": "contract",
            "scheme": {"weights": weights, "activations": {"symmetric": name != "center"}},
            "passes": ["fold_batchnorm", name],
        }
    )


@cache
def batches_of(model: str) -> list[tuple[Tensor, ...]]:
    network = MODELS[model]()
    return [network.inputs(16, seed=seed) for seed in range(1, 5)]


@cache
def _before(name: str, model: str, bits: int) -> QuantizedModel:
    network = MODELS[model]()
    found = prepare(network, recipe_with(name, bits), example_inputs=network.example_inputs)
    calibrate(found, batches_of(model))
    round_weights(found)
    for layer in found.layers():  # on the grid themselves, as other roundings leave them
        if layer.weight is not None and layer.weight_value is not None:
            set_weight(layer, layer.weight(layer.weight_value).detach())
    return found


@cache
def _after(name: str, model: str, bits: int) -> tuple[QuantizedModel, int]:
    found = copied(_before(name, model, bits))
    applied = plugins.find("passes", name, ModelPass)()
    calls = calls_of(found.capture, batches_of(model), applied.samples) if applied.samples else []
    return found, applied.apply(found, calls)


def simulated(model: QuantizedModel, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(*inputs)
    return result


@every_pass
def test_a_pass_is_a_frozen_value_with_defaults(name: str) -> None:
    kind = plugins.find("passes", name, ModelPass)
    assert dataclasses.is_dataclass(kind)
    assert kind() == kind()
    assert kind().samples >= 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().setting = 1  # type: ignore[attr-defined]


@every_pass
@every_model
def test_a_pass_that_changes_nothing_says_so(name: str, model: str) -> None:
    before, (after, changed) = _before(name, model, 8), _after(name, model, 8)
    states = before.state_dict(), after.state_dict()
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )
    assert isinstance(changed, int)
    assert changed >= 0
    assert (changed == 0) is (same and str(before.graph.graph) == str(after.graph.graph))


@every_pass
@every_model
def test_the_model_runs_on_other_batch_sizes_each_sample_by_itself(name: str, model: str) -> None:
    after, _ = _after(name, model, 8)
    after.graph.graph.lint()
    whole = batches_of(model)[0]
    expected = simulated(after, whole)
    assert torch.isfinite(expected).all()
    for count in (1, 3):
        found = simulated(after, tuple(x[:count] for x in whole))
        # Sums in another order: a tie may be rounded the other way.
        assert numerics.sqnr(expected[:count], found) > 40


@every_pass
@every_model_and_bits
def test_weights_stay_on_their_grids_and_biases_on_those_of_their_sums(
    name: str, model: str, bits: int
) -> None:
    after, _ = _after(name, model, bits)
    assert len([*after.layers()]) == len(after.plan.quantized)
    for layer in after.layers():
        if layer.weight is not None and layer.weight_value is not None:
            value = layer.weight_value.detach()
            torch.testing.assert_close(layer.weight(value), value, rtol=1e-5, atol=1e-7)
        if layer.bias is not None and (step := layer.bias_step) is not None:
            steps = layer.bias.detach().double() / step.double()
            error = (steps - steps.round()).abs()
            assert (error <= 1e-6 * (1 + steps.abs())).all(), layer.name


@every_pass
@every_model_and_bits
def test_the_outputs_on_the_calibration_data_are_no_worse(name: str, model: str, bits: int) -> None:
    before, (after, _) = _before(name, model, bits), _after(name, model, bits)
    network, whole = MODELS[model](), [torch.cat(x) for x in zip(*batches_of(model), strict=True)]
    with torch.no_grad():
        reference = network(*whole)
    measured = [numerics.sqnr(reference, simulated(m, tuple(whole))) for m in (before, after)]
    assert measured[1] > measured[0] - 0.5


@every_pass
def test_the_model_is_copied_and_saved_and_its_file_runs_as_simulated(
    name: str, tmp_path: Path
) -> None:
    after, _ = _after(name, "resnet", 8)
    inputs = MODELS["resnet"]().inputs(4, seed=9)
    expected = simulated(after, inputs)
    twin = copied(after)
    assert torch.equal(simulated(twin, inputs), expected)
    after.save(tmp_path / "model.safetensors")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load(tmp_path / "model.safetensors")
    assert torch.equal(simulated(twin, inputs), expected)
    path = export_onnx(after, tmp_path / "model.onnx", form="tensorrt")
    assert_same(expected, opened(path, optimized=False)(*inputs)[0])
