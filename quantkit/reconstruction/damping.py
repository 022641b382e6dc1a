"""How far the moments of a few samples are to be trusted, found out by samples held out.

A rounding that makes the most of moments makes the most of their chance as well: with few positions
for each input it fits the samples and nothing else. Two things hold it back:

- Adding ``d diag(G)`` to all three moments keeps weights near what they were, the more the larger
  ``d`` is (ridge regression; at the limit they are rounded to nearest).
- A layer may aim at what it makes of the inputs it gets (`LayerProblem.alone`), and not make up for
  what the layers before have erred: that is by chance what the samples have in common.

What is best is told by rounding quickly, and looking at the error on samples that neither this nor
any earlier layer was rounded by.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from quantkit.reconstruction.problem import LayerProblem

#: The ``d`` that are tried, from full trust to next to none.
CANDIDATES = (0.003, 0.03, 0.3, 3.0)
#: Where no sample is held out.
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


def trusted(seen: LayerProblem, unseen: LayerProblem, round_quickly: Round) -> LayerProblem:
    """The problem as far as it is to be trusted: what makes the least error on the unseen.

    Args:
        seen: by the samples to round by.
        unseen: by those held out.
        round_quickly: what stands for the rounding.
    """
    own, other = _fewer_rows(seen), _fewer_rows(unseen)
    tried = [(alone, amount) for alone in (True, False) for amount in CANDIDATES]
    errors = [
        float(other.error(round_quickly(damped(own.alone if alone else own, amount))).sum())
        for alone, amount in tried
    ]
    alone, amount = tried[errors.index(min(errors))]
    return damped(seen.alone if alone else seen, amount)


def _fewer_rows(problem: LayerProblem) -> LayerProblem:
    stride = max(1, problem.weight.shape[1] // ROWS)
    part = slice(None, None, stride)
    return replace(
        problem,
        weight=problem.weight[:, part],
        step=problem.step[:, part],
        zero_point=problem.zero_point[:, part],
    )
