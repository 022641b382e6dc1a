"""Figures of a profile as text and as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.profiling.report import LayerTime


def milliseconds(seconds: float | None) -> str:
    """Three digits that count.

    Example:
        >>> milliseconds(0.0012345), milliseconds(0.25), milliseconds(None)
        ('1.23', '250', '-')
    """
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    if value <= 0.0:
        return "0"
    return f"{value:.{max(0, min(4, 2 - math.floor(math.log10(value))))}f}"


def layer_row(layer: LayerTime) -> tuple[str, ...]:
    """The cells of a layer's row."""
    share = "-" if layer.share is None else f"{100.0 * layer.share:.1f} %"
    return (
        milliseconds(layer.seconds),
        share,
        layer.precision or "?",
        str(layer.unit),
        layer.op,
        layer.name,
    )


def plain(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    return value
