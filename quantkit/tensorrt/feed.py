"""The data of one calibration, batch by batch, and its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from quantkit.errors import DataError
from quantkit.tensorrt.rows import Row


class CalibrationFeed:
    """Answers what the process that calibrates asks for: see ``quantkit.tensorrt.remote``.

    Args:
        shapes: of each input in every batch.
        batches: of these shapes, the last perhaps with fewer samples; ``None`` where there is no
            data, since a cache is to do. A short batch is not served: its samples would be read
            beyond their end, or those that fill it up counted twice.
        batch_size: how many samples a batch holds.
        served: the cache to begin with.
        save: writes the cache that TensorRT made, given the number of batches it took.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        batches: Iterator[Row] | None,
        *,
        batch_size: int,
        served: bytes | None = None,
        save: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.batches = 0  #: served so far
        self.dropped = 0  #: samples of a short batch
        self.served = served
        self.shapes = dict(shapes)
        self._source = batches
        self._save = save

    def next_batch(self, names: Sequence[str]) -> dict[str, np.ndarray] | None:
        """The next values of each named input, in that order; ``None`` at the end.

        Raises:
            DataError: the data does not fit, or whatever else was raised while it was read.
        """
        unknown = [name for name in names if name not in self.shapes]
        if unknown or len(set(names)) != len(names):
            raise DataError(
                f"TensorRT asks for the inputs {', '.join(names)}, the data has "
                f"{', '.join(self.shapes)}; calibrate the model that the data is for"
            )
        row = self._next()
        if row is None:
            return None
        self.batches += 1
        return {name: row[name].contiguous().numpy() for name in names}

    def write_cache(self, text: bytes) -> None:
        """Keep what TensorRT found in the data; not what it was only handed back."""
        if self._save is not None and self.batches:
            self._save(text, self.batches)

    def close(self) -> None:
        """Close the data, and its progress bar."""
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def _next(self) -> Row | None:
        if self._source is None:
            raise DataError(
                "TensorRT did not take the calibration cache, and there is no data to calibrate "
                "again; give data, or a cache that this version of TensorRT wrote"
            )
        row = next(self._source, None)
        if row is None and self.batches == 0:
            raise DataError("the calibration data has no batch; give at least one")
        if row is None:
            return None
        missing = [name for name in self.shapes if name not in row]
        if missing:
            raise DataError(
                f"batch {self.batches} has no {', '.join(missing)}; give each batch every input"
            )
        for name, shape in self.shapes.items():
            if tuple(row[name].shape) != shape:
                self._drop(row, name)
                return None
        return row

    def _drop(self, row: Row, name: str) -> None:
        """Leave a short batch out; it is the last, else something is wrong with the data."""
        want, got = self.shapes[name], tuple(row[name].shape)
        if got[1:] != want[1:] or got[:1] > want[:1] or not got:
            raise DataError(
                f"batch {self.batches}, input {name!r} has shape {got}, expected {want}; "
                "TensorRT calibrates with one shape"
            )
        if self._source is not None and next(self._source, None) is not None:
            raise DataError(
                f"batch {self.batches} has {got[0]} samples, others {want[0]}, and it is not the "
                "last; give batches that differ in nothing but their samples"
            )
        self.dropped = got[0]
        if self.batches == 0:
            raise DataError(
                f"the calibration data has {got[0]} samples, fewer than one batch of {want[0]}; "
                "give more, or build for a smaller batch"
            )
