"""AdaRound: learn, layer by layer, which way each weight is rounded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantkit.errors import RecipeError
from quantkit.interfaces import LayerRounding
from quantkit.reconstruction.descent import descend
from quantkit.reconstruction.problem import LayerProblem
from quantkit.rounding._adaround import SoftWeight, annealed, regularizer
from quantkit.rounding.mse import Mse


@dataclass(frozen=True, kw_only=True)
class AdaRound(LayerRounding):
    """Nagel et al. 2020, arXiv:2004.10568: section 4, with the inputs of the quantized prefix.

    The layer's squared error is computed from the moments of its inputs, so a step costs one
    product of matrices, whatever the samples; it is that of the layer's sums, before what follows
    it. Rows for which nearest has the smaller error keep it. FP8 grids have no even steps to learn
    on, and are an error.

    Attributes:
        samples: of the calibration data.
        iterations: steps of Adam a layer.
        learning_rate: of Adam.
        regularization: weight of the term that decides, against an error that is 1 a weight for
            nearest.
        warm: the share of the steps before that term sets in.
        sweeps: of coordinate descent at the end, which never raise the error; 0 for none.
        clip: begin with the steps that ``mse`` chooses, which cut off rare large weights.
    """

    samples: int = 512
    iterations: int = 1000
    learning_rate: float = 0.05
    regularization: float = 1.0
    warm: float = 0.2
    sweeps: int = 2
    clip: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or self.iterations < 1:
            raise ValueError(
                f"samples and iterations must be 1 or more, got {self.samples}, {self.iterations}"
            )

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """The learned integers on the grid that was given, or with ``clip`` on a finer one."""
        if problem.spec.is_float:
            raise RecipeError(
                f"{problem.name}: adaround needs a grid of even steps, and {problem.spec} has "
                "none; set rounding: gptq, or nearest"
            )
        if self.clip:
            problem = replace(problem, step=Mse().round(problem)[1])
        nearest = problem.snap(problem.weight)
        learned = self._learned(problem, nearest)
        worse = problem.error(problem.values(learned)) > problem.error(problem.values(nearest))
        return torch.where(worse[..., None], nearest, learned), problem.step

    def _learned(self, problem: LayerProblem, nearest: Tensor) -> Tensor:
        target = problem.ideal
        soft = SoftWeight(
            target, problem.step, problem.zero_point, problem.spec.qmin, problem.spec.qmax
        )
        wanted = problem.weight @ problem.crossed
        # In units of what nearest costs a weight, so that one setting serves every layer.
        unit = problem.error(problem.values(nearest)).mean().float() / target.shape[-1]
        optimizer = torch.optim.Adam([soft.v], lr=self.learning_rate)
        for step in range(self.iterations):
            with torch.enable_grad():
                h = soft.h
                values = soft.soft(h)
                slope = 2.0 * (values.detach() @ problem.quantized - wanted) / unit.clamp(min=1e-30)
                loss = (values * slope).sum()  # its gradient is that of the error
                beta = annealed(step, self.iterations, warm=self.warm)
                if beta:
                    loss = loss + self.regularization * regularizer(h, beta)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        spec = problem.spec
        return descend(
            soft.integers(), problem.step, problem.zero_point, problem.quantized, wanted,
            low=spec.qmin, high=spec.qmax, sweeps=self.sweeps,
        )  # fmt: skip
