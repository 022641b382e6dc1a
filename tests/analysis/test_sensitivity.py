"""Sensitivities: of a layer alone, exactly; reused float runs; what cannot be measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from quantkit.analysis._alone import isolated
from quantkit.analysis._prices import packed_bytes
from quantkit.analysis._units import units_of, without_quantizers
from quantkit.analysis.formats import Format, named_formats
from quantkit.analysis.losses import Part, Sensitivity
from quantkit.analysis.sensitivity import sensitivity
from quantkit.batches import Call
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import describe
from quantkit.graph.placement import place
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calibrate, calls_of
from quantkit.qat.metrics import fidelity
from quantkit.recipe import Override, PlugIn, Recipe
from quantkit.spec import QuantSpec
from quantkit.workflow import planned, prepare, resolve_recipe, round_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 16


def data(name: str) -> list[Tensor]:
    net = getattr(small_models, name)()
    return [net.inputs(8, seed)[0] for seed in range(SAMPLES // 8)]


@cache
def captured(name: str) -> QuantizedModel:
    """A small model with quantizers, captured once: that takes the most time."""
    net = getattr(small_models, name)()
    return prepare(net, "int8_ptq", example_inputs=net.example_inputs)


def prepared(name: str, recipe: str | Recipe = "int8_ptq") -> QuantizedModel:
    """The same by any recipe, not calibrated."""
    own = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe, cpu="vnni")
    module = without_quantizers(captured(name))
    return planned(replace(captured(name).capture, module=module), own, {})


def measured(name: str, recipe: str | Recipe = "int8_ptq", **options: Any) -> Sensitivity:
    model = prepared(name, recipe)
    return sensitivity(model, calls(model, data(name)), **options)


def calls(model: QuantizedModel, batches: Sequence[Tensor]) -> list[Call]:
    return calls_of(model.capture, batches, 8 * len(batches))


def noise_by_hand(name: str, recipe: Recipe, part: Part, scheme: object) -> float:
    """Quantized by the ordinary way, with every other layer left in float; not rounded."""
    everything = {"module": "*", "scheme": None}
    own = [{"module": layer, "scheme": scheme} for layer in part.layers]
    changed = Recipe.model_validate(
        recipe.model_dump() | {"name": "alone", "overrides": [everything, *own]}
    )
    model = prepared(name, changed)
    calibrate(model, data(name))
    return whole_noise(model, data(name))


def whole_noise(model: QuantizedModel, batches: Sequence[Tensor]) -> float:
    noise = power = 0.0
    with torch.no_grad():
        for x in batches:
            model.simulate(False)
            wanted = model(x).double()
            model.simulate()
            noise += float((model(x).double() - wanted).square().sum())
            power += float(wanted.square().sum())
    return noise / power


NETS = ("resnet", "inverted_residual", "multi_branch", "encoder", "unet_nearest")


@pytest.mark.parametrize("name", NETS)
def test_a_layers_noise_is_that_of_a_recipe_that_leaves_all_others_in_float(name: str) -> None:
    recipe = resolve_recipe("int8_ptq")
    found = measured(name, formats=["w4a8"])
    w4a8 = found.formats[0].scheme
    assert len(found.parts) > 2
    for part in (found.parts[1], found.parts[len(found.parts) // 2]):
        for loss, scheme in zip(part.losses, (recipe.scheme, w4a8), strict=True):
            assert loss is not None
            assert scheme is not None
            by_hand = noise_by_hand(name, recipe, part, scheme.model_dump())
            assert loss.noise == by_hand > 0.0, part.name


def test_a_block_alone_is_its_layers_alone_together() -> None:
    recipe = resolve_recipe("int8_ptq")
    found = measured("resnet", by="block")
    block = next(part for part in found.parts if len(part.layers) > 1)
    (loss,) = block.losses
    assert loss is not None
    assert loss.noise == noise_by_hand("resnet", recipe, block, recipe.scheme.model_dump())


def test_every_quantized_layer_is_in_one_part() -> None:
    for name in NETS:
        model = captured(name)
        for by in ("layer", "block"):
            layers = [layer for unit in units_of(model, by) for layer in unit.layers]  # type: ignore[arg-type]
            assert sorted(layers) == sorted(model.plan.quantized)
            names = [unit.name for unit in units_of(model, by)]  # type: ignore[arg-type]
            assert len(set(names)) == len(names)


def test_both_products_of_an_attention_are_one_part() -> None:
    found = measured("encoder")
    pairs = [part.layers for part in found.parts if len(part.layers) == 2]
    assert len(pairs) == 1
    assert {captured("encoder").plan.decision(name).kind for name in pairs[0]} == {Kind.MATMUL}


@pytest.mark.parametrize("recipe", ["int8_ptq", "int8_cpu"])
@pytest.mark.parametrize("name", NETS)
def test_the_noise_of_all_layers_predicts_that_of_the_whole(name: str, recipe: str) -> None:
    """To first order; within 2.5 dB for small random nets (their errors are not independent)."""
    found = measured(name, recipe)
    model = prepared(name, recipe)
    calibrate(model, data(name))
    assert abs(10 * math.log10(found.together() / whole_noise(model, data(name)))) < 2.5


def test_without_quantizers_the_graph_has_the_plan_that_it_had() -> None:
    for name in NETS:
        model = captured(name)
        again = place(describe(without_quantizers(model)).graph, model.recipe)
        assert again == model.plan


def test_the_model_stays_as_it_was() -> None:
    model = prepared("resnet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    code = model.graph.code
    sensitivity(model, calls(model, data("resnet")), formats=["w4a8"])
    assert model.graph.code == code
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_tensor_that_several_layers_read_is_rounded_for_one_of_them_alone() -> None:
    """Both 1 x 1 convolutions read x; the noise of one must not come out of the other."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(32, 16), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.left(x), self.right(x)

    torch.manual_seed(0)
    net, x = Two().eval(), torch.randn(8, 32)
    model = prepare(net, "int8_ptq", example_inputs=(x,))
    alone = isolated(model, (), "layer")
    alone.model(x)
    for node, observers in alone.sources().items():
        assert node.op == "placeholder"
        for observer in observers:
            observer(x)
    alone.calibrate()
    with torch.no_grad():
        wanted = net(x)
        for unit, name in enumerate(("left", "right")):
            assert alone.units[unit].layers == (name,)
            alone.switch(unit, 0, True)
            got = alone.model(x)
            alone.switch(unit, 0, False)
            changed = [not torch.equal(a, b) for a, b in zip(got, wanted, strict=True)]
            assert changed == [name == "left", name == "right"]


