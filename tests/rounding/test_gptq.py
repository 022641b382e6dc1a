"""GPTQ against what it must be: nearest where inputs are independent, better where they are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import (
    MAKERS,
    SPECS,
    correlated,
    depthwise,
    linear,
    nearest_error,
    problem_of,
)
from torch import Tensor

from quantkit.reconstruction.problem import LayerProblem
from quantkit.rounding._gptq import gptq, inverse_factor
from quantkit.rounding.gptq import Gptq
from quantkit.rounding.mse import Mse
from quantkit.spec import QuantSpec

INT4 = QuantSpec(dtype="int4", axis=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(sorted(SPECS)), st.booleans())
def test_inputs_that_are_independent_are_rounded_to_nearest(
    seed: int, name: str, act_order: bool
) -> None:
    problem = linear(SPECS[name], seed, rows=5, inputs=32)
    diagonal = torch.rand(1, 32, generator=torch.Generator().manual_seed(seed))
    found = gptq(
        problem.weight, torch.diag_embed(diagonal), problem.step, problem.zero_point,
        problem.spec, act_order=act_order,
    )  # fmt: skip
    assert torch.equal(found, problem.snap(problem.weight))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_inputs_that_go_together_make_less_error_than_nearest(
    spec: QuantSpec, make: Callable[[QuantSpec], LayerProblem]
) -> None:
    problem = make(spec)
    if make is depthwise and spec.group_size is not None:
        pytest.skip("each weight has a step of its own, and is exact")
    integers, step = Gptq().round(problem)
    error = problem.error(problem.values(integers, step)).sum()
    assert error < 0.9 * nearest_error(problem).sum()
    assert torch.equal(step, problem.step)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.booleans())
def test_the_size_of_blocks_changes_nothing(seed: int, block: int, act_order: bool) -> None:
    problem = linear(INT4, seed, rows=4, inputs=32)
    exact = dataclasses.replace(problem, weight=problem.weight.double())
    results = [
        gptq(
            exact.weight, exact.quantized, exact.step, exact.zero_point, INT4,
            block=size, act_order=act_order,
        )
        for size in (block, 128)
    ]  # fmt: skip
    assert torch.equal(*results)


def test_each_input_is_rounded_and_the_others_solved_for_anew() -> None:
    """The recursion in plain words: after rounding one input, least squares for those left."""
    problem = linear(INT4, 3, rows=4, inputs=24)
    gram, values = problem.quantized[0].double(), problem.weight[0].double().clone()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(24)
    gram[5, 5] = gram[20, 20] = 1.0  # always zero
    for i in range(24):
        before = values[:, i].clone()
        values[:, i] = problem.snap(values[None].float())[0, :, i] * problem.step[0, :, i]
        moved = (values[:, i] - before)[:, None]
        rest = slice(i + 1, 24)
        if i < 23:
            values[:, rest] -= moved * torch.linalg.solve(gram[rest, rest], gram[rest, i])
    found = gptq(problem.weight, problem.quantized, problem.step, problem.zero_point, INT4)
    torch.testing.assert_close((found * problem.step)[0], values.float())


def test_the_factor_is_that_of_the_inverse() -> None:
    x = correlated(2, 100, 10, torch.Generator().manual_seed(0))
    gram = (x.mT @ x).double()
    factor = inverse_factor(gram, 0.5)
    assert torch.equal(factor, factor.triu())
    ridge = 0.5 * gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(10)
    identity = torch.eye(10, dtype=torch.float64).expand(2, 10, 10)
    torch.testing.assert_close(factor.mT @ factor @ (gram + ridge), identity, atol=1e-5, rtol=0)


def test_it_makes_up_for_what_the_layers_before_have_erred() -> None:
    generator = torch.Generator().manual_seed(0)
    floating = correlated(1, 500, 32, generator)
    quantized = floating * 0.9  # an error that weights can repair
    problem = problem_of(torch.randn(8, 32, generator=generator), floating, quantized, INT4)
    rounded = [Gptq().round(told) for told in (problem, problem.alone)]
    both, alone = (problem.error(problem.values(*found)).sum() for found in rounded)
    assert both < 0.8 * alone


@pytest.mark.parametrize("name", ["int4", "int4 per group", "int8 per tensor"])
def test_with_clip_it_is_better_than_without_and_than_mse(name: str) -> None:
    problem = linear(SPECS[name])

    def error(integers: Tensor, step: Tensor) -> Tensor:
        rows = problem.error(problem.values(integers, step))
        return rows.sum() if problem.spec.granularity == "tensor" else rows

    clipped = Gptq(clip=True).round(problem)
    if problem.spec.granularity != "tensor":  # one step for all is best as it is
        assert not torch.equal(clipped[1], problem.step)
    for other in (Gptq(), Mse()):
        assert bool((error(*clipped) <= error(*other.round(problem))).all())


def test_the_order_of_rounding_keeps_each_group_its_own_step() -> None:
    problem = linear(SPECS["int4 per group"])
    first, last = problem.quantized.clone(), 30
    scale = torch.ones(48)
    scale[last] = 30.0  # read first, though it lies in the second group
    scaled = dataclasses.replace(problem, quantized=first * scale[:, None] * scale)
    found = gptq(
        scaled.weight, scaled.quantized, scaled.step, scaled.zero_point, scaled.spec, act_order=True
    )
    expected = scaled.snap(scaled.weight)
    assert torch.equal(found[..., last], expected[..., last])  # nothing to make up for yet


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"block": 0}, {"damping": 0.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Gptq(**wrong)  # type: ignore[arg-type]
