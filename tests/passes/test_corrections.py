"""Bias correction and batch-norm re-estimation: no layer worse, and every grid kept."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import small_models
from quantkit import numerics
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import ModelPass
from quantkit.model import QuantizedModel, copied
from quantkit.onnx.export import to_ir
from quantkit.passes._moments import Moments, Sums, matching_factor
from quantkit.passes._normal import clipped_mean
from quantkit.passes.correct_bias import CorrectBias
from quantkit.passes.reestimate_batchnorm import ReestimateBatchNorm
from quantkit.recipe import Recipe
from quantkit.reconstruction.float_layers import FLOAT
from quantkit.workflow import quantize, resolve_recipe

PASSES = {
    "correct_bias": CorrectBias(),
    "correct_bias, analytical": CorrectBias(method="analytical"),
    "reestimate_batchnorm": ReestimateBatchNorm(),
    "reestimate_batchnorm, least squares": ReestimateBatchNorm(fit="least_squares"),
}
every_pass = pytest.mark.parametrize("found", PASSES.values(), ids=PASSES)


def recipe(weights: str, *passes: Any, bits: int | None = None) -> Recipe:
    choice = resolve_recipe("int8_ptq").model_dump()
    choice["scheme"]["weights"].update(per=weights, bits=bits)
    choice.update(passes=["fold_batchnorm", *passes], calibrator="minmax")
    return Recipe.model_validate(choice)


def named(found: ModelPass) -> dict[str, Any]:
    name = "correct_bias" if isinstance(found, CorrectBias) else "reestimate_batchnorm"
    return {"name": name, "settings": dict(vars(found))}


def batches(model: small_models.SmallModel) -> list[Tensor]:
    return [model.inputs(16, seed=seed)[0] for seed in (1, 2)]


def db(model: nn.Module, qmodel: QuantizedModel, data: list[Tensor]) -> float:
    with torch.no_grad():
        return numerics.sqnr(model(torch.cat(data)), qmodel(torch.cat(data)))


def require_grids(qmodel: QuantizedModel) -> None:
    """Biases are multiples of the step of the sums that they join."""
    for layer in qmodel.layers():
        if layer.bias is not None and (step := layer.bias_step) is not None:
            assert torch.equal(numerics.round_to_multiple(layer.bias, step), layer.bias)


@cache
def coarse(weights: str) -> QuantizedModel:
    """With weights of 5 bits, and no correction; never changed by a test."""
    model = small_models.inverted_residual()
    return quantize(model, recipe(weights, bits=5), calibration=batches(model))


@cache
def corrected(weights: str, found: ModelPass) -> QuantizedModel:
    """The same with a correction."""
    model = small_models.inverted_residual()
    return quantize(model, recipe(weights, named(found), bits=5), calibration=batches(model))


@every_pass
def test_coarse_weights_cost_less_with_a_correction(found: ModelPass) -> None:
    model = small_models.inverted_residual()
    data = batches(model)
    weights = "tensor" if isinstance(found, CorrectBias) else "channel"
    plain, better = coarse(weights), corrected(weights, found)
    assert db(model, better, data) > db(model, plain, data) + 0.2
    require_grids(better)
    assert not any(FLOAT in node.meta for node in better.graph.graph.nodes)


class Bare(nn.Module):
    """Layers without biases, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, bias=False)
        self.fc, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        out: Tensor = self.last(torch.relu(self.fc(torch.relu(self.fc(x)))))
        return out


@pytest.mark.parametrize("found", [CorrectBias(), ReestimateBatchNorm()])
def test_a_layer_without_a_bias_is_given_one_and_the_model_exports(found: ModelPass) -> None:
    torch.manual_seed(0)
    model, x = Bare().eval(), torch.randn(16, 3, 12, 12)
    qmodel = quantize(model, recipe("tensor", named(found), bits=4), calibration=[x])
    require_grids(qmodel)
    assert all(layer.bias is not None for layer in qmodel.layers())
    assert qmodel(x[:3]).shape == (3, 16)
    torch.testing.assert_close(copied(qmodel)(x), qmodel(x), atol=0, rtol=0)
    if isinstance(found, CorrectBias):
        convs = [n for n in to_ir(qmodel, form="tensorrt").graph if n.op_type == "Conv"]
        assert [len(conv.inputs) for conv in convs] == [3]


def test_both_passes_in_a_row_compare_with_the_float_model_itself() -> None:
    model = small_models.inverted_residual()
    data = batches(model)
    both = recipe("channel", "correct_bias", "reestimate_batchnorm", bits=5)
    assert db(model, quantize(model, both, calibration=data), data) > (
        db(model, coarse("channel"), data) + 0.2
    )


