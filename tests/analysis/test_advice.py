"""Advice: planted faults are named, what is advised helps, and what does not help is no advice."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quantkit.analysis import advice as advising
from quantkit.analysis._advice_judging import MATTERS, Noises, energies, helps, noises, paired
from quantkit.analysis._advice_rules import proposals
from quantkit.analysis.advice import Advice, Measured, Trial, advise, changed_lines
from quantkit.analysis.diagnosis import (
    Diagnosis,
    GridUse,
    LayerDiagnosis,
    diagnose,
    float_parameters,
    leave_centering_out,
)
from quantkit.errors import DataError
from quantkit.keeping import parted
from quantkit.model_calibration import calibrate, calls_of
from quantkit.recipe import Recipe, parse_recipe
from quantkit.recovering.steps import Facts
from quantkit.workflow import correct, prepare, quantize, resolve_recipe, round_weights

pytestmark = pytest.mark.usefixtures("one_thread")

FACTS = Facts(
    calibrators=("entropy", "minmax", "mse", "percentile"),
    passes=frozenset({"align_input", "center", "correct_bias", "equalize", "smooth"}),
    operators=frozenset({"conv", "linear"}),
)


def recipe_of(per: str = "channel", **others: Any) -> Recipe:
    scheme = {"weights": {"per": per}, "activations": {}}
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **others})


def rows(count: int = 64, width: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def linears() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)).eval()


class Images(nn.Module):
    """Two convolutions; the channels between them are what a factor makes of them."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3)
        with torch.no_grad():
            self.first.weight *= factors.view(-1, 1, 1, 1)
            self.first.bias *= factors
            self.second.weight /= factors.view(1, -1, 1, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, 16)``."""
        y: Tensor = self.second(torch.relu(self.first(x))).mean((2, 3))
        return y


def advised(net: nn.Module, recipe: Recipe, x: Tensor, **options: Any) -> Advice:
    return advise(diagnosed(net, recipe, x), net, recipe, [x], **options)


def diagnosed(net: nn.Module, recipe: Recipe, x: Tensor) -> Diagnosis:
    return diagnose(quantize(net, recipe, calibration=[x]), [x])


def held_out_sqnr(net: nn.Module, recipe: Recipe, x: Tensor) -> float:
    """Of the outputs, made by the ordinary steps of the calls that calibrate."""
    model = prepare(net, "int8_ptq", example_inputs=(x[:8],))
    seen, told = parted(calls_of(model.capture, [x], len(x)))
    batches = [args for args, _ in seen]
    model = quantize(net, recipe, example_inputs=(x[:8],), calibration=batches)
    error = power = 0.0
    with torch.no_grad():
        for (y,), _ in told:
            error += float((model(y) - net(y)).double().square().sum())
            power += float(net(y).double().square().sum())
    return -10.0 * math.log10(error / power)


def test_one_large_weight_channel_under_one_scale_is_named_and_a_scale_each_helps() -> None:
    net, x = linears(), rows()
    net[2].weight.data[3] *= 30.0
    net[2].weight.data[3, :].clamp_(-2.0, 2.0)
    recipe = recipe_of("tensor")
    found = advised(net, recipe, x, trials=1)
    (own,) = found.findings
    assert (own.code, own.where) == ("per-tensor-weights", "2")
    assert "whose largest channel (3)" in own.why
    assert "scheme: {weights: {per: channel}, activations: {}}" in own.fix
    assert found.recipe.scheme.weights is not None
    assert found.recipe.scheme.weights.per == "channel"


def test_a_planted_outlier_under_min_max_is_named_and_another_calibrator_helps() -> None:
    net, x = Images(torch.ones(32)), torch.randn(64, 3, 16, 16, generator=torch.manual_seed(0))
    # Of the 48 samples that calibrate one has a pixel that no other comes near.
    x[5, 0, 0, 0] = 400.0
    recipe = recipe_of(calibrator="minmax")
    found = advised(net, recipe, x, trials=3)
    assert found.trials[0].code == "unused-range"
    assert found.trials[0].where == "first"
    helpful = {trial.change for trial in found.helpful}
    assert "calibrator: percentile" in helpful
    assert found.helpful[0].measured is not None
    assert found.helpful[0].measured.gain > 10.0
    assert f"calibrator: {found.recipe.calibrator.name}" in helpful
    assert {own.where for own in found.findings} == {"first"}


def test_a_wide_spread_of_channels_is_named_and_equalizing_helps() -> None:
    factors = torch.logspace(-1.5, 1.5, 32)[torch.randperm(32, generator=torch.manual_seed(1))]
    net, x = Images(factors), torch.randn(64, 3, 8, 8, generator=torch.manual_seed(0))
    found = advised(net, recipe_of(), x, trials=12)
    equalized = [t for t in found.trials if t.change.startswith("passes: + equalize")]
    assert {t.where for t in equalized} == {"second"}
    assert {t.code for t in equalized} == {"uneven-channels"}
    assert equalized[0].verdict == "helps"
    # What equalizing gains is not counted once more for what goes with it.
    first, second = (t.measured for t in equalized)
    assert first is not None
    assert second is not None
    assert second.before == pytest.approx(first.after)
    assert "equalize" in {choice.name for choice in found.recipe.passes}
    assert found.together is not None
    assert found.together.after > found.together.before + 3.0


def test_the_recipe_that_is_advised_makes_the_model_that_was_measured() -> None:
    net, x = linears(), rows()
    net[0].weight.data[5] *= 40.0
    recipe = recipe_of("tensor")
    found = advised(net, recipe, x)
    assert found.together is not None
    again = parse_recipe(found.to_yaml(), name="better")
    assert again.model_dump(exclude={"name"}) == found.recipe.model_dump(exclude={"name"})
    assert held_out_sqnr(net, recipe, x) == pytest.approx(found.sqnr, abs=1e-3)
    assert held_out_sqnr(net, again, x) == pytest.approx(found.together.after, abs=1e-3)


def test_what_was_tried_and_does_not_help_is_told_and_is_no_finding() -> None:
    net, x = linears(), rows()
    net[0].weight.data[5] *= 40.0
    found = advised(net, recipe_of("tensor"), x)
    idle = [trial for trial in found.trials if trial.verdict == "no help"]
    assert idle
    named = {finding.fix for finding in found.findings}
    assert not named & {trial.finding().fix for trial in idle}
    assert len(found.findings) + len(idle) == len(found.trials)
    assert [row[3] for row in found.table()[1]][-1] in {trial.change for trial in idle}
    assert all(trial.seconds > 0.0 for trial in found.trials)
    for trial in found.helpful:
        assert trial.measured is not None
        assert trial.measured.after > trial.measured.before


def test_trials_are_bounded_and_what_is_left_out_is_told() -> None:
    net, x = linears(), rows()
    net[0].weight.data[5] *= 40.0
    found = advised(net, recipe_of("tensor"), x, trials=1)
    assert len(found.trials) == 1
    assert found.untried
    assert not set(found.untried) & {trial.change for trial in found.trials}


def test_a_float_model_needs_no_advice() -> None:
    net, x = linears(), rows()
    found = Diagnosis(recipe="mine", samples=64, noise=0.0, layers=(), others=())
    told = advise(found, net, recipe_of(), [x])
    assert (told.trials, told.findings, told.together) == ((), (), None)
    assert told.recipe == recipe_of()
    assert told.to_data()["together"] is None
    assert "no change helps" in told.to_yaml()


@pytest.mark.parametrize("count", [8, 24])
def test_too_few_samples_to_judge_by_are_refused(count: int) -> None:
    net, x = linears(), rows(count)
    with pytest.raises(DataError, match="at least 32 samples"):
        advise(diagnosed(net, recipe_of(), x), net, recipe_of(), [x])


def test_a_change_that_cannot_be_built_is_told_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = linears(), rows()
    net[0].weight.data[5] *= 40.0
    recipe = recipe_of("tensor")
    measure = advising._Bench.measure

    def broken(bench: Any, candidate: Recipe) -> Noises:
        if candidate != recipe:
            raise DataError("no data for it; give some")
        return measure(bench, candidate)

    monkeypatch.setattr(advising._Bench, "measure", broken)
    found = advised(net, recipe, x, trials=2)
    assert [trial.verdict for trial in found.trials] == ["failed", "failed"]
    assert found.trials[0].note == "no data for it; give some"
    assert not found.findings
    assert found.recipe == recipe
    assert found.table()[1][0][0] == "failed"


def test_an_asymmetric_centered_recipe_is_advised_like_any_other() -> None:
    net, x = linears(), rows()
    recipe = resolve_recipe("int8_centered")
    model = prepare(net, recipe, example_inputs=(x[:8],), calibration=[x])
    floating = float_parameters(model)
    leave_centering_out(model)
    calibrate(model, [x])
    round_weights(model, [x])
    correct(model, [x])
    found = advise(diagnose(model, [x], floating=floating), net, recipe, [x], trials=2)
    assert not any(trial.code == "one-sided" for trial in found.trials)
    assert math.isfinite(found.sqnr)


def grid(role: Any = "activation", **others: Any) -> GridUse:
    known: dict[str, Any] = {
        "grid": "x", "role": role, "spec": "int8 symmetric per tensor", "low": -1.0, "high": 1.0,
        "grid_low": -1.0, "grid_high": 1.0, "saturated": 0.0, "clipped": 0.0, "unused": 0.0,
        "headroom": 0.0, "noise": 1e-4, "channels": 8, "spread": 1.0, "outliers": 0, "largest": (),
    }  # fmt: skip
    return GridUse(**(known | others))


def layer(name: str, *grids: GridUse, **others: Any) -> LayerDiagnosis:
    known: dict[str, Any] = {
        "name": name, "kind": "conv", "noise": 1e-3, "weights_noise": 5e-4,
        "activations_noise": 4e-4, "mean_share": 0.0, "model_noise": 1e-3, "grids": grids,
    }  # fmt: skip
    return LayerDiagnosis(**(known | others))


def proposed(*layers: LayerDiagnosis, recipe: Recipe | None = None) -> dict[str, str]:
    """The changes that are proposed, and where."""
    found = Diagnosis(recipe="mine", samples=8, noise=0.01, layers=layers, others=())
    return {p.change: p.where for p in proposals(found, recipe or recipe_of(), FACTS)}


def test_a_sound_diagnosis_proposes_nothing() -> None:
    assert proposed(*(layer(name, grid(), grid("weight")) for name in "abcd")) == {}


@pytest.mark.parametrize(
    ("own", "change"),
    [
        (layer("odd", grid(saturated=0.1, clipped=0.9)), "calibrator: percentile"),
        (layer("odd", grid(headroom=0.8)), "calibrator: entropy"),
        (layer("odd", grid(low=0.0, unused=0.5)), "activations: asymmetric"),
        (layer("odd", grid(spread=30.0)), "passes: + equalize"),
        (layer("odd", grid(spread=30.0), kind="linear"), "passes: + smooth"),
        (layer("odd", grid(), mean_share=0.6), "passes: + correct_bias"),
        (layer("odd", grid(), noise=0.1), "odd: float"),
        (layer("odd", grid("weight", headroom=0.3)), "weight_calibrator: mse"),
    ],
)
def test_a_fault_is_named_where_it_is(own: LayerDiagnosis, change: str) -> None:
    sound = [layer(name, grid()) for name in "abc"]
    found = proposed(*sound[:1], own, *sound[1:])
    assert found[change] == "odd"
    assert set(found.values()) == {"odd"}


def test_nothing_is_proposed_that_the_recipe_has() -> None:
    own = layer("odd", grid(headroom=0.8))
    found = proposed(own, recipe=recipe_of(calibrator="mse"))
    assert "calibrator: mse" not in found
    assert "calibrator: percentile" in found


def test_a_grid_of_one_scale_a_channel_has_no_uneven_channels() -> None:
    spec = "int8 symmetric per channel (axis 0)"
    assert proposed(layer("odd", grid(), grid("weight", spec=spec, spread=30.0))) == {}


def test_pixels_are_put_on_a_grid_where_the_input_makes_most_of_the_error() -> None:
    first = layer("first", grid(), activations_noise=9e-4)
    assert proposed(first)["activations: asymmetric, + align_input"] == "first"
    # What the asymmetric grid gains is not counted as the pixels' own.
    found = Diagnosis(recipe="mine", samples=8, noise=0.01, layers=(first,), others=())
    (proposal,) = proposals(found, recipe_of(), FACTS)
    assert proposal.beside is not None
    beside, whole = (change(recipe_of(), FACTS) for change in (proposal.beside, proposal.apply))
    assert beside is not None
    assert whole is not None
    assert [p.name for p in whole.passes] == ["fold_batchnorm", "align_input", "center"]
    assert [p.name for p in beside.passes] == ["fold_batchnorm", "center"]


def test_layers_are_left_in_float_by_an_override_that_takes_their_names_as_they_are() -> None:
    own = layer("blocks[0].conv", grid(), noise=0.1)
    layers = (own, *(layer(name, grid()) for name in "abc"))
    found = Diagnosis(recipe="mine", samples=8, noise=0.01, layers=layers, others=())
    (proposal,) = proposals(found, recipe_of(), FACTS)
    changed = proposal.apply(recipe_of(), FACTS)
    assert changed is not None
    assert proposal.costs
    assert changed.overrides[0].matches("blocks[0].conv", "conv")
    assert changed.overrides[0].scheme is None


def of(each: list[float]) -> Noises:
    return Noises(each=torch.tensor(each, dtype=torch.float64), whole=sum(each) / len(each))


@given(st.lists(st.floats(1e-6, 1.0), min_size=8, max_size=32))
def test_no_change_of_the_outputs_is_no_help(each: list[float]) -> None:
    found = paired(of(each), of(each))
    assert (found.gain, found.error) == (0.0, 0.0)
    assert not helps(found)


@given(st.lists(st.floats(1e-6, 1.0), min_size=8, max_size=32), st.integers(0, 99))
def test_what_is_better_by_as_much_as_worse_is_no_help(each: list[float], seed: int) -> None:
    """Half of the samples gain what the others lose."""
    before = of(each + each)
    factor = 1.0 + torch.rand(len(each), generator=torch.Generator().manual_seed(seed)).double()
    after = Noises(each=before.each * torch.cat([factor, 1.0 / factor]), whole=before.whole / 2.0)
    assert not helps(paired(before, after))


@given(st.lists(st.floats(1e-4, 1.0), min_size=8, max_size=32), st.floats(1.1, 100.0))
def test_what_every_sample_gains_helps(each: list[float], times: float) -> None:
    found = paired(of(each), of([own / times for own in each]))
    assert found.gain == pytest.approx(10.0 * math.log10(times), rel=1e-6)
    assert helps(found)
    assert helps(found, costs=True) == (found.gain >= 1.0)


def test_a_gain_that_is_not_worth_a_change_is_no_help() -> None:
    found = Measured(before=20.0, after=20.05, gain=0.05, error=0.001, samples=16)
    assert found.gain < MATTERS
    assert not helps(found)


def test_outputs_that_are_no_numbers_never_help() -> None:
    y = torch.ones(8, 4)
    before = noises([energies([1.1 * y], [y], 8)])
    after = noises([energies([y / 0.0 - y / 0.0], [y], 8)])
    assert after.whole == math.inf
    assert not helps(paired(before, after))


def test_each_output_of_a_sample_counts_by_its_own_size() -> None:
    large, small = torch.full((2, 3), 100.0), torch.ones(2, 5)
    sums = energies([1.1 * large, 1.1 * small], [large, small], 2)
    found = noises([sums, sums])
    assert found.each.tolist() == pytest.approx([0.02] * 4, rel=1e-4)
    assert found.whole == pytest.approx(0.02, rel=1e-4)


def test_padding_of_the_outputs_counts_for_nothing() -> None:
    y = torch.ones(2, 3, 4)
    real = torch.tensor([[True, True, False], [True, False, False]])
    wild = torch.where(real[:, :, None], 1.1 * y, 50.0 * y)
    found = noises([energies([wild], [y], 2, real)])
    assert found.each.tolist() == pytest.approx([0.01, 0.01], rel=1e-4)


def test_lines_of_a_recipe_are_those_that_differ() -> None:
    before = recipe_of(passes=["fold_batchnorm", "equalize"])
    after = before.model_copy(update={"passes": before.passes[:1]})
    assert changed_lines(before, after) == "passes: [fold_batchnorm]"
    assert changed_lines(before, before) == ""


def test_a_finding_names_the_lines_and_what_was_measured() -> None:
    own = Trial(
        code="unused-range", where="fc", why="Half is unused.", change="calibrator: mse",
        fix="calibrator: mse", verdict="helps",
        measured=Measured(before=20.0, after=24.0, gain=4.0, error=0.5, samples=16),
    )  # fmt: skip
    found = replace(own, fix="a: 1\nb: 2").finding()
    assert str(found) == (
        "warning[unused-range] fc: Half is unused. Fix: Write in the recipe: a: 1; b: 2 (outputs "
        "20.0 to 24.0 dB (+4.00 ± 0.50 on 16 samples))."
    )