def test_a_layer_whose_weights_are_wrecked_is_the_most_sensitive() -> None:
    assert measured("mlp").ranked()[0].name != "fc2"
    model = prepared("mlp")
    with torch.no_grad():
        # One input that widens every channel's grid.
        model.graph.get_parameter("fc2.weight")[:, 0] = 40.0
    found = sensitivity(model, calls(model, data("mlp")))
    assert found.ranked()[0].name == "fc2"


def test_fewer_bits_cost_more_and_less_room_and_float_costs_nothing() -> None:
    found = measured("resnet", formats=["w4a8", "w4a4", "w4", "float"])
    assert found.columns == ("int8_ptq", "w4a8", "w4a4", "w4", "float")
    for part in found.parts:
        own, w4a8, w4a4, weights_alone, floating = part.losses
        assert own is not None
        assert w4a8 is not None
        assert w4a4 is not None
        assert floating == part.in_float
        assert own.noise < w4a8.noise < w4a4.noise
        assert own.weight_bytes > w4a8.weight_bytes == w4a4.weight_bytes
        assert own.bit_operations == 2 * w4a8.bit_operations == 4 * w4a4.bit_operations
        assert floating is not None
        assert floating.noise == 0.0
        assert floating.bit_operations == 16 * own.bit_operations
        # Engines dequantize in linear layers, not in convolutions.
        assert (weights_alone is None) == ("conv" in part.name or "shortcut" in part.name
                                           or "stem" in part.name)  # fmt: skip


