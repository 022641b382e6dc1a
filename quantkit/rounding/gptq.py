"""Round one input after another, and let the later ones make up for what each errs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from quantkit.interfaces import LayerRounding
from quantkit.rounding._gptq import gptq
from quantkit.rounding.mse import Mse

if TYPE_CHECKING:
    from quantkit.reconstruction.problem import LayerProblem

#: Integers of a grid, and its steps.
Rounded: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Gptq(LayerRounding):
    """GPTQ (Frantar et al. 2022, arXiv:2210.17323) on the moments of the quantized inputs.

    A row for which rounding to nearest makes less error of the result keeps that, so no row is
    worse than nearest. Linear layers, convolutions of any groups, and every form of grid. Groups
    of inputs keep the steps that they had at the start, in whatever order they are rounded.

    Attributes:
        samples: of the calibration data, to take the moments of.
        damping: the part of the mean of G's diagonal that is added to it.
        act_order: round inputs with the largest moments first.
        clip: try the steps that ``mse`` chooses as well, and take for each row what is better.
        block: inputs a block; changes only the time it takes.
    """

    samples: int = 256
    damping: float = 0.01
    act_order: bool = True
    clip: bool = False
    block: int = 128

    def __post_init__(self) -> None:
        if self.samples < 1 or self.block < 1:
            raise ValueError(
                f"samples and block must be 1 or more, got {self.samples} and {self.block}"
            )
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, got {self.damping}")

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Integers on the grid, and its steps: other ones only with ``clip``."""
        kept = self._rounded(problem, problem.snap(problem.weight), problem.step)
        if not self.clip:
            return kept
        return _better(problem, kept, self._rounded(problem, *Mse().round(problem)))

    def _rounded(self, problem: LayerProblem, nearest: Tensor, step: Tensor) -> Rounded:
        """By GPTQ on a grid of these steps, or to nearest, row by row."""
        found = gptq(
            problem.ideal, problem.quantized, step,
            problem.zero_point, problem.spec,
            damping=self.damping, block=self.block, act_order=self.act_order,
        )  # fmt: skip
        return _better(problem, (nearest, step), (found, step))


def _better(problem: LayerProblem, first: Rounded, second: Rounded) -> Rounded:
    """Of each row what makes less error of the result; of rows with one step together, for all."""
    first_error, second_error = (problem.error(problem.values(*r)) for r in (first, second))
    if not torch.equal(first[1], second[1]):
        for dim in problem.shared:
            first_error = first_error.sum(dim, keepdim=True).expand_as(first_error)
            second_error = second_error.sum(dim, keepdim=True).expand_as(second_error)
    choice = (second_error < first_error)[..., None]
    return torch.where(choice, second[0], first[0]), torch.where(choice, second[1], first[1])
