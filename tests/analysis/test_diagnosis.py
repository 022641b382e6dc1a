"""Diagnoses: each layer's own error, of which of its inputs, and how grids fit their values."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import small_models
from quantkit.analysis._diagnosis_counts import Counts, Peaks, ends, outliers, unused_share
from quantkit.analysis._diagnosis_noise import Noise
from quantkit.analysis.diagnosis import (
    Diagnosis,
    LayerDiagnosis,
    diagnose,
    float_parameters,
    leave_centering_out,
)
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.graph.edit import evaluate_constant
from quantkit.model import QuantizedModel, copied
from quantkit.model_calibration import calibrate
from quantkit.numerics import QParams, fake_quantize
from quantkit.recipe import Recipe
from quantkit.spec import QuantSpec
from quantkit.workflow import correct, prepare, quantize, round_weights

pytestmark = pytest.mark.usefixtures("one_thread")

SPECS = [
    QuantSpec(),
    QuantSpec(symmetric=False),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(bits=4),
    QuantSpec(dtype="fp8_e4m3"),
]


def rows(count: int, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def two_linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)).eval()


def calibrated(net: nn.Module, recipe: str | Recipe, x: Tensor) -> QuantizedModel:
    model = prepare(net, recipe, example_inputs=(x[:2],))
    calibrate(model, [x])
    return model


@cache
def resnet() -> tuple[QuantizedModel, Tensor]:
    """A residual net, quantized with min-max ranges, and what it was calibrated with."""
    net = small_models.resnet()
    x = net.inputs(16)[0]
    recipe = Recipe.model_validate(
        {"name": "plain", "scheme": {"weights": {"per": "channel"}, "activations": {}}}
    )
    return calibrated(net, recipe, x), x


def layer(found: Diagnosis, name: str) -> LayerDiagnosis:
    return next(own for own in found.layers if own.name == name)


def noise(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach(), wanted.detach()
    return float((got - wanted).double().square().sum() / wanted.double().square().sum())


def test_a_layers_own_noise_is_that_of_its_result_with_float_inputs() -> None:
    net, x = two_linears(), rows(16)
    model = calibrated(net, "int8_ptq", x)
    second = list(model.layers())[1]
    assert second.activation is not None
    assert second.weight is not None
    inputs = torch.relu(net[0](x)).detach()
    weight, bias = net[2].weight.detach(), net[2].bias.detach()
    rounded = fake_quantize(weight, second.weight.qparams)
    on_grid = fake_quantize(inputs, second.activation.qparams)
    wanted = nn.functional.linear(inputs, weight, bias)
    found = layer(diagnose(model, [x], samples=16), "2")
    linear = nn.functional.linear
    assert found.noise == pytest.approx(noise(linear(on_grid, rounded, bias), wanted), rel=1e-3)
    assert found.weights_noise == pytest.approx(
        noise(linear(inputs, rounded, bias), wanted), rel=1e-3
    )
    assert found.activations_noise == pytest.approx(
        noise(linear(on_grid, weight, bias), wanted), rel=1e-3
    )


def test_the_last_layer_of_the_quantized_model_has_the_outputs_noise() -> None:
    net, x = two_linears(), rows(16)
    model = calibrated(net, "int8_ptq", x)
    found = diagnose(model, [x], samples=16)
    with torch.no_grad():
        by_hand = noise(model(x), net(x))
    assert found.noise == pytest.approx(by_hand, rel=1e-3)
    assert found.layers[-1].model_noise == pytest.approx(by_hand, rel=1e-3)
    assert found.layers[-1].model_noise > found.layers[-1].noise
    assert found.layers[0].model_noise == pytest.approx(found.layers[0].noise, rel=1e-6)


def test_shares_of_a_real_model_sum_to_one() -> None:
    model, x = resnet()
    for own in diagnose(model, [x], samples=16).layers:
        assert own.weights_share is not None
        assert own.activations_share is not None
        assert own.weights_share + own.activations_share == pytest.approx(1.0)
        # Errors of weights and of activations are nearly independent.
        both = (own.weights_noise or 0.0) + (own.activations_noise or 0.0)
        assert own.noise == pytest.approx(both, rel=0.25)


@given(
    st.one_of(st.none(), st.floats(0.0, 1e6)), st.one_of(st.none(), st.floats(0.0, 1e6)),
)  # fmt: skip
def test_shares_sum_to_one_or_are_absent(weights: float | None, activations: float | None) -> None:
    own = LayerDiagnosis(
        name="fc", kind="linear", noise=0.0, weights_noise=weights, activations_noise=activations,
        mean_share=0.0, model_noise=0.0, grids=(),
    )  # fmt: skip
    if not (weights or activations):
        assert own.weights_share is None
        assert own.activations_share is None
        return
    assert own.weights_share is not None
    assert own.activations_share is not None
    assert 0.0 <= own.weights_share <= 1.0
    assert own.weights_share + own.activations_share == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("recipe", "weights", "activations"),
    [("int8_weight_only", 1.0, 0.0), ("int8_activation_only", 0.0, 1.0)],
)
def test_what_alone_is_quantized_makes_all_of_the_error(
    recipe: str, weights: float, activations: float
) -> None:
    model = quantize(two_linears(), recipe, calibration=[rows(16)])
    for own in diagnose(model, [rows(16)], samples=16).layers:
        assert (own.weights_share, own.activations_share) == (weights, activations)
        assert (own.weights_noise is None) == (weights == 0.0)
        assert (own.activations_noise is None) == (activations == 0.0)


def test_values_that_lie_on_their_grids_make_no_error() -> None:
    """Whole numbers from -127 to 127, with both ends in each tensor: every scale is 1."""
    net = nn.Sequential(nn.Linear(32, 16, bias=False)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (16, 32), generator=generator).float()
    weight = torch.randint(-127, 128, (16, 32), generator=generator).float()
    x[0, 0], weight[:, 0] = 127.0, 127.0
    net[0].weight.data = weight
    model = calibrated(net, Recipe.model_validate(
        {"name": "plain", "scheme": {"weights": {"per": "channel"}, "activations": {}}}
    ), x)  # fmt: skip
    found = diagnose(model, [x], samples=16, floating=float_parameters(model))
    (own,) = found.layers
    assert (own.noise, own.weights_noise, own.activations_noise) == (0.0, 0.0, 0.0)
    assert own.weights_share is None
    assert own.activations_share is None
    assert found.sqnr == math.inf
    assert found.table()[1][0][0] == "exact"


def widened(factor: float) -> Diagnosis:
    """A residual net in which one grid is so many times as wide as its values."""
    source, x = resnet()
    model = copied(source)
    quantizer = next(own.activation for own in model.layers() if own.name == "fc")
    assert quantizer is not None
    grid = quantizer.qparams
    quantizer.set_qparams(replace(grid, scale=grid.scale * factor))
    return diagnose(model, [x], samples=16)


def grids_of(found: Diagnosis) -> dict[str, Any]:
    return {own.name: own.activations[0] for own in found.layers}


def test_a_grid_ten_times_too_wide_is_the_one_that_is_unused() -> None:
    grids = grids_of(widened(10.0))
    assert max(grids, key=lambda name: grids[name].unused) == "fc"
    assert grids["fc"].unused > 0.9
    assert grids["fc"].headroom > 0.85 > max(g.headroom for n, g in grids.items() if n != "fc")
    assert grids["fc"].saturated == 0.0


def test_a_grid_ten_times_too_narrow_is_the_one_that_saturates() -> None:
    grids = grids_of(widened(0.1))
    assert max(grids, key=lambda name: grids[name].saturated) == "fc"
    assert grids["fc"].saturated > 0.25
    assert grids["fc"].clipped > 0.99
    others = [grid for name, grid in grids.items() if name != "fc"]
    assert all(grid.saturated == 0.0 and grid.clipped == 0.0 for grid in others)


def test_a_large_channel_of_an_input_is_named() -> None:
    net, x = two_linears(), rows(16)
    x[:, 7] *= 50.0
    found = diagnose(calibrated(net, "int8_ptq", x), [x], samples=16)
    own = found.layers[0].activations[0]
    assert own.outliers == 1
    assert own.largest[0].channel == 7
    assert own.spread == own.largest[0].times
    assert 30.0 < own.spread < 80.0
    assert own.channels == 32


def test_a_large_channel_of_a_weight_is_named() -> None:
    net = two_linears()
    net[2].weight.data[3] *= 20.0
    found = diagnose(calibrated(net, "int8_ptq", rows(16)), [rows(16)], samples=16)
    own = layer(found, "2").weight
    assert own is not None
    assert own.channels == 16
    assert [o.channel for o in own.largest] == [3]
    assert own.largest[0].times == pytest.approx(20.0, rel=0.2)


def test_channels_of_images_are_those_that_a_convolution_sums_over() -> None:
    model, x = resnet()
    found = diagnose(model, [x], samples=16)
    first = found.layers[0]
    assert first.activations[0].channels == 3
    assert first.weight is not None
    assert first.weight.channels == 16
    assert [grid.role for grid in first.grids] == ["activation", "weight"]


def test_the_skip_branch_of_an_add_stands_beside_the_layers() -> None:
    model, x = resnet()
    found = diagnose(model, [x], samples=16)
    read = {grid.grid for own in found.layers for grid in own.activations}
    others = {grid.grid for grid in found.others}
    every = {g for g, members in model.plan.grids.items() if members[0].role == "activation"}
    assert others
    assert not others & read
    assert others | read == every


def test_it_does_not_matter_how_samples_are_batched() -> None:
    model, x = resnet()
    one = diagnose(model, [x], samples=16)
    other = diagnose(model, x.split(3), samples=16)
    assert [own.name for own in one.layers] == [own.name for own in other.layers]
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.noise == pytest.approx(b.noise, rel=1e-6)
        assert a.grids == b.grids


def test_only_the_first_samples_are_looked_at() -> None:
    model, x = resnet()
    wild = torch.cat([x[:8], 1000.0 * x[8:]])
    assert diagnose(model, [wild], samples=8) == diagnose(model, [x[:8]], samples=8)


def test_the_model_stays_as_it_was() -> None:
    model, x = resnet()
    model.simulate(False)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    diagnose(model, [x], samples=8)
    assert model.training
    assert not any(q.quantizing for q in model.quantizers.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.simulate()
    model.eval()


class Sentences(nn.Module):
    """Two linear layers over words, and the mean over those that there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)
        self.eval()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        """``(N, T, 32)`` to ``(N, 32)``."""
        words = attention_mask.unsqueeze(-1).to(x.dtype)
        y = self.second(torch.relu(self.first(x))) * words
        mean: Tensor = y.sum(1) / words.sum(1)
        return mean