def test_the_bytes_are_all_that_the_model_has() -> None:
    net = small_models.mlp()
    found = measured("mlp")
    total = found.other_bytes + sum(part.in_float.weight_bytes for part in found.parts)
    assert total == sum(p.numel() * 4 for p in net.parameters())
    assert packed_bytes((3, 5), QuantSpec(bits=4)) == 8 + 4


def test_operations_are_counted_for_one_sample() -> None:
    found = measured("resnet")
    by_name = {part.name: part.in_float.bit_operations // 32**2 for part in found.parts}
    stem = next(name for name in by_name if name.startswith("stem"))
    assert by_name[stem] == 16 * 16 * 16 * 3 * 9
    assert by_name["fc"] == 32 * 16


def test_what_is_before_a_layer_does_not_run_again() -> None:
    """Half of the rest a layer and format, on average, beside the two whole runs."""
    found = measured("resnet", formats=["w4a8"])
    assert 2.0 < found.runs < 2.0 + 0.75 * 2 * len(found.parts)


def test_a_metric_judges_float_and_each_layer_alone() -> None:
    batch = data("mlp")[0]
    seen: list[float] = []

    def metric(model: nn.Module) -> float:
        value = float(model(batch).sum())
        seen.append(value)
        return value

    found = measured("mlp", metric=metric)
    values = [loss.metric for part in found.parts for loss in part.losses if loss is not None]
    assert [found.float_metric, *values] == seen
    assert len(set(seen)) == len(seen)
    assert "int8_ptq metric" in str(found)


def test_the_noise_is_that_which_fidelity_measures() -> None:
    net = small_models.mlp()
    found = measured("mlp", formats=["w4a8"], metric=fidelity(data("mlp"), net))
    for part in found.parts:
        for loss in part.losses:
            assert loss is not None
            assert loss.metric == pytest.approx(loss.sqnr, abs=1e-3)


def test_with_batch_norm_kept_a_layer_costs_what_it_does_folded() -> None:
    net = small_models.resnet()
    kept = resolve_recipe("int8_ptq").model_copy(
        update={"passes": (PlugIn(name="keep_batchnorm"),)}
    )
    model = prepare(net, kept, example_inputs=net.example_inputs)
    found = sensitivity(model, calls(model, data("resnet")))
    folded = measured("resnet")
    for part, other in zip(found.parts, folded.parts, strict=True):
        (loss,), (wanted,) = part.losses, other.losses
        assert loss is not None
        assert wanted is not None
        assert loss.noise == pytest.approx(wanted.noise, rel=0.02)
        assert (loss.weight_bytes, loss.bit_operations) == (
            wanted.weight_bytes, wanted.bit_operations,
        )  # fmt: skip
    assert found.other_bytes <= 2 * folded.other_bytes


def test_the_json_reads_back_to_the_same() -> None:
    found = measured("mlp", formats=["w4a8", "float"])
    worst = replace(found.parts[0], losses=(
        None, *(loss and replace(loss, noise=math.inf) for loss in found.parts[0].losses[1:])
    ))  # fmt: skip
    found = replace(found, parts=(worst, *found.parts[1:]))
    assert Sensitivity.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"recipe": 3}', "null"])
def test_another_files_text_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match=r"no sensitivities .*; give a file that quantkit"):
        Sensitivity.from_json(text)


def test_the_table_is_sorted_by_loss() -> None:
    found = measured("mlp", formats=["w4a8"])
    lines = str(found).splitlines()
    assert lines[1].split() == ["int8_ptq", "w4a8", "layer"]
    figures = [float(line.split()[0]) for line in lines[2:]]
    assert figures == sorted(figures)
    assert [line.split()[-1] for line in lines[2:]] == [part.name for part in found.ranked()]


