"""What each step proposes, from a recipe and facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantkit import plugins
from quantkit.recipe import Recipe, parse_recipe
from quantkit.recovering import ladder
from quantkit.recovering.steps import Candidate, Facts, Skip

FACTS = Facts(
    calibrators=("best", "entropy", "minmax"),
    passes=frozenset({"equalize", "absorb_bias", "smooth", "awq", "center", "correct_bias"}),
    roundings=frozenset({"nearest", "gptq"}),
    model_passes=frozenset({"center", "correct_bias"}),
    operators=frozenset({"conv", "linear"}),
    ranking=(("fc",), ("scores", "context"), ("a",), ("b",), ("c",)),
)


def recipe(**changes: Any) -> Recipe:
    scheme = {"weights": {"per": "tensor"}, "activations": {}}
    return Recipe.model_validate({"name": "mine", "scheme": scheme, **changes})


def proposed(step: str, best: Recipe, facts: Facts = FACTS) -> tuple[Candidate, ...]:
    found = {s.name: s for s in ladder.LADDER}[step].propose(best, facts)
    assert not isinstance(found, Skip), found.why
    return found


def skipped(step: str, best: Recipe, facts: Facts = FACTS) -> str:
    found = {s.name: s for s in ladder.LADDER}[step].propose(best, facts)
    assert isinstance(found, Skip)
    return found.why


def names(best: Recipe) -> list[str]:
    return [choice.name for choice in best.passes]


def test_steps_have_names_of_their_own_and_what_costs_little_comes_first() -> None:
    steps = [step.name for step in ladder.LADDER]
    assert len(set(steps)) == len(steps)
    wanted = ["calibrators", "equalization", "bias correction", "quick rounding", "mixed precision"]
    assert [name for name in steps if name in wanted] == wanted
    assert steps[-1] == "training"


def test_every_candidate_is_a_valid_recipe_that_its_file_gives_back() -> None:
    facts = replace(FACTS, trains=True, allowed=frozenset(ladder.ALLOWANCES))
    count = 0
    for step in ladder.LADDER:
        found = step.propose(recipe(), facts)
        for candidate in () if isinstance(found, Skip) else found:
            read = parse_recipe(candidate.recipe.to_yaml(), name="mine")
            assert read.model_dump() == candidate.recipe.model_dump()
            assert candidate.step == step.name
            count += 1
    assert count > 10


def test_plug_ins_that_steps_name_are_those_of_the_folders() -> None:
    known = set(plugins.names("passes"))
    assert {"equalize", "absorb_bias", "smooth", "awq", "center", "correct_bias"} <= known
    assert set(ladder._ORDER) <= known


def test_all_calibrators_but_the_recipes_own_are_tried() -> None:
    tried = proposed("calibrators", recipe(calibrator="entropy"))
    assert [c.recipe.calibrator.name for c in tried] == ["best", "minmax"]
    weight_only = recipe(scheme={"weights": {}})
    assert "activations in float" in skipped("calibrators", weight_only)


def test_a_scale_a_channel_needs_leave() -> None:
    assert "--allow per_channel" in skipped("per channel", recipe())
    (allowed,) = proposed(
        "per channel", recipe(), replace(FACTS, allowed=frozenset({"per_channel"}))
    )
    assert allowed.recipe.scheme.weights.per == "channel"
    channel = recipe(scheme={"weights": {"per": "channel"}})
    assert "no scale per tensor" in skipped("per channel", channel)


def test_passes_are_added_in_the_order_in_which_they_belong() -> None:
    best = recipe(passes=["fold_batchnorm", "correct_bias"])
    first, second = proposed("equalization", best)
    assert names(first.recipe) == ["fold_batchnorm", "equalize", "correct_bias"]
    assert names(second.recipe) == ["fold_batchnorm", "equalize", "absorb_bias", "correct_bias"]
    (centered,) = proposed("asymmetric", best)
    assert names(centered.recipe)[-1] == "center"


def test_settings_of_passes_that_are_there_stay() -> None:
    best = recipe(passes=[{"name": "equalize", "settings": {"bound": 10.0}}])
    (more,) = proposed("equalization", best)
    assert more.recipe.passes[0].settings == {"bound": 10.0}
    assert names(more.recipe) == ["equalize", "absorb_bias"]


def test_what_is_not_installed_or_does_not_apply_is_said() -> None:
    none = replace(FACTS, passes=frozenset())
    assert skipped("equalization", recipe(), none) == "no pass absorb_bias, equalize is installed"
    assert skipped("learned rounding", recipe()) == "no rounding adaround is installed"
    convs = replace(FACTS, operators=frozenset({"conv"}))
    assert skipped("smoothing", recipe(), convs) == "no linear layer is quantized"
    assert "--train" in skipped("training", recipe())


def test_an_onnx_file_is_offered_only_what_there_is_for_it() -> None:
    onnx = replace(FACTS, onnx=True, ranking=None)
    open_steps = [
        step.name for step in ladder.LADDER if not isinstance(step.propose(recipe(), onnx), Skip)
    ]
    assert open_steps == ["calibrators", "weight ranges"]


def test_weight_only_recipes_get_the_scaling_for_weights() -> None:
    (one,) = proposed("smoothing", recipe(scheme={"weights": {}}))
    assert names(one.recipe) == ["fold_batchnorm", "awq"]


def test_tensorrt_gets_no_zero_points_without_centering() -> None:
    (centered,) = proposed("asymmetric", recipe())
    assert not centered.recipe.scheme.activations.symmetric
    assert "center" in names(centered.recipe)
    (plain,) = proposed("asymmetric", recipe(target="onnxruntime"))
    assert "center" not in names(plain.recipe)
    without = replace(FACTS, passes=frozenset())
    assert skipped("asymmetric", recipe(), without) == "no pass center is installed"


def test_images_are_put_on_their_pixels_behind_the_asymmetric_grids_that_it_needs() -> None:
    facts = replace(FACTS, passes=FACTS.passes | {"align_input"})
    plain, aligned = proposed("asymmetric", recipe(passes=["fold_batchnorm", "equalize"]), facts)
    assert names(plain.recipe) == ["fold_batchnorm", "equalize", "center"]
    assert names(aligned.recipe) == ["fold_batchnorm", "align_input", "equalize", "center"]
    linear = replace(facts, operators=frozenset({"linear"}))
    assert len(proposed("asymmetric", recipe(), linear)) == 1


def test_sensitive_layers_are_doubled_up_to_half_and_stay_together() -> None:
    best = recipe(overrides=[{"module": "stem", "scheme": None}])
    tried = proposed("mixed precision", best)
    layers = [[o.module for o in c.recipe.overrides] for c in tried]
    assert layers == [["stem", "fc"], ["stem", "fc", "scores", "context"]]
    assert all(o.scheme is None for c in tried for o in c.recipe.overrides)


def test_layers_of_four_bits_get_eight_before_they_are_left_in_float() -> None:
    four = recipe(scheme={"weights": {"bits": 4, "per": "channel"}, "activations": {}})
    scheme = proposed("mixed precision", four)[0].recipe.overrides[0].scheme
    assert scheme.weights.bits is None
    assert scheme.weights.per == "channel"
    grouped = {"weights": {"dtype": "int4", "per": "group", "group_size": 32}}
    scheme = proposed("mixed precision", recipe(scheme=grouped))[0].recipe.overrides[0].scheme
    assert (scheme.weights.dtype, scheme.weights.per) == ("int8", "channel")


def test_names_of_layers_are_no_patterns() -> None:
    odd = replace(FACTS, ranking=(("a[0]",), ("b",)))
    (one,) = proposed("mixed precision", recipe(), odd)
    assert one.recipe.overrides[0].matches("a[0]", "linear")
    assert not one.recipe.overrides[0].matches("a0", "linear")


def test_training_begins_with_float_weights_and_zero_in_the_middle() -> None:
    best = recipe(
        passes=["fold_batchnorm", "equalize", "correct_bias", "center"], rounding="gptq",
        scheme={"weights": {"bits": 4}, "activations": {"symmetric": False}},
    )  # fmt: skip
    (one,) = proposed("training", best, replace(FACTS, trains=True))
    assert one.trained
    assert names(one.recipe) == ["fold_batchnorm", "equalize"]
    assert one.recipe.rounding.name == "nearest"
    assert one.recipe.scheme.activations.symmetric
    assert one.recipe.training.epochs == 15  # that of w4a8_qat


def test_the_recipes_own_way_to_train_is_kept() -> None:
    best = recipe(training={"epochs": 3})
    (one,) = proposed("training", best, replace(FACTS, trains=True))
    assert one.recipe.training.epochs == 3


@pytest.mark.parametrize("step", ["calibrators", "quick rounding", "mixed precision"])
def test_steps_do_not_change_what_they_build_on(step: str) -> None:
    best = recipe()
    before = best.model_dump()
    proposed(step, best)
    assert best.model_dump() == before
