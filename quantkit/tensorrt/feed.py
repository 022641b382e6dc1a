"""What TensorRT's calibrator is told, and what becomes of errors on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from quantkit.errors import DataError
from quantkit.tensorrt.buffers import DeviceBuffers
from quantkit.tensorrt.rows import Row

T = TypeVar("T")


class CalibrationFeed:
    """Answers the calls of one build; ``reraise`` after it tells what went wrong in them.

    The binding takes an exception for the end of the data and goes on with what it has, so none
    leaves these methods: it is kept, nothing more is served or written, and ``reraise`` raises it.

    Args:
        shapes: of each input in every batch.
        batches: of these shapes, the last perhaps with fewer samples; ``None`` where there is no
            data, since a cache is to do. A short batch is not served: its samples would be read
            beyond their end, or those that fill it up counted twice.
        batch_size: how many samples a batch holds.
        buffers: opens the memory on the device, when the first batch is asked for.
        served: the cache to begin with.
        save: writes the cache that TensorRT made, given the number of batches it took.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        batches: Iterator[Row] | None,
        *,
        batch_size: int,
        buffers: Callable[[], DeviceBuffers],
        served: bytes | None = None,
        save: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.batches = 0  #: served so far
        self.dropped = 0  #: samples of a short batch
        self.served = served
        self.shapes = dict(shapes)
        self._source = batches
        self._open = buffers
        self._save = save
        self._buffers: DeviceBuffers | None = None
        self._error: BaseException | None = None

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """The address of each named input's next values; ``None`` at the end, or after an error."""
        return self._kept(lambda: self._serve(names))

    def read_cache(self) -> bytes | None:
        """The cache to use instead of data."""
        return None if self._error is not None else self.served

    def write_cache(self, text: bytes) -> None:
        """Keep what TensorRT found in the data; not what it was only handed back."""
        if self._save is not None and self.batches:
            save = self._save
            self._kept(lambda: save(text, self.batches))

    def reraise(self) -> None:
        """Free the device's memory, and raise what a call ended with, as it was raised there."""
        self.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Free the device's memory, and close the progress bar."""
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def _kept(self, action: Callable[[], T]) -> T | None:
        if self._error is not None:
            return None
        try:
            return action()
        except BaseException as error:  # Ctrl-C too: the binding would calibrate on with less
            self._error = error
            return None

    def _serve(self, names: Sequence[str]) -> list[int] | None:
        unknown = [name for name in names if name not in self.shapes]
        if unknown or len(set(names)) != len(names):
            raise DataError(
                f"TensorRT asks for the inputs {', '.join(names)}, the data has "
                f"{', '.join(self.shapes)}; calibrate the model that the data is for"
            )
        row = self._next()
        if row is None:
            return None
        if self._buffers is None:
            self._buffers = self._open()
        buffers = self._buffers
        # TensorRT has read the last batch when it asks for the next: buffers are filled again.
        addresses = [buffers.put(name, row[name].contiguous()) for name in names]
        self.batches += 1
        return addresses

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
