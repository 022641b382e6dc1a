"""Numbers for people: short, with their units, and a word where there is no number."""

from __future__ import annotations

import math
from typing import Final

#: Stands where nothing was measured.
NONE: Final = "-"


def decibels(value: float | None) -> str:
    """Signal to noise, without its unit, which the head of the column has.

    Example:
        >>> decibels(31.415), decibels(float("inf")), decibels(float("nan")), decibels(None)
        ('31.4', 'exact', 'NaN', '-')
    """
    if value is None:
        return NONE
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "exact" if value > 0 else "no signal"
    return f"{value:.1f}"


def share(value: float | None) -> str:
    """A share from 0 to 1 in percent.

    Example:
        >>> [share(x) for x in (0.0, 0.00004, 0.0123, 0.456, 1.0, None)]
        ['0 %', '<0.01 %', '1.23 %', '45.6 %', '100 %', '-']
    """
    if value is None or not math.isfinite(value):
        return NONE
    percent = 100.0 * value
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    if abs(percent) < 0.01:
        return "<0.01 %"
    return f"{percent:.2f} %" if abs(percent) < 10.0 else f"{percent:.1f} %"


def number(value: float | None) -> str:
    """Three digits that count; powers of ten only where there is no other way.

    Example:
        >>> [number(x) for x in (0, 0.01234, 1.234, -12.34, 1234.5, 1.2e-7, None)]
        ['0', '0.0123', '1.23', '-12.3', '1,234', '1.2e-07', '-']
    """
    if value is None or not math.isfinite(value):
        return NONE if value is None else str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 6)}f}"


def size(value: float | None) -> str:
    """Bytes.

    Example:
        >>> size(812), size(18_600_000), size(None)
        ('812 B', '18.6 MB', '-')
    """
    if value is None:
        return NONE
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= power:
            return f"{number(value / power)} {unit}"
    return f"{value:.0f} B"


def milliseconds(value: float | None) -> str:
    """Of a time in seconds.

    Example:
        >>> milliseconds(0.0123), milliseconds(None)
        ('12.3', '-')
    """
    return number(None if value is None else 1e3 * value)


def seconds(value: float | None) -> str:
    """A time that people wait.

    Example:
        >>> seconds(0.42), seconds(75.3), seconds(None)
        ('0.42 s', '75 s', '-')
    """
    if value is None:
        return NONE
    return f"{value:.2g} s" if value < 10.0 else f"{value:.0f} s"


def times(value: float | None) -> str:
    """How many times as large or fast.

    Example:
        >>> times(1.234), times(31.4), times(float("inf")), times(None)
        ('1.23x', '31x', 'inf', '-')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}x" if value < 9.95 else f"{value:.0f}x"


def sentence(text: str) -> str:
    """With a capital at its beginning, which reasons of runtimes have not.

    Example:
        >>> sentence("its result goes to Add")
        'Its result goes to Add'
    """
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "layer"), plural(1200, "layer")
        ('1 layer', '1,200 layers')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def order(value: float | str | None) -> str:
    """What a column is sorted by: infinities at the ends, what is missing nowhere.

    Example:
        >>> order(1.5), order(float("inf")), order(None), order(float("nan"))
        ('1.5', '1e+300', '', '-1e+300')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        value = -math.inf
    return f"{max(-1e300, min(1e300, value)):.7g}"
