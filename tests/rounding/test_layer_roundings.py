"""The contract of every rounding that is told of a layer's inputs: on the grid, and not worse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from layer_problems import MAKERS, SPECS, linear, nearest_error
from torch import Tensor

from quantkit import plugins
from quantkit.errors import RecipeError
from quantkit.interfaces import LayerRounding
from quantkit.reconstruction.problem import LayerProblem
from quantkit.spec import QuantSpec

NAMES = plugins.names_of("rounding", LayerRounding)
Make = Callable[[QuantSpec], LayerProblem]

every_rounding = pytest.mark.parametrize("name", NAMES)
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
every_layer = pytest.mark.parametrize("make", MAKERS)


def rounding(name: str) -> LayerRounding:
    return plugins.find("rounding", name, LayerRounding)()


def rounded(name: str, problem: LayerProblem) -> tuple[Tensor, Tensor]:
    """What a rounding makes of a problem; it may say that it takes no grid without even steps."""
    try:
        return rounding(name).round(problem)
    except RecipeError as error:
        if not problem.spec.is_float or "set rounding:" not in str(error):
            raise
        pytest.skip(str(error))


@every_rounding
def test_a_rounding_is_a_frozen_value_with_defaults(name: str) -> None:
    found = rounding(name)
    assert dataclasses.is_dataclass(found)
    assert found == rounding(name)
    assert found.samples > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.samples = 1  # type: ignore[misc]


@every_rounding
@every_spec
@every_layer
def test_integers_lie_on_the_grid_and_make_no_more_error_than_nearest(
    name: str, spec: QuantSpec, make: Make
) -> None:
    problem = make(spec)
    integers, step = rounded(name, problem)
    assert integers.shape == problem.weight.shape
    assert step.broadcast_to(problem.weight.shape).dtype == torch.float32
    assert bool((step > 0).all())
    assert bool(((integers >= spec.qmin) & (integers <= spec.qmax)).all())
    if spec.is_float:
        assert torch.equal(integers.to(torch.float8_e4m3fn).float(), integers)
    else:
        assert torch.equal(integers.round(), integers)
    found, nearest = problem.error(problem.values(integers, step)), nearest_error(problem)
    if spec.granularity == "tensor":  # one step for all rows
        found, nearest = found.sum(), nearest.sum()
    assert bool((found <= nearest * (1 + 1e-6) + 1e-9).all())


@every_rounding
@every_spec
def test_weights_that_had_one_step_still_have_one(name: str, spec: QuantSpec) -> None:
    problem = linear(spec)
    _, step = rounded(name, problem)
    ratio = step.broadcast_to(problem.step.shape) / problem.step
    groups = problem.step.shape[-1] // (spec.group_size or problem.step.shape[-1])
    parts = ratio.reshape(*ratio.shape[:-1], groups, -1)
    assert bool((parts == parts[..., :1]).all())
    if spec.granularity == "tensor":
        assert bool((ratio == ratio.flatten()[0]).all())


@every_rounding
def test_the_same_problem_has_the_same_answer_and_stays_as_it_was(name: str) -> None:
    problem, twin = linear(SPECS["int4 per group"]), linear(SPECS["int4 per group"])
    torch.manual_seed(1)
    first = rounding(name).round(problem)
    torch.manual_seed(2)
    second = rounding(name).round(twin)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    untouched = linear(SPECS["int4 per group"])
    for field in ("weight", "step", "zero_point", "quantized", "crossed", "floating"):
        assert torch.equal(getattr(problem, field), getattr(untouched, field)), field


@every_rounding
def test_weights_of_zero_and_inputs_that_are_always_zero_do_no_harm(name: str) -> None:
    problem = linear(SPECS["int4"])
    integers, step = rounding(name).round(problem)
    values = problem.values(integers, step)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(step).all())
    silent = dataclasses.replace(
        problem,
        quantized=torch.zeros_like(problem.quantized),
        crossed=torch.zeros_like(problem.crossed),
        floating=torch.zeros_like(problem.floating),
    )
    integers, step = rounding(name).round(silent)
    assert bool(torch.isfinite(problem.values(integers, step)).all())
