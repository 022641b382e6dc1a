"""Coordinate descent: change one weight at a time until none can lower the layer's error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.errors import RecipeError
from quantkit.interfaces import LayerRounding
from quantkit.reconstruction.descent import descend
from quantkit.reconstruction.problem import LayerProblem


@dataclass(frozen=True, kw_only=True)
class Descent(LayerRounding):
    """Zhang et al. 2024 (COMQ), arXiv:2403.07134; Behdin et al. 2023, arXiv:2309.01885.

    It begins with nearest and never raises the error, so it is no worse for any row; it needs no
    learning rate and no chance. The error is that of the layer's sums, by the inputs of the
    quantized prefix. FP8 grids have no even steps, and are an error.

    Attributes:
        samples: of the calibration data.
        sweeps: over all weights, at most.
    """

    samples: int = 512
    sweeps: int = 8

    def __post_init__(self) -> None:
        if self.samples < 1 or self.sweeps < 1:
            raise ValueError(
                f"samples and sweeps must be 1 or more, got {self.samples} and {self.sweeps}"
            )

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """The integers that descent ends with, on the grid that was given."""
        if problem.spec.is_float:
            raise RecipeError(
                f"{problem.name}: descent needs a grid of even steps, and {problem.spec} has "
                "none; set rounding: gptq, or nearest"
            )
        spec = problem.spec
        nearest = problem.snap(problem.weight)
        found = descend(
            nearest, problem.step, problem.zero_point, problem.quantized,
            problem.weight.double() @ problem.crossed.double(),
            low=spec.qmin, high=spec.qmax, sweeps=self.sweeps,
        )  # fmt: skip
        worse = problem.error(problem.values(found)) > problem.error(problem.values(nearest))
        return torch.where(worse[..., None], nearest, found), problem.step
