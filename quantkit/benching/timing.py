"""From the times of single runs to the figures of a table: pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

#: Milliseconds of each run, in the turns that they were measured in.
Turns: TypeAlias = Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as the reference a row is, over the turns that both had.

    Attributes:
        median: over 1 is faster than the reference.
        low: the first quartile.
        high: the third quartile.
    """

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half of what lies between the quartiles."""
        return (self.high - self.low) / 2.0


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least a ``share`` of them do not exceed (nearest rank).

    Args:
        values: one or more, in any order.
        share: over 0, up to 1.

    Raises:
        ValueError: there is no value, or ``share`` lies outside.

    Example:
        >>> quantile([5.0, 1.0, 3.0], 0.5), quantile([5.0, 1.0, 3.0], 0.95)
        (3.0, 5.0)
    """
    if not values:
        raise ValueError("no value has no quantile; give one or more")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be over 0 and up to 1, got {share}")
    # Rounded, since 0.95 * 20 is a little over 19 in floating point.
    return sorted(values)[max(0, math.ceil(round(share * len(values), 9)) - 1)]


def median(turns: Turns) -> float:
    """The median of all runs, in milliseconds.

    Example:
        >>> median([[1.0, 9.0], [2.0]])
        2.0
    """
    return statistics.median(chain.from_iterable(turns))


def p95(turns: Turns) -> float:
    """What 95 % of all runs do not exceed, in milliseconds.

    Example:
        >>> p95([[1.0, 9.0], [2.0]])
        9.0
    """
    return quantile(list(chain.from_iterable(turns)), 0.95)


def throughput(turns: Turns, batch: int) -> float:
    """Samples a second at the median run.

    Example:
        >>> throughput([[2.0, 4.0, 3.0]], batch=6)
        2000.0
    """
    return 1e3 * batch / median(turns)


def ratio(reference: Turns, row: Turns) -> Ratio | None:
    """Reference time / row time, turn by turn; ``None`` where there is no turn that both had.

    The two had each turn within moments of one another, so what else the machine did then is in
    both and falls out; a ratio of medians over the whole run would keep it.

    Example:
        >>> ratio([[2.0], [20.0], [4.0]], [[1.0], [10.0], [2.0]])
        Ratio(median=2.0, low=2.0, high=2.0)
    """
    pairs = [
        statistics.median(one) / statistics.median(other)
        for one, other in zip(reference, row, strict=False)
    ]
    if not pairs:
        return None
    return Ratio(
        median=statistics.median(pairs), low=quantile(pairs, 0.25), high=quantile(pairs, 0.75)
    )


def runs_a_turn(run_ms: float, turn_ms: float, most: int) -> int:
    """How many runs fill a turn: one at least, ``most`` at most.

    Example:
        >>> runs_a_turn(3.0, 100.0, 200), runs_a_turn(900.0, 100.0, 200)
        (34, 1)
    """
    return max(1, min(most, math.ceil(turn_ms / max(run_ms, 1e-6))))


def rotated(order: Sequence[int], turn: int) -> list[int]:
    """The order of one turn: none is always the one that finds another's traces in the caches.

    Example:
        >>> rotated([0, 1, 2], 1), rotated([0, 1, 2], 5)
        ([1, 2, 0], [2, 0, 1])
    """
    if not order:
        return []
    first = turn % len(order)
    return [*order[first:], *order[:first]]
