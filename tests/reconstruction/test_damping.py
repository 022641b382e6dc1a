"""Moments of few samples are trusted only as far as samples that are held out tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantkit import numerics
from quantkit.reconstruction.damping import damped, trusted
from quantkit.reconstruction.descent import quickly
from quantkit.reconstruction.problem import LayerProblem
from quantkit.spec import QuantSpec

INPUTS, ROWS = 48, 16


def layer(x: Tensor, y: Tensor, *, seed: int = 0) -> LayerProblem:
    """A layer that reads ``y`` where the float model reads ``x``, ``(positions, inputs)`` each."""
    spec = QuantSpec(axis=0, bits=4)
    weight = torch.randn(1, ROWS, INPUTS, generator=torch.Generator().manual_seed(seed))
    qparams = numerics.choose_qparams(*numerics.tensor_range(weight[0], spec), spec)
    step = qparams.scale[None, :, None].expand_as(weight)
    count = len(x)
    return LayerProblem(
        name="layer", weight=weight, step=step, zero_point=torch.zeros_like(weight), spec=spec,
        quantized=(y.T @ y / count)[None], crossed=(x.T @ y / count)[None],
        floating=(x.T @ x / count)[None],
    )  # fmt: skip


def inputs(count: int, seed: int, *, noise: float, shrunk: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inputs with causes in common, and what an erring prefix makes of them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, INPUTS, generator=torch.Generator().manual_seed(99))
    x = torch.randn(count, 8, generator=generator) @ mixing
    x += 0.3 * torch.randn(count, INPUTS, generator=generator)
    return x, shrunk * x + noise * torch.randn(count, INPUTS, generator=generator)


def unseen_error(problem: LayerProblem, judge: LayerProblem) -> float:
    return float(judge.error(quickly(problem)).sum())


def test_few_samples_are_trusted_less_than_they_ask_for() -> None:
    seen = layer(*inputs(40, 1, noise=0.5))
    held, judge = layer(*inputs(400, 2, noise=0.5)), layer(*inputs(4000, 3, noise=0.5))
    assert unseen_error(trusted(seen, held, quickly), judge) < 0.9 * unseen_error(seen, judge)


def test_many_samples_are_trusted_to_make_up_for_the_layers_before() -> None:
    seen = layer(*inputs(4000, 1, noise=0.0, shrunk=0.9))
    held = layer(*inputs(1000, 2, noise=0.0, shrunk=0.9))
    found = trusted(seen, held, quickly)
    assert not torch.equal(found.crossed, found.quantized)
    assert unseen_error(found, held) < 0.5 * unseen_error(seen.alone, held)


@pytest.mark.parametrize("count", [20, 200, 2000])
def test_what_is_trusted_is_no_worse_than_nearest_on_the_held_out(count: int) -> None:
    seen, held = layer(*inputs(count, 5, noise=0.3)), layer(*inputs(200, 6, noise=0.3))
    nearest = float(held.error(held.values(held.snap(held.weight))).sum())
    assert unseen_error(trusted(seen, held, quickly), held) <= nearest


def test_the_more_is_added_the_nearer_is_the_result_to_nearest() -> None:
    problem = layer(*inputs(400, 7, noise=0.3))
    nearest = problem.values(problem.snap(problem.weight))
    apart = [int((quickly(damped(problem, d)) != nearest).sum()) for d in (0.0, 1.0, 1e6)]
    assert apart[0] > apart[1] > apart[2] == 0
