"""How far the moments of a few samples are to be trusted, found out by halves of them.

A rounding that makes the most of moments makes the most of their chance as well: with few positions
for each input it fits the samples and nothing else. Adding ``d diag(G)`` to all three moments holds
the weights to what they were, the more the larger ``d`` is (ridge regression; at the limit weights
are rounded to nearest). What ``d`` should be is told by rounding on one half of the samples and
looking at the error on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from quantkit.reconstruction.problem import LayerProblem

#: What is tried, from full trust to next to none.
CANDIDATES = (0.003, 0.03, 0.3, 3.0)
#: Where there is but one half to look at.
UNTOLD = 0.3
#: So many rows of each group tell for all.
ROWS = 48


class Round(Protocol):
    """Rounds by given moments, quickly."""

    def __call__(self, problem: LayerProblem) -> Tensor:
        """The values."""


def damped(problem: LayerProblem, amount: float) -> LayerProblem:
    """The problem with ``amount`` times the diagonal of G added to each of its moments.

    Example:
        >>> from quantkit.spec import QuantSpec
        >>> one, g = torch.ones(1, 1, 2), torch.tensor([[[2.0, 1.0], [1.0, 4.0]]])
        >>> problem = LayerProblem(
        ...     name="fc", weight=one, step=one, zero_point=0 * one, spec=QuantSpec(),
        ...     quantized=g, crossed=g, floating=g,
        ... )
        >>> damped(problem, 0.5).quantized.tolist()
        [[[3.0, 1.0], [1.0, 6.0]]]
    """
    ridge = torch.diag_embed(amount * problem.quantized.diagonal(dim1=-2, dim2=-1))
    return replace(
        problem,
        quantized=problem.quantized + ridge,
        crossed=problem.crossed + ridge,
        floating=problem.floating + ridge,
    )


def best_damping(first: LayerProblem, second: LayerProblem, round_quickly: Round) -> float:
    """The candidate with the least error on the half that it has not seen, of both halves."""
    halves = (_fewer_rows(first), _fewer_rows(second))
    return min(CANDIDATES, key=lambda amount: _unseen_error(halves, amount, round_quickly))


def _unseen_error(halves: Sequence[LayerProblem], amount: float, round_quickly: Round) -> float:
    own, other = halves
    return sum(
        float(unseen.error(round_quickly(damped(seen, amount))).sum())
        for seen, unseen in ((own, other), (other, own))
    )


def _fewer_rows(problem: LayerProblem) -> LayerProblem:
    stride = max(1, problem.weight.shape[1] // ROWS)
    part = slice(None, None, stride)
    return replace(
        problem,
        weight=problem.weight[:, part],
        step=problem.step[:, part],
        zero_point=problem.zero_point[:, part],
    )