def test_padding_counts_for_nothing() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).repeat(4, 1)
    x = rows(32).reshape(8, 4, 32)
    wild = torch.where(mask.bool().unsqueeze(-1), x, 1000.0 * x)
    model = quantize(Sentences(), "int8_ptq", calibration=[(x, mask)])
    one = diagnose(model, [(x, mask)], samples=8)
    other = diagnose(model, [(wild, mask)], samples=8)
    assert one.layers[0].activations[0].high < 10.0
    assert one.layers == other.layers


def test_transformers_are_diagnosed_to_their_products() -> None:
    net = small_models.encoder()
    x = net.inputs(8)[0]
    found = diagnose(quantize(net, "int8_ptq", calibration=[x]), [x], samples=8)
    products = [own for own in found.layers if own.kind == "matmul"]
    assert len(products) == 2
    for own in products:
        assert own.weight is None
        assert own.weights_noise is None
        assert own.activations_share == 1.0
        assert len(own.activations) == 2
        assert 1e-9 < own.noise < 1e-2


def test_rounding_that_learns_is_compared_with_the_float_weights() -> None:
    net, x = two_linears(), [rows(8, seed=seed) for seed in range(8)]
    recipe = Recipe.model_validate({
        "name": "learned", "rounding": "gptq",
        "scheme": {"weights": {"bits": 4, "per": "channel"}, "activations": {}},
    })  # fmt: skip
    model = prepare(net, recipe, example_inputs=(x[0],))
    floating = float_parameters(model)
    calibrate(model, x)
    round_weights(model, x)
    found = diagnose(model, x, floating=floating)
    weight = evaluate_constant(model.graph, next(iter(model.layers())).weight_source)
    inputs = torch.cat(x)
    by_hand = noise(
        nn.functional.linear(inputs, weight, net[0].bias),
        nn.functional.linear(inputs, net[0].weight, net[0].bias),
    )
    assert found.layers[0].weights_noise == pytest.approx(by_hand, rel=1e-2)
    with pytest.raises(ValueError, match="float_parameters"):
        diagnose(model, x)


