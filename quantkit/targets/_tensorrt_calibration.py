"""The part of a build that only the calibrator route has: data, cache, and what became of them."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quantkit.errors import DataError, TargetError
from quantkit.interfaces import EngineCalibrator, Finding, Severity
from quantkit.progress import track
from quantkit.targets._engine_request import Calibrator
from quantkit.targets._shapes import Shapes, default_profile
from quantkit.tensorrt.buffers import BufferKind
from quantkit.tensorrt.feed import CalibrationFeed
from quantkit.tensorrt.fingerprint import Fingerprint
from quantkit.tensorrt.record import CacheFile
from quantkit.tensorrt.remote import Answer
from quantkit.tensorrt.rows import NetworkInput, Row, batch_inputs, describe, rows, whole_batches

#: What an input of each type of a network is calibrated with.
_INPUT_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float32,
    "BF16": torch.float32,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the calibrator route needs beyond the model.

    Attributes:
        kind: the calibrator.
        data: what ``quantkit.batches.as_batches`` takes; ``None`` where the cache is to do.
        cache: where ranges are kept; ``None`` to keep none.
        served: the cache's text, checked; ``None`` where there is none yet.
        buffers: who allocates on the device.
    """

    kind: EngineCalibrator
    data: object | None
    cache: CacheFile | None
    served: bytes | None
    buffers: BufferKind

    @property
    def calibrator(self) -> Calibrator:
        """What the builder's process needs of it."""
        return Calibrator(base=self.kind.base, buffers=self.buffers)

    @classmethod
    def opened(
        cls,
        kind: EngineCalibrator | None,
        model: Path,
        data: object | None,
        cache: Path | None,
        *,
        trusted: bool,
        buffers: BufferKind,
    ) -> Calibration | None:
        """With the cache in a file, if it is there and was made for this model and calibrator.

        Without a calibrator there is nothing to be served: ``None``.

        Raises:
            ModelFileError: it was made for another, and is not trusted.
            DataError: it is not there, and there is no data.
        """
        if kind is None:
            return None
        file = None
        if cache is not None:
            file = CacheFile(
                path=cache,
                fingerprint=Fingerprint.of(model),
                algorithm=kind.algorithm,
                trusted=trusted,
            )
        served = None if file is None else file.load()
        if data is None and served is None:
            raise DataError(f"{cache} is not there, and no data is given; give data")
        return cls(kind=kind, data=data, cache=file, served=served, buffers=buffers)


class Calibrating:
    """The data's end of one calibration; the other end is ``_engine_calibrate``.

    Args:
        calibration: the data and the cache.
        sizes: of the engine: the best of them where the data does not tell, for a cache is there.
        tensorrt: what calibrates, for the cache's record.
    """

    def __init__(self, calibration: Calibration, sizes: Shapes, tensorrt: str) -> None:
        self._calibration, self._sizes, self._tensorrt = calibration, sizes, tensorrt
        self._feed: CalibrationFeed | None = None

    def answer(self, event: Mapping[str, Any]) -> Answer:
        """What the builder's process asks for.

        Raises:
            DataError: the data does not fit, or whatever else was raised while it was read.
            TargetError: the network has inputs that no calibrator serves.
        """
        if event["what"] == "inputs":
            return self._opened(event["inputs"])
        assert self._feed is not None  # its inputs are what it tells first
        if event["what"] == "cache":
            self._feed.write_cache(base64.b64decode(event["text"]))
            return Answer()
        return Answer(arrays=self._feed.next_batch(event["names"]) or {})

    def close(self) -> None:
        """Close the data."""
        if self._feed is not None:
            self._feed.close()

    def notes(self) -> tuple[Finding, ...]:
        """What is to be known of the data and the cache."""
        return () if self._feed is None else tuple(_notes(self._feed))

    def _opened(self, tensors: Sequence[Any]) -> Answer:
        inputs = [
            NetworkInput(name, tuple(shape), _input_type(name, kind))
            for name, shape, kind in tensors
        ]
        feed = _feed(self._calibration, inputs, self._sizes, self._tensorrt)
        self._feed = feed
        served = None if feed.served is None else base64.b64encode(feed.served).decode()
        return Answer({"shapes": feed.shapes, "batch_size": feed.batch_size, "served": served})


def _feed(
    calibration: Calibration,
    inputs: list[NetworkInput],
    sizes: Shapes,
    tensorrt: str,
) -> CalibrationFeed:
    """What answers the calibrator: batches of one shape, and the cache."""
    data, cache = calibration.data, calibration.cache
    batches: Iterator[Row] | None = None
    shapes = {
        one.name: tuple((sizes.get(one.name) or default_profile(one.shape))[1]) for one in inputs
    }
    if data is not None:
        source = iter(rows(data, inputs))
        if calibration.served is None:  # else nothing is read: the cache is likely to do
            first = next(source)
            shapes = _shapes_of(first, inputs)
            source = itertools.chain([first], source)
        total = len(data) if hasattr(data, "__len__") else None
        batches = whole_batches(track(source, "calibrating", total), inputs, shapes)
    counting = next((one.name for one in batch_inputs(inputs)), None)
    return CalibrationFeed(
        shapes,
        batches,
        batch_size=1 if counting is None else shapes[counting][0],
        served=calibration.served,
        save=None if cache is None else partial(cache.save, tensorrt=tensorrt, data=describe(data)),
    )


def _shapes_of(first: Row, inputs: list[NetworkInput]) -> dict[str, tuple[int, ...]]:
    """Of a batch: as the data has it, but with the network's sizes where those are fixed."""
    return {
        one.name: tuple(
            got if want < 0 else want
            for want, got in zip(one.shape, first[one.name].shape, strict=True)
        )
        for one in inputs
    }


def _notes(feed: CalibrationFeed) -> Iterator[Finding]:
    if feed.dropped:
        yield Finding(
            severity=Severity.INFO,
            code="calibration-rest",
            where="calibration",
            why=f"The last {feed.dropped} samples fill no batch of {feed.batch_size}, and were "
            "left out.",
            fix="Give a number of samples that the batch divides, to use them all.",
        )
    if feed.served is not None and feed.batches:
        yield Finding(
            severity=Severity.WARNING,
            code="cache-not-taken",
            where="calibration",
            why="TensorRT did not take the calibration cache, and calibrated again.",
            fix="Use the cache with the version of TensorRT that wrote it.",
        )
    if feed.served is None and not feed.batches:
        yield Finding(
            severity=Severity.WARNING,
            code="never-calibrated",
            where="calibration",
            why="TensorRT asked for no calibration data: nothing in this model runs in INT8.",
            fix="Build it without a calibrator.",
        )


def _input_type(name: str, kind: str) -> torch.dtype:
    if kind not in _INPUT_TYPES:
        raise TargetError(
            f"input {name} is {kind}, which no calibrator serves; give the model inputs of "
            "float32, or of int32 or int64 for indices"
        )
    return _INPUT_TYPES[kind]
