"""The first samples of a stream of batches, for a second look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from quantkit.batches import as_batches, samples_of


class Kept:
    """Batches that pass through, of which those with the first samples are kept.

    Attributes:
        batches: what was kept, as inputs by order or by name.

    Example:
        >>> import torch
        >>> kept = Kept([torch.zeros(4, 1)] * 10, samples=8)
        >>> len(list(kept)), len(kept.batches)
        (10, 2)
    """

    def __init__(self, data: Iterable[Any], samples: int) -> None:
        self._data, self._left = data, samples
        self.batches: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for call in as_batches(self._data):
            args, kwargs = call
            batch = args or kwargs  # never both
            if self._left > 0:
                self.batches.append(batch)
                self._left -= samples_of(call)
            yield batch