@every_pass
def test_a_model_whose_float_weights_are_gone_says_so(found: ModelPass) -> None:
    qmodel = coarse("channel")
    (x,) = small_models.inverted_residual().inputs(4)
    with pytest.raises(RecipeError, match="float weights"):
        found.apply(qmodel, [((x,), {})])
    with pytest.raises(DataError, match="at least one batch"):
        found.apply(qmodel, [])


@every_pass
def test_a_dead_channel_whose_bias_fills_its_sums_stays_as_it_is(found: ModelPass) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), torch.randn(32, 32)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[3] = 0.0
            layer.bias[3] = 500.0
    qmodel = quantize(model, recipe("channel", named(found), bits=4), calibration=[x])
    require_grids(qmodel)
    assert torch.isfinite(qmodel(x)).all()
    torch.testing.assert_close(qmodel(x)[:, 3], model(x)[:, 3], rtol=1e-3, atol=0)


def test_the_integers_of_weights_stay_when_their_scales_move() -> None:
    fitted = corrected("channel", ReestimateBatchNorm())
    moved = 0
    for a, b in zip(coarse("channel").layers(), fitted.layers(), strict=True):
        assert a.weight is not None
        assert b.weight is not None
        assert a.weight_value is not None
        assert b.weight_value is not None
        integers = [numerics.quantize(x.weight_value, x.weight.qparams) for x in (a, b)]  # type: ignore[arg-type,union-attr]
        assert torch.equal(*integers)
        moved += int((a.weight.scale != b.weight.scale).sum())
    assert moved > 50


floats = st.floats(-5, 5)


@given(floats, st.floats(0, 4), floats, st.floats(0, 6))
@settings(max_examples=40, deadline=None)
def test_clipped_means_are_those_of_the_integral(
    mean: float, std: float, low: float, width: float
) -> None:
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = mean + std * torch.special.ndtri(quantiles)
    m, s = torch.tensor([mean]), torch.tensor([std])
    high = torch.tensor([low + width])
    m, s, high = m.double(), s.double(), high.double()
    relu = clipped_mean(m, s, low)
    torch.testing.assert_close(relu, z.clamp(min=low).mean()[None], atol=1e-3, rtol=0.0)
    both = clipped_mean(m, s, low, high)
    torch.testing.assert_close(both, z.clamp(low, low + width).mean()[None], atol=1e-3, rtol=0.0)
    torch.testing.assert_close(clipped_mean(m, s), m)


@given(st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_all_samples_together(seed: int, calls: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(4 * calls, 3, 5, generator=generator) * 2 + 30
    q = f + 0.3 * torch.randn(f.shape, generator=generator) - 0.5
    gathered = Sums()
    for x, y in zip(f.chunk(calls), q.chunk(calls), strict=True):
        gathered.add(x, y, 1)
    found = gathered.moments()
    rows_f, rows_q = (x.movedim(1, 0).flatten(1).double() for x in (f, q))
    torch.testing.assert_close(found.mean_f, rows_f.mean(1))
    torch.testing.assert_close(found.var_q, rows_q.var(1, correction=0))
    a, d = torch.tensor(1.1).double(), torch.tensor(-0.2).double()
    error = ((rows_f - a * rows_q - d) ** 2).mean(1)
    torch.testing.assert_close(found.error(a, d), error)
    fitted = matching_factor(found, least_squares=True)
    best = found.mean_f - fitted * found.mean_q
    for other in (0.98, 1.0, 1.02):
        changed = found.mean_f - other * fitted * found.mean_q
        assert bool((found.error(fitted, best) <= found.error(other * fitted, changed)).all())


def test_what_a_relu_behind_cannot_tell_apart_does_not_count() -> None:
    low, high = torch.tensor(0.0), torch.tensor(6.0)
    seen, whole = Sums((low, high)), Sums()
    f = torch.tensor([[1.0, -9.0, 2.0, 9.0]])
    q = torch.tensor([[1.5, -3.0, 2.5, 7.0]])
    for sums in (seen, whole):
        sums.add(f, q, 0)
    assert (seen.moments().mean_f - seen.moments().mean_q).item() == pytest.approx(-0.5)
    assert (whole.moments().mean_f - whole.moments().mean_q).item() == pytest.approx(-1.25)


def test_no_variance_makes_no_factor() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    for least_squares in (True, False):
        factor = matching_factor(Moments(zero, zero, zero, zero, zero), least_squares=least_squares)
        assert factor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("settings_", [{"samples": 0}, {"method": "best"}, {"fit": "best"}])
def test_settings_are_checked(settings_: dict[str, Any]) -> None:
    kind: Any = ReestimateBatchNorm if "fit" in settings_ else CorrectBias
    with pytest.raises(ValueError, match="must be"):
        kind(**settings_)