def test_a_centered_model_is_refused_and_one_before_centering_has_the_same_codes() -> None:
    net, x = two_linears(), rows(16)
    centered = quantize(net, "int8_centered", calibration=[x])
    with pytest.raises(RecipeError, match="leave_centering_out"):
        diagnose(centered, [x], floating=float_parameters(centered))
    model = prepare(net, "int8_centered", example_inputs=(x[:2],), calibration=[x])
    floating = float_parameters(model)
    leave_centering_out(model)
    calibrate(model, [x])
    round_weights(model, [x])
    correct(model, [x])
    found = diagnose(model, [x], floating=floating)
    with torch.no_grad():
        assert found.noise == pytest.approx(noise(centered(x), net(x)), rel=1e-2)


def test_what_has_nothing_to_tell_is_refused() -> None:
    net, x = two_linears(), rows(8)
    nothing = Recipe.model_validate({"name": "nothing", "scheme": {}})
    with pytest.raises(RecipeError, match="nothing to diagnose"):
        diagnose(quantize(net, nothing, calibration=[x]), [x])
    with pytest.raises(DataError, match="calibrate the model"):
        diagnose(prepare(net, "int8_ptq", example_inputs=(x,)), [x])
    with pytest.raises(DataError, match="give some"):
        diagnose(calibrated(net, "int8_ptq", x), [x], samples=0)


