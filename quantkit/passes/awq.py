"""Give the weights that large activations meet more of their grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from quantkit.interfaces import DataPass
from quantkit.passes._scaling import scale_groups
from quantkit.passes._scaling_maths import Seen, awq_scale

if TYPE_CHECKING:
    from torch import fx

    from quantkit.batches import Call
    from quantkit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Awq(DataPass):
    """AWQ: ``(x / s) (W s)`` with ``s_j = mean|X_j|^a``, normalized.

    Lin et al. 2023, arXiv:2306.00978, section 3.2. ``a`` is found for each tensor that linear
    layers read, by the error of their results with weights on the recipe's grid; ``a = 0`` is no
    change.
    ``1 / s`` goes into the norm or the layer that makes the tensor where nothing else reads it;
    attention's output layer has it put into the rows of its values. The other half of the paper,
    clipping, is ``rounding: mse``.

    Attributes:
        samples: of the calibration data, to see magnitudes and errors on.
        grid: how many values of ``a`` to try, evenly up to 1.
        explicit: where nothing can take ``1 / s``, multiply by it before the layers, but not behind
            attention: TensorRT fuses that into the kernel of the norm or the activation before it.
        least_gain: the part of the error that such a product must save.
    """

    samples: int = 128
    grid: int = 10
    explicit: bool = True
    least_gain: float = 0.05

    def __post_init__(self) -> None:
        if self.samples < 1 or self.grid < 1:
            raise ValueError(f"samples and grid must be 1 or more, got {self.samples}, {self.grid}")
        if not 0.0 <= self.least_gain < 1.0:
            raise ValueError(f"least_gain must be from 0 to below 1, got {self.least_gain}")

    def apply(self, graph: fx.GraphModule, recipe: Recipe, calls: Sequence[Call]) -> int:
        """Scale every group that gains; returns how many."""
        return scale_groups(
            graph, recipe, calls, self._candidates,
            explicit=self.explicit, least_gain=self.least_gain,
        )  # fmt: skip

    def _candidates(self, seen: Seen, columns: Tensor) -> list[Tensor]:
        return [awq_scale(seen.mean, (i + 1) / self.grid) for i in range(self.grid)]
