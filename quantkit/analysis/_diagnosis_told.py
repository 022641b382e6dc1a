"""Figures of a diagnosis for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quantkit.analysis.losses import decibels

if TYPE_CHECKING:
    from quantkit.analysis._diagnosis_values import LayerDiagnosis

HEAD = (
    "SQNR", "so far", "weights", "activations", "mean", "beyond", "unused", "headroom",
    "channels", "weight channels", "layer",
)  # fmt: skip


def percent(share: float | None) -> str:
    """A share for people.

    Example:
        >>> percent(0.5), percent(0.004), percent(0.0), percent(None), percent(1e-5)
        ('50%', '0.4%', '0', '-', '<0.1%')
    """
    if share is None:
        return "-"
    if share == 0.0:
        return "0"
    hundred = 100.0 * share
    return "<0.1%" if hundred < 0.1 else f"{hundred:.1f}%" if hundred < 9.95 else f"{hundred:.0f}%"


def times(spread: float) -> str:
    """How many times as large, for people.

    Example:
        >>> times(1.26), times(31.4), times(float("inf"))
        ('1.3x', '31x', 'inf')
    """
    if math.isinf(spread):
        return "inf"
    return f"{spread:.1f}x" if spread < 9.95 else f"{spread:.0f}x"


def told_decibels(noise: float) -> str:
    """The SQNR of a noise for people.

    Example:
        >>> told_decibels(0.01), told_decibels(0.0), told_decibels(float("inf"))
        ('20.0', 'exact', 'NaN')
    """
    if noise in (0.0, math.inf):
        return "NaN" if noise else "exact"
    return f"{decibels(noise):.1f}"


def row_of(layer: LayerDiagnosis) -> list[str]:
    """The row of a layer under `HEAD`."""
    own, weight = layer.activations, layer.weight
    spare = [grid.headroom for grid in own if grid.headroom is not None]
    return [
        told_decibels(layer.noise),
        told_decibels(layer.model_noise),
        percent(layer.weights_share),
        percent(layer.activations_share),
        percent(layer.mean_share),
        percent(max((grid.saturated for grid in own), default=None)),
        percent(max((grid.unused for grid in own), default=None)),
        percent(max(spare, default=None)),
        times(max(grid.spread for grid in own)) if own else "-",
        "-" if weight is None else times(weight.spread),
        layer.name,
    ]