def test_the_file_reads_back_and_another_is_refused() -> None:
    model, x = resnet()
    found = diagnose(model, [x], samples=8)
    assert Diagnosis.from_json(found.to_json()) == found
    data = json.loads(found.to_json())
    assert data["layers"][0]["weights_share"] == found.layers[0].weights_share
    with pytest.raises(ModelFileError, match="no diagnosis"):
        Diagnosis.from_json("{}")


def test_what_is_infinite_is_null_in_the_file() -> None:
    own = LayerDiagnosis(
        name="fc", kind="linear", noise=math.inf, weights_noise=None, activations_noise=0.0,
        mean_share=0.0, model_noise=0.0, grids=(),
    )  # fmt: skip
    found = Diagnosis(recipe="mine", samples=1, noise=math.inf, layers=(own,), others=())
    assert json.loads(found.to_json())["layers"][0]["noise"] is None
    assert Diagnosis.from_json(found.to_json()) == found
    assert found.table()[1][0][0] == "NaN"


def test_the_table_has_the_worst_layer_first() -> None:
    model, x = resnet()
    found = diagnose(model, [x], samples=8)
    figures = [float(row[0]) for row in found.table()[1]]
    assert figures == sorted(figures)
    assert str(found).splitlines()[2].endswith(found.ranked()[0].name)


def counted(x: Tensor, qparams: QParams, parts: int = 1) -> Any:
    counts = Counts("x", "activation", qparams)
    for part in x.tensor_split(parts):
        counts.update(part)
    return counts.use()


