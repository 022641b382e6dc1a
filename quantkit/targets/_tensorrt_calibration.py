"""The part of a build that only the calibrator route has: data, cache, and what became of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from quantkit.errors import TargetError
from quantkit.interfaces import EngineCalibrator, Finding, Severity
from quantkit.progress import track
from quantkit.targets._rtx_build import default_profile
from quantkit.targets._shapes import Shapes
from quantkit.tensorrt.buffers import BufferKind, open_buffers
from quantkit.tensorrt.calibrator import make_calibrator
from quantkit.tensorrt.feed import CalibrationFeed
from quantkit.tensorrt.record import CacheFile
from quantkit.tensorrt.rows import NetworkInput, Row, batch_inputs, describe, rows, whole_batches
from quantkit.tensorrt.sdk import Sdk

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


def calibrated(
    sdk: Sdk, builder: Any, network: Any, config: Any, calibration: Calibration, sizes: Shapes
) -> tuple[Any, tuple[Finding, ...]]:
    """The serialized network, calibrated by its builder; ``None`` where that refuses it.

    Raises:
        DataError: the data does not fit, or whatever else was raised while it was read.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = [NetworkInput(t.name, tuple(t.shape), _input_type(t)) for t in tensors]
    feed = _feed(sdk, inputs, calibration, sizes)
    shapes = feed.shapes
    profile = builder.create_optimization_profile()
    dynamic = [one.name for one in inputs if min(one.shape, default=0) < 0]
    for name in dynamic:
        profile.set_shape(name, shapes[name], shapes[name], shapes[name])
    if dynamic:
        config.set_calibration_profile(profile)
    calibrator = make_calibrator(sdk, calibration.kind, feed)
    config.int8_calibrator = calibrator  # the builder keeps a pointer: `calibrator` outlives it
    try:
        engine = builder.build_serialized_network(network, config)
    finally:
        feed.reraise()
    return engine, tuple(_notes(feed))


def _feed(
    sdk: Sdk, inputs: list[NetworkInput], calibration: Calibration, sizes: Shapes
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
        buffers=partial(open_buffers, calibration.buffers),
        served=calibration.served,
        save=None
        if cache is None
        else partial(cache.save, tensorrt=sdk.label, data=describe(data)),
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


def _input_type(tensor: Any) -> torch.dtype:
    name = tensor.dtype.name
    if name not in _INPUT_TYPES:
        raise TargetError(
            f"input {tensor.name} is {name}, which no calibrator serves; give the model inputs of "
            "float32, or of int32 or int64 for indices"
        )
    return _INPUT_TYPES[name]
