"""Choose each step by the error of the layer's result, and round to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from quantkit.interfaces import LayerRounding
from quantkit.reconstruction.problem import snap
from quantkit.rounding._mse import best_steps

if TYPE_CHECKING:
    from quantkit.reconstruction.problem import LayerProblem


@dataclass(frozen=True, kw_only=True)
class Mse(LayerRounding):
    """Cut off the largest weights where finer steps for all others are worth more.

    Each row, or group of a row, gets the fraction of its step that makes the least squared error
    of the layer's results over the calibration data, all weights rounded to nearest; never more
    error than with the step that it was given. It is the search for clipping of AWQ (Lin et al.
    2023, arXiv:2306.00978), by all moments of the inputs in place of a few samples.

    Attributes:
        samples: of the calibration data, to take the moments of.
        candidates: fractions to try.
        least: the smallest fraction.
    """

    samples: int = 256
    candidates: int = 20
    least: float = 0.5

    def __post_init__(self) -> None:
        if self.samples < 1 or self.candidates < 1:
            raise ValueError(
                f"samples and candidates must be 1 or more, got {self.samples}, {self.candidates}"
            )
        if not 0.0 < self.least < 1.0:
            raise ValueError(f"least must lie between 0 and 1, got {self.least}")

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Integers on the grid of the best steps, and those steps."""
        span = 1.0 - self.least
        fractions = [1.0 - span * (i + 1) / self.candidates for i in range(self.candidates)]
        wanted = problem.weight.double() @ problem.crossed.double()

        def nearest(columns: Tensor, step: Tensor) -> Tensor:
            zero_point = problem.zero_point[..., columns]
            integers = snap(problem.weight[..., columns], step, zero_point, problem.spec)
            return (integers - zero_point) * step

        step = best_steps(
            problem.step, problem.quantized, wanted, fractions, nearest, shared=problem.shared
        )
        return problem.snap(problem.weight, step), step
