"""Round each weight to the nearest point of its grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quantkit import numerics
from quantkit.interfaces import Rounding
from quantkit.numerics import QParams


@dataclass(frozen=True, kw_only=True)
class Nearest(Rounding):
    """``dequantize(quantize(w))``: half to even, the least error for each weight alone."""

    def round(self, weight: Tensor, qparams: QParams) -> Tensor:
        """The nearest values on the grid, in the dtype of ``weight``."""
        # As fake-quantize computes it, so that simulation needs no other weights than the model's.
        q = numerics.quantize(weight.detach(), qparams, reciprocal=True)
        return numerics.dequantize(q, qparams).to(weight.dtype)