@given(
    st.lists(st.floats(-100.0, 100.0, width=32), min_size=2, max_size=40),
    st.floats(0.01, 1.0), st.sampled_from(SPECS), st.integers(1, 4),
)  # fmt: skip
def test_counts_add_up_however_values_come(
    values: list[float], scale: float, spec: QuantSpec, parts: int
) -> None:
    x = torch.tensor(values)
    zero_point = torch.tensor(spec.middle, dtype=torch.int32)
    qparams = QParams(scale=torch.tensor(scale), zero_point=zero_point, spec=spec)
    one, other = counted(x, qparams), counted(x, qparams, parts)
    assert one.saturated == other.saturated
    assert one.unused == other.unused
    assert one.headroom == other.headroom
    assert one.noise == pytest.approx(other.noise, rel=1e-5)
    shares = [one.saturated, one.clipped, one.unused]
    assert all(0.0 <= share <= 1.0 for share in shares)
    if one.headroom is not None:
        assert 0.0 <= one.headroom <= 1.0
    # What lies beyond an end by no more than half a step is rounded, not cut off.
    low, high = ((end - spec.middle) * scale for end in (spec.qmin, spec.qmax))
    if float(x.min()) >= low and float(x.max()) <= high:
        assert one.saturated == 0.0
        assert one.clipped == 0.0


@given(st.sampled_from(SPECS), st.floats(-300.0, 300.0), st.floats(-300.0, 300.0))
def test_a_wider_range_leaves_no_more_of_a_grid_unused(
    spec: QuantSpec, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    narrow = unused_share(torch.tensor(low), torch.tensor(high), spec)
    wide = unused_share(torch.tensor(low - 10.0), torch.tensor(high + 10.0), spec)
    assert float(wide) <= float(narrow)
    whole = unused_share(*(torch.tensor(float(end)) for end in ends(spec)), spec)
    assert float(whole) == 0.0


@given(st.lists(st.floats(0.0, 1e3, width=32), min_size=1, max_size=30), st.floats(0.25, 4.0))
def test_outliers_do_not_depend_on_the_unit(peaks: list[float], unit: float) -> None:
    values = torch.tensor([peak if peak > 1e-3 else 0.0 for peak in peaks])
    spread, many, largest = outliers(values)
    assert spread >= 1.0
    assert many >= len(largest)
    assert outliers(values * unit)[0] == pytest.approx(spread, rel=1e-4)


def test_what_is_no_number_does_not_count() -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    odd = torch.tensor([[1.0, -2.0, math.nan, math.inf], [0.5, 1.0, -math.inf, math.nan]])
    zero = torch.tensor(0, dtype=torch.int32)
    grid = QParams(scale=torch.tensor(0.1), zero_point=zero, spec=QuantSpec())
    assert counted(odd, grid) == counted(x, grid)
    peaks = Peaks()
    peaks.update(odd, -1)
    assert peaks.values is not None
    assert peaks.values.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_channels_that_change_in_number_are_not_compared() -> None:
    peaks = Peaks()
    peaks.update(torch.ones(2, 3), 1)
    peaks.update(torch.ones(2, 4), 1)
    peaks.update(torch.ones(2, 4), 1)
    assert peaks.values is None


def test_an_error_that_is_the_same_for_all_samples_is_a_mean_error() -> None:
    wanted = rows(64, 8)
    shifted, random = Noise(), Noise()
    shifted.update(wanted + torch.arange(8.0), wanted, axis=1)
    random.update(wanted + rows(64, 8, seed=1), wanted, axis=1)
    assert shifted.mean_share == pytest.approx(1.0)
    assert random.mean_share < 0.1


def test_what_the_float_model_masks_does_not_count() -> None:
    wanted = torch.tensor([1.0, -math.inf, 2.0])
    own = Noise()
    own.update(torch.tensor([1.0, -9.0, 2.2]), wanted)
    assert own.relative == pytest.approx(0.04 / 5.0, rel=1e-4)
    broken = Noise()
    broken.update(torch.tensor([math.nan, 0.0, 2.0]), wanted)
    assert broken.relative == math.inf
