"""Steps chosen by the error of the result: against trying them all, and where they must stay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_problems import SPECS, convolution, linear, nearest_error

from quantkit.reconstruction.layers import Form
from quantkit.reconstruction.problem import LayerProblem
from quantkit.rounding._mse import column_sets
from quantkit.rounding.mse import Mse
from quantkit.spec import QuantSpec


def tried(problem: LayerProblem, fraction: float) -> torch.Tensor:
    step = problem.step * fraction
    return problem.error(problem.values(problem.snap(problem.weight, step), step))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["int4", "uint8 asymmetric", "fp8"]))
def test_a_row_gets_the_best_of_all_fractions(seed: int, name: str) -> None:
    problem = linear(SPECS[name], seed, rows=5, inputs=32)
    integers, step = Mse(candidates=10).round(problem)
    every = torch.stack([tried(problem, 1.0 - 0.05 * i) for i in range(11)])
    found = problem.error(problem.values(integers, step))
    torch.testing.assert_close(found, every.amin(0), rtol=1e-4, atol=1e-6)


def test_a_tensor_with_one_step_gets_the_best_for_all_its_rows() -> None:
    problem = linear(SPECS["int8 per tensor"])
    _, step = Mse(candidates=10).round(problem)
    totals = [float(tried(problem, 1.0 - 0.05 * i).sum()) for i in range(11)]
    best = 1.0 - 0.05 * totals.index(min(totals))
    torch.testing.assert_close(step, problem.step * best)


def test_an_outlier_is_cut_off_where_its_input_hardly_counts_and_kept_where_it_does() -> None:
    weight = torch.full((1, 1, 16), 0.3)
    weight[..., 0] = 1.0
    step = torch.full_like(weight, 1.0 / 7)
    spec = QuantSpec(dtype="int4", axis=0)
    ratios = {}
    for power in (1e-6, 1e6):
        gram = torch.eye(16)[None].clone()
        gram[0, 0, 0] = power
        problem = LayerProblem(
            name="layer", weight=weight, step=step, zero_point=torch.zeros_like(step), spec=spec,
            quantized=gram, crossed=gram, floating=gram,
        )  # fmt: skip
        _, found = Mse().round(problem)
        ratios[power] = float(found[0, 0, 0] / step[0, 0, 0])
    assert ratios[1e-6] < 0.99
    assert ratios[1e6] == 1.0


def test_groups_of_a_convolution_are_found_a_kernel_apart() -> None:
    spec = QuantSpec(dtype="int4", axis=1, group_size=8)
    sets = column_sets(convolution(spec).step)
    assert len(sets) == 2 * 9
    channels = Form((1, 16, 3, 3), kernel=(3, 3)).matrices(
        torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 3, 3)
    )[0, 0]
    assert sorted(tuple(channels[s].int().tolist()) for s in sets) == sorted(
        9 * [tuple(range(8)), tuple(range(8, 16))]
    )


def test_groups_gain_more_than_a_row_does() -> None:
    problem = linear(SPECS["int4 per group"])
    integers, step = Mse().round(problem)
    assert problem.error(problem.values(integers, step)).sum() < 0.9 * nearest_error(problem).sum()
    assert len(torch.unique(step / problem.step)) > 2


def test_a_product_of_batched_matrices_keeps_one_step_for_a_column_of_all() -> None:
    problem = linear(SPECS["int4"])
    twice = {
        name: torch.cat([getattr(problem, name)] * 2)
        for name in ("step", "zero_point", "quantized", "crossed", "floating")
    }
    weight = torch.cat([problem.weight, problem.weight.flip(-1)])
    _, step = Mse().round(dataclasses.replace(problem, weight=weight, shared=(0,), **twice))
    assert torch.equal(step[0], step[1])


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"candidates": 0}, {"least": 1.0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Mse(**wrong)  # type: ignore[arg-type]
