"""The contract of every pass that sees data: an equal float graph, and a count of what changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx

import small_models
from quantkit import plugins
from quantkit.batches import Call
from quantkit.graph.attention import split_attention
from quantkit.graph.capture import capture, recapture
from quantkit.graph.functionalize import functionalize
from quantkit.interfaces import DataPass
from quantkit.recipe import Recipe
from quantkit.workflow import resolve_recipe

NAMES = plugins.names_of("passes", DataPass)
Make = Callable[[], small_models.SmallModel]
INT4 = {"weights": {"dtype": "int4", "per": "group", "group_size": 16}, "activations": None}
RECIPES = {
    "int8": resolve_recipe("int8_ptq"),
    "int4 weights": Recipe.model_validate({"name": "int4", "scheme": INT4}),
}

every_pass = pytest.mark.parametrize("name", NAMES)
every_model = pytest.mark.parametrize("make", small_models.ALL)
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def pass_named(name: str) -> DataPass:
    return plugins.find("passes", name, DataPass)()


def calls_of(model: small_models.SmallModel) -> list[Call]:
    return [(model.inputs(8, seed=seed), {}) for seed in (1, 2)]


@pytest.fixture(scope="module")
def graphs() -> dict[str, fx.GraphModule]:
    """Each small model as the workflow gives it to passes; never changed by a test."""
    found = {}
    for make in small_models.ALL:
        model = make()
        module = copy.deepcopy(capture(model, model.example_inputs).module)
        functionalize(module)
        split_attention(module)
        found[make.__name__] = module
    return found


@every_pass
def test_a_pass_is_a_frozen_value_with_defaults(name: str) -> None:
    found = pass_named(name)
    assert dataclasses.is_dataclass(found)
    assert found == pass_named(name)
    assert found.samples > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.setting = 1  # type: ignore[attr-defined]


@every_pass
@every_recipe
@every_model
def test_a_pass_leaves_the_result_as_it_was_and_counts_what_it_changed(
    graphs: dict[str, fx.GraphModule], name: str, recipe: Recipe, make: Make
) -> None:
    model, before = make(), graphs[make.__name__]
    module = copy.deepcopy(before)
    changed = pass_named(name).apply(module, recipe, calls_of(model))
    module.graph.lint()
    assert isinstance(changed, int)
    state, old = module.state_dict(), before.state_dict()
    same_values = state.keys() == old.keys() and all(
        torch.equal(v, old[k]) for k, v in state.items()
    )
    assert (changed == 0) is (str(module.graph) == str(before.graph) and same_values)
    for batch in (1, 3):
        inputs = model.inputs(batch, seed=5)
        expected, found = model(*inputs), module(*inputs)
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-5, f"relative error {error:.1e}"


@every_pass
@every_recipe
def test_a_pass_leaves_a_graph_that_is_captured_and_copied_and_differentiated(
    graphs: dict[str, fx.GraphModule], name: str, recipe: Recipe
) -> None:
    model = small_models.encoder()
    module = copy.deepcopy(graphs["encoder"])
    pass_named(name).apply(module, recipe, calls_of(model))
    again = copy.deepcopy(module)
    x = model.inputs(3, seed=2)
    torch.testing.assert_close(again(*x), module(*x), atol=0, rtol=0)
    module(*x).sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = recapture(module, model.example_inputs, {}, shapes)
    torch.testing.assert_close(program.module()(*x), module(*x))


@every_pass
def test_a_pass_does_the_same_again_whatever_chance_has_done(
    graphs: dict[str, fx.GraphModule], name: str
) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = copy.deepcopy(graphs["encoder"])
        pass_named(name).apply(module, RECIPES["int8"], calls_of(small_models.encoder()))
        states.append(module.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
