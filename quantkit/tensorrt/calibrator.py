"""The class that TensorRT's builder calls for calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.interfaces import EngineCalibrator
    from quantkit.tensorrt.feed import CalibrationFeed
    from quantkit.tensorrt.sdk import Sdk


def make_calibrator(sdk: Sdk, kind: EngineCalibrator, feed: CalibrationFeed) -> Any:
    """An instance of TensorRT's own calibrator class that asks ``feed`` for everything.

    The class is made here, in a function, because its base is an optional package's. Nothing is
    decided in it: what can be tested without TensorRT is in the feed.

    Raises:
        TargetError: this version of TensorRT has no such class.
    """
    base: Any = sdk.calibrator_base(kind)

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
