"""Mixtures: the least loss there is, within the budget, and a recipe that reproduces it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quantkit
import small_models
from quantkit.analysis._choosing import Floats, least_loss
from quantkit.analysis._units import without_quantizers
from quantkit.analysis.losses import Sensitivity
from quantkit.analysis.mixed import Budget, mix
from quantkit.analysis.sensitivity import sensitivity
from quantkit.errors import RecipeError
from quantkit.graph.aten import describe
from quantkit.graph.placement import place
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calls_of
from quantkit.recipe import parse_recipe
from quantkit.workflow import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def by_trial(losses: Floats, costs: Floats, budgets: Floats) -> float | None:
    """The least sum of losses of all choices within the budgets."""
    parts, formats = losses.shape
    rows = np.arange(parts)
    best: float | None = None
    for choice in itertools.product(range(formats), repeat=parts):
        loss = float(losses[rows, list(choice)].sum())
        within = (costs[:, rows, list(choice)].sum(axis=1) <= budgets).all()
        if math.isfinite(loss) and within and (best is None or loss < best):
            best = loss
    return best


@st.composite
def programs(draw: st.DrawFn) -> tuple[Floats, Floats, Floats]:
    parts, formats, limits = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
    )
    # As noise is: many orders of magnitude apart.
    exponents = st.floats(-7.0, 0.0).map(lambda e: 10.0**e)
    loss = st.one_of(st.just(0.0), st.just(math.inf), exponents)
    losses = [[draw(loss) for _ in range(formats)] for _ in range(parts)]
    count = st.integers(0, 10**6)
    costs = [[[draw(count) for _ in range(formats)] for _ in range(parts)] for _ in range(limits)]
    budgets = [draw(st.integers(0, 10**6 * parts)) for _ in range(limits)]
    return tuple(np.array(x, dtype=np.float64) for x in (losses, costs, budgets))  # type: ignore[return-value]


@settings(max_examples=120, deadline=None)
@given(programs())
def test_no_choice_within_the_budgets_loses_less(program: tuple[Floats, Floats, Floats]) -> None:
    losses, costs, budgets = program
    expected, chosen = by_trial(*program), least_loss(*program)
    assert (chosen is None) == (expected is None)
    if chosen is not None and expected is not None:
        rows = np.arange(len(losses))
        assert (costs[:, rows, chosen].sum(axis=1) <= budgets).all()
        assert losses[rows, chosen].sum() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@cache
def prepared(name: str, recipe: str = "int8_ptq") -> QuantizedModel:
    net = getattr(small_models, name)()
    return prepare(net, recipe, example_inputs=net.example_inputs)


@cache
def table(name: str, *formats: str, recipe: str = "int8_ptq", by: str = "layer") -> Sensitivity:
    net = getattr(small_models, name)()
    model = prepared(name, recipe)
    calls = calls_of(model.capture, [net.inputs(8, 0)[0]], 8)
    return sensitivity(model, calls, formats=formats, by=by)  # type: ignore[arg-type]


SIZES = (0.58, 0.6, 0.7, 0.8, 0.9, 1.0)


def test_the_budget_is_kept_and_more_of_it_never_predicts_more_noise() -> None:
    found = table("resnet", "w4a8")
    mixtures = [mix(found, Budget(size=size)) for size in SIZES]
    for size, mixture in zip(SIZES, mixtures, strict=True):
        assert mixture.size <= size
        assert mixture.size_bytes == pytest.approx(mixture.size * mixtures[-1].size_bytes)
    noises = [mixture.noise for mixture in mixtures]
    assert noises == sorted(noises, reverse=True)
    assert len(set(noises)) > 3
    assert mixtures[-1].noise == found.together()
    assert {name for _, name in mixtures[-1].chosen} == {"int8_ptq"}


def test_each_budget_is_of_what_it_says() -> None:
    found = table("resnet", "w4a8")
    assert mix(found, Budget(bit_operations=0.75)).bit_operations <= 0.75
    whole = mix(found, Budget(size=1.0)).size_bytes
    most = int(0.7 * whole)
    assert mix(found, Budget(size_bytes=most)).size_bytes <= most
    both = mix(found, Budget(size=0.8, bit_operations=0.9))
    assert (both.size <= 0.8, both.bit_operations <= 0.9) == (True, True)


def test_so_many_layers_in_float_are_those_that_cost_most() -> None:
    found = table("resnet", "w4a8")
    mixture = mix(found, Budget(float_layers=2))
    floating = {name for name, format in mixture.chosen if format == "float"}
    assert floating == {part.name for part in found.ranked()[:2]}
    assert {format for _, format in mixture.chosen} == {"float", "int8_ptq"}
    assert mix(found, Budget(float_layers=0)).noise == found.together()


@pytest.mark.parametrize("by", ["layer", "block"])
@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_the_recipe_reproduces_the_choice_in_the_plan(name: str, by: str) -> None:
    found = table(name, "w4a8", "w4a4", "float", by=by)
    mixture = mix(found, Budget(bit_operations=0.6))
    assert len({format for _, format in mixture.chosen}) > 1
    recipe = parse_recipe(mixture.recipe.to_yaml(), name="mixed")
    plan = place(describe(without_quantizers(prepared(name))).graph, recipe)
    assert not plan.unused
    bits = {"int8_ptq": (None, None), "w4a8": (None, 4), "w4a4": (4, 4)}
    chosen = dict(mixture.chosen)
    for part in found.parts:
        for layer in part.layers:
            wanted = chosen[part.name]
            assert plan.decision(layer).quantized == (wanted != "float")
            weight = plan.tensor(layer, 1)
            if weight is not None and weight.role == "weight":
                assert weight.spec.bits == bits[wanted][1]
            reads = plan.tensor(layer, 0)
            if reads is not None:
                assert reads.spec.bits == bits[wanted][0]


def test_a_mixture_is_quantized_as_any_recipe_and_its_noise_was_predicted() -> None:
    mixture = mix(table("mlp", "w4a8"), Budget(size=0.7))
    net = small_models.mlp()
    x = net.inputs(8, 0)[0]
    model = quantkit.quantize(net, mixture.recipe, calibration=[x])
    with torch.no_grad():
        got, wanted = model(x), net(x)
    noise = float((got - wanted).square().sum() / wanted.square().sum())
    assert abs(10 * math.log10(mixture.noise / noise)) < 3.0


def test_the_recipes_own_overrides_stay() -> None:
    found = table("mlp", "w8a8", recipe="w4a8_qat")
    mixture = mix(found, Budget(size=1.2))
    assert mixture.recipe.overrides[0].position == "ends"


def test_a_budget_below_the_least_possible_names_that() -> None:
    found = table("resnet", "w4a8")
    with pytest.raises(
        RecipeError, match=r"size of 0.2 cannot be kept: the least .* is (0\.\d+);"
    ) as e:
        mix(found, Budget(size=0.2))
    least = float(str(e.value).split(" allow is ")[1].split(";")[0])
    assert mix(found, Budget(size=least + 1e-4)).size <= least + 1e-4
    with pytest.raises(
        RecipeError, match=r"size in bytes of 10 cannot be kept: the least .* [\d,]+;"
    ):
        mix(found, Budget(size_bytes=10))
    with pytest.raises(RecipeError, match=r"bit operations of 0\.3 cannot be kept"):
        mix(found, Budget(bit_operations=0.3))


def test_budgets_that_exclude_each_other_are_refused() -> None:
    net = table("mlp", "w4a8")
    # Float is cheapest in operations here, and a layer of four bits in bytes.
    parts = tuple(
        replace(part, losses=(part.losses[0], part.losses[1] and replace(
            part.losses[1], bit_operations=10**12))) for part in net.parts
    )  # fmt: skip
    with pytest.raises(RecipeError, match="no mixture keeps all the budgets at once"):
        mix(replace(net, parts=parts), Budget(size=0.7, bit_operations=1.0))


def test_noise_without_end_is_never_chosen() -> None:
    net = table("mlp", "w4a8")
    broken = tuple(
        replace(part, losses=tuple(loss and replace(loss, noise=math.inf) for loss in part.losses))
        for part in net.parts[:1]
    )
    table_of_both = replace(net, parts=(*broken, *net.parts[1:]))
    with pytest.raises(RecipeError, match="in none of the formats; give others, such as float"):
        mix(table_of_both, Budget(size=1.0))
    mixture = mix(table_of_both, Budget(float_layers=1))
    assert mixture.chosen[0] == (net.parts[0].name, "float")


@pytest.mark.parametrize("value", [{}, {"size": -1.0}, {"float_layers": -1}, {"size": math.nan}])
def test_a_budget_is_checked_when_it_is_made(value: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"a budget needs|must be 0 or more"):
        Budget(**value)  # type: ignore[arg-type]
