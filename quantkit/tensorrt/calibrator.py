"""The class that TensorRT's builder calls for calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Feed(Protocol):
    """What answers the calls of a builder; no exception leaves it.

    The binding takes an exception for the end of the data, and builds with what it had.
    """

    @property
    def batch_size(self) -> int:
        """How many samples a batch holds."""

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """The address on the device of each named input's next values; ``None`` at the end."""

    def read_cache(self) -> bytes | None:
        """The cache to use instead of data."""

    def write_cache(self, text: bytes) -> None:
        """Keep what was found."""


def make_calibrator(base: Any, feed: Feed) -> Any:
    """An instance of TensorRT's own calibrator class that asks ``feed`` for everything.

    The class is made here, in a function, because its base is an optional package's. Nothing is
    decided in it: what can be tested without TensorRT is in the feed.

    Args:
        base: such as ``tensorrt.IInt8EntropyCalibrator2``.
        feed: what it asks.
    """

    class FeedCalibrator(base):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            base.__init__(self)  # the binding refuses an object whose base was not initialized

        def get_batch_size(self) -> int:
            return feed.batch_size

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            return feed.next_batch(names)

        def read_calibration_cache(self) -> bytes | None:
            return feed.read_cache()

        def write_calibration_cache(self, cache: memoryview) -> None:
            feed.write_cache(bytes(cache))

    return FeedCalibrator()
