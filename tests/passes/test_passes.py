"""The contract of every pass: an equal float graph, and a count of what was changed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import fx

import small_models
from quantkit import plugins
from quantkit.graph.capture import capture, recapture
from quantkit.graph.functionalize import functionalize
from quantkit.interfaces import Pass

NAMES = plugins.names_of("passes", Pass)
Make = Callable[[], small_models.SmallModel]


def pass_named(name: str) -> Pass:
    return plugins.find("passes", name, Pass)()


@pytest.fixture(scope="module")
def graphs() -> dict[str, fx.GraphModule]:
    """Each small model as the workflow gives it to passes; never changed by a test."""
    found = {}
    for make in small_models.ALL:
        model = make()
        module = copy.deepcopy(capture(model, model.example_inputs).module)
        functionalize(module)
        found[make.__name__] = module
    return found


def code(module: fx.GraphModule) -> str:
    return str(module.graph)


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_is_a_frozen_value_with_defaults(name: str) -> None:
    found = pass_named(name)
    assert dataclasses.is_dataclass(found)
    assert found == pass_named(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.setting = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", small_models.ALL)
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_leaves_the_result_as_it_was_to_float_error(
    graphs: dict[str, fx.GraphModule], name: str, make: Make
) -> None:
    model = make()
    module = copy.deepcopy(graphs[make.__name__])
    changed = pass_named(name).apply(module)
    module.graph.lint()
    assert isinstance(changed, int)
    assert changed >= 0
    for batch in (1, 3):
        inputs = model.inputs(batch, seed=5)
        expected, found = model(*inputs), module(*inputs)
        error = (found - expected).norm() / expected.norm()
        assert error < 1e-5, f"relative error {error:.1e}"


@pytest.mark.parametrize("make", small_models.ALL)
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_that_changes_nothing_says_so_and_one_that_does_changes_the_graph(
    graphs: dict[str, fx.GraphModule], name: str, make: Make
) -> None:
    before = graphs[make.__name__]
    module = copy.deepcopy(before)
    changed = pass_named(name).apply(module)
    same_values = all(
        torch.equal(value, before.state_dict().get(key, torch.tensor(torch.nan)))
        for key, value in module.state_dict().items()
    )
    assert (changed == 0) is (code(module) == code(before) and same_values)


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_leaves_a_graph_that_is_captured_and_copied_and_differentiated(
    graphs: dict[str, fx.GraphModule], name: str
) -> None:
    model = small_models.resnet()
    module = copy.deepcopy(graphs["resnet"])
    pass_named(name).apply(module)
    again = copy.deepcopy(module)
    x = model.inputs(3, seed=2)
    torch.testing.assert_close(again(*x), module(*x), atol=0, rtol=0)
    module(*x).sum().backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = recapture(module, model.example_inputs, {}, shapes)
    torch.testing.assert_close(program.module()(*x), module(*x))
