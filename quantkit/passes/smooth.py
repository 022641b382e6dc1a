"""Take what is hard to quantize out of the activations and into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from quantkit.interfaces import DataPass
from quantkit.passes._scaling import scale_groups
from quantkit.passes._scaling_maths import Seen, smooth_scale

if TYPE_CHECKING:
    from torch import fx

    from quantkit.batches import Call
    from quantkit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Smooth(DataPass):
    """SmoothQuant: ``(x / s) (W s)`` with ``s_j = max|X_j|^a / max|W_j|^(1 - a)``.

    Xiao et al. 2022, arXiv:2211.10438, equations 3 and 4. ``a`` is found for each tensor that
    linear layers read, by the error of their results with both sides on the recipe's grids; there
    ``a = 0`` is no change, so no group is worse by this measure. ``1 / s`` goes into the norm or
    the layer that makes the tensor where nothing else reads it.

    Attributes:
        samples: of the calibration data, to see magnitudes and errors on.
        grid: how many values of ``a`` to try, evenly up to 1.
        explicit: where nothing can take ``1 / s`` (a residual reads the tensor as well, as after a
            BERT's norms), multiply by it before the layers, but not behind attention: TensorRT
            fuses that into the kernel of the norm or the activation before it.
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
        """Smooth every tensor that gains; returns how many."""
        return scale_groups(
            graph, recipe, calls, self._candidates,
            explicit=self.explicit, least_gain=self.least_gain,
        )  # fmt: skip

    def _candidates(self, seen: Seen, columns: Tensor) -> list[Tensor]:
        alphas = [(i + 1) / self.grid for i in range(self.grid)]
        return [smooth_scale(seen.largest, columns, alpha) for alpha in alphas]