def test_the_recipes_overrides_are_its_own_format() -> None:
    found = measured("mlp", "w4a8_qat", formats=["w8a8"])
    first, middle, _ = found.parts
    for part, same in ((first, True), (middle, False)):
        mine, wide = part.losses
        assert mine is not None
        assert wide is not None
        assert (mine.noise == wide.noise) == same


def test_a_model_that_quantize_made_is_as_good_as_one_that_is_prepared() -> None:
    """Rounding to the nearest leaves the weights to their quantizers; biases move a little."""
    model = prepared("mlp")
    calibrate(model, data("mlp"))
    round_weights(model)
    found = sensitivity(model, calls(model, data("mlp")))
    for part, other in zip(found.parts, measured("mlp").parts, strict=True):
        (loss,), (before,) = part.losses, other.losses
        assert loss is not None
        assert before is not None
        assert loss.noise == pytest.approx(before.noise, rel=1e-3)


def test_what_rules_leave_in_float_stays_there_in_every_format() -> None:
    own = resolve_recipe("int8_ptq").model_copy(
        update={"overrides": (Override(module="fc2", scheme=None),)}
    )
    assert [part.name for part in measured("mlp", own).parts] == ["fc1", "fc3"]


def test_a_model_whose_weights_are_rounded_is_refused() -> None:
    model = prepared("mlp")
    with torch.no_grad():
        for layer in model.layers():
            assert layer.weight is not None
            assert layer.weight_value is not None
            layer.weight_value.copy_(layer.weight(layer.weight_value))
    with pytest.raises(ValueError, match=r"lie on their grids already.*; give the model"):
        sensitivity(model, calls(model, data("mlp")))


def test_nothing_to_measure_is_an_error() -> None:
    model = prepared("mlp")
    with pytest.raises(DataError, match="there are none; give some"):
        sensitivity(model, [])
    with pytest.raises(RecipeError, match="no format 'w4a'; write w4a8"):
        sensitivity(model, calls(model, data("mlp")), formats=["w4a"])
    empty = prepared("mlp", Recipe.model_validate({"name": "none", "scheme": {}}))
    with pytest.raises(RecipeError, match="quantizes nothing of this model"):
        sensitivity(empty, calls(empty, data("mlp")))


def test_a_format_is_the_recipes_with_other_bits() -> None:
    recipe = resolve_recipe("int8_asymmetric", cpu="vnni")
    w4a4, floating = named_formats(recipe, ["w4a4", "float", "w4a4"])
    assert floating == Format(name="float", scheme=None)
    scheme = w4a4.scheme
    assert scheme is not None
    assert scheme.weights is not None
    assert scheme.activations is not None
    assert (scheme.weights.bits, scheme.weights.per) == (4, "channel")
    assert (scheme.activations.bits, scheme.activations.symmetric) == (4, False)
    for name, words in (("w9a8", "bits must be from 2 to 8"), ("w4x", "no format"), ("w1", "bits")):
        with pytest.raises(RecipeError, match=words):
            named_formats(recipe, [name])
    with pytest.raises(RecipeError, match="leaves activations in float"):
        named_formats(resolve_recipe("int8_weight_only"), ["w4a8"])


def test_fewer_bits_stay_fewer_on_a_processor_without_vnni() -> None:
    recipe = resolve_recipe("int8_cpu", cpu="avx2")
    (w4a8,) = named_formats(recipe, ["w4a8"])
    assert w4a8.scheme is not None
    override = Override(module="fc", scheme=w4a8.scheme)
    mixed = recipe.model_copy(update={"overrides": (override,)}).with_weight_bits(7)
    (again,) = mixed.overrides
    assert again.scheme is not None
    assert again.scheme.weights is not None
    assert again.scheme.weights.bits == 4
