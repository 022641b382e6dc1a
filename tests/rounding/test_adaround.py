"""AdaRound and coordinate descent: what is learned, and the arithmetic of both."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit import numerics
from quantkit.errors import RecipeError
from quantkit.reconstruction.descent import descend
from quantkit.reconstruction.problem import LayerProblem
from quantkit.rounding._adaround import (
    SoftWeight,
    annealed,
    inverse,
    rectified_sigmoid,
    regularizer,
)
from quantkit.rounding.adaround import AdaRound
from quantkit.rounding.descent import Descent
from quantkit.spec import QuantSpec


def problem(
    rows: int = 6, inputs: int = 24, *, bits: int = 4, seed: int = 0, noise: float = 0.1
) -> LayerProblem:
    """A layer whose inputs are correlated, and whose quantized inputs err."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(400, inputs, generator=generator) @ mixing + 1.0
    y = x + noise * torch.randn(400, inputs, generator=generator)
    weight = torch.randn(1, rows, inputs, generator=generator)
    spec = QuantSpec(axis=0, bits=bits)
    qparams = numerics.choose_qparams(*numerics.tensor_range(weight[0], spec), spec)
    step = qparams.scale[None, :, None].expand_as(weight)
    return LayerProblem(
        name="layer", weight=weight, step=step, zero_point=torch.zeros_like(weight), spec=spec,
        quantized=(y.T @ y / 400)[None], crossed=(x.T @ y / 400)[None],
        floating=(x.T @ x / 400)[None],
    )  # fmt: skip


def total(found: LayerProblem, integers: Tensor) -> float:
    return float(found.error(found.values(integers)).sum())


@given(st.floats(0.002, 0.998))
def test_the_inverse_undoes_the_rectified_sigmoid(h: float) -> None:
    assert rectified_sigmoid(inverse(torch.tensor(h))).item() == pytest.approx(h, abs=1e-5)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(2.0, 20.0))
def test_the_regularizer_is_zero_only_where_all_is_decided(h: list[float], beta: float) -> None:
    value = regularizer(torch.tensor(h, dtype=torch.float64), beta).item()
    assert -1e-9 <= value <= len(h) + 1e-9
    if any(0.05 < x < 0.95 for x in h):
        assert value > 1e-6


def test_beta_waits_and_then_falls() -> None:
    values = [annealed(step, 100, warm=0.2) for step in range(101)]
    assert values[:20] == [0.0] * 20
    assert all(a >= b for a, b in itertools.pairwise(values[20:]))
    assert (values[20], values[-1]) == (20.0, 2.0)


def test_a_soft_weight_begins_as_the_float_weight_and_ends_on_a_neighbour() -> None:
    weight = torch.linspace(-0.79, 0.69, 12)
    soft = SoftWeight(weight, torch.full((12,), 0.1), torch.zeros(12), -8, 7)
    torch.testing.assert_close(soft.soft(soft.h).detach(), weight, atol=2e-4, rtol=0)
    steps = weight / 0.1
    integers = soft.integers()
    assert ((integers == steps.floor()) | (integers == steps.ceil())).all()
    torch.testing.assert_close(soft.settled(), integers * 0.1)


@pytest.mark.parametrize("rounding", [AdaRound(iterations=400), Descent()], ids=["ada", "descent"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_learned_rounding_is_better_than_nearest_where_inputs_are_correlated(
    rounding: Any, bits: int
) -> None:
    found = problem(bits=bits, noise=0.1 * 2.0 ** (4 - bits))
    nearest = total(found, found.snap(found.weight))
    assert total(found, rounding.round(found)[0]) < 0.7 * nearest


def test_no_single_weight_can_be_changed_for_the_better_after_descent() -> None:
    found = problem(rows=2, inputs=8)
    integers, _ = Descent(sweeps=100).round(found)
    least = total(found, integers)
    for row, column, change in itertools.product(range(2), range(8), (-1, 1)):
        other = integers.clone()
        other[0, row, column] = (other[0, row, column] + change).clamp(-8, 7)
        assert total(found, other) >= least - 1e-9


def test_descent_finds_the_best_of_all_where_there_are_few() -> None:
    found = problem(rows=1, inputs=3, bits=2, seed=4)
    every = [
        total(found, torch.tensor([[choice]]).float())
        for choice in itertools.product(range(-2, 2), repeat=3)
    ]
    assert total(found, Descent().round(found)[0]) == pytest.approx(min(every))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_more_sweeps_never_raise_the_error(seed: int, sweeps: int) -> None:
    found = problem(rows=3, inputs=70, seed=seed)  # more inputs than are told at once
    wanted = found.weight.double() @ found.crossed.double()
    start = found.snap(found.weight)
    errors = [
        total(
            found,
            descend(
                start, found.step, found.zero_point, found.quantized, wanted,
                low=-8, high=7, sweeps=n,
            ),
        )
        for n in (0, sweeps, sweeps + 1)
    ]  # fmt: skip
    assert errors[0] * (1 + 1e-9) >= errors[1]
    assert errors[1] * (1 + 1e-9) >= errors[2]


def test_a_dead_input_changes_no_weight_and_divides_by_nothing() -> None:
    found = problem(inputs=6)
    for moments in (found.quantized, found.crossed, found.floating):
        moments[:, 2, :] = 0.0
        moments[:, :, 2] = 0.0
    integers, _ = Descent().round(found)
    assert torch.equal(integers[..., 2], found.snap(found.weight)[..., 2])
    assert torch.isfinite(AdaRound(iterations=20).round(found)[0]).all()


def test_a_layer_may_make_up_for_what_the_layers_before_have_done() -> None:
    found = problem(bits=8, noise=1.0)
    rounding = AdaRound(iterations=300, sweeps=0)
    assert total(found, rounding.round(found)[0]) < total(found, rounding.round(found.alone)[0])


@pytest.mark.parametrize("rounding", [AdaRound(), Descent()], ids=["ada", "descent"])
def test_a_floating_grid_is_refused_with_what_to_use(rounding: Any) -> None:
    found = problem()
    fp8 = LayerProblem(**{**vars(found), "spec": QuantSpec(dtype="fp8_e4m3", axis=0)})
    with pytest.raises(RecipeError, match=r"layer: .* even steps.*set rounding: gptq"):
        rounding.round(fp8)


@pytest.mark.parametrize("kind", [AdaRound, Descent])
def test_settings_that_mean_nothing_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"samples and .* must be 1 or more"):
        kind(samples=0)
