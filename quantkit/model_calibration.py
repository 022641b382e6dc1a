"""Calibrate a prepared model: one pass over data, then a grid for every activation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, tee
from pathlib import Path
from typing import Any

import torch

from quantkit import batches, distributed, nvtx, plugins, statistics_file
from quantkit.calibrating import SAMPLES_AT_A_TIME, Checkpoint, Runner, choose, gather
from quantkit.errors import RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.capture import Capture
from quantkit.interfaces import Calibrator, Chooser, Statistic
from quantkit.judging import Grids, Verdict, judge
from quantkit.model import QuantizedModel
from quantkit.observer import Observer
from quantkit.statistics import Histogram


@nvtx.phase("calibrate")
def calibrate(
    model: QuantizedModel,
    calibration: Iterable[Any] | None = None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
) -> None:
    """Run batches through the float model, or read what was seen, and give activations grids.

    Batches stream: none is kept. A few samples run at a time, however the data are batched, so
    batching changes no grid. Where ``torch.distributed`` is initialized each process runs its
    share, and all end with the same grids.

    A calibrator that chooses from others (``best``) judges by the outputs of the first samples of
    ``calibration``, which are read again for that; of an iterator, which can be read only once,
    their inputs are kept meanwhile. From statistics alone it goes by the error of each tensor.

    Args:
        model: as ``prepare`` makes it.
        calibration: an iterable of input batches.
        statistics: files that ``quantkit calibrate`` wrote of this model, to be merged: no data
            are then run for the ranges.
        checkpoint: where statistics are written while they are collected.

    Raises:
        DataError: no batch, or one of the wrong shape or type, or with NaN or infinity; the model
            keeps the grids that it had.
        ModelFileError: the statistics are not readable, or of another model.
        GroupError: another process of the group has failed; it raises why.
    """
    quantizers = activations(model)
    chooser = _chooser(quantizers)
    calls: list[batches.Call] = []
    once = isinstance(calibration, Iterator)
    if chooser is not None and calibration is not None and once:
        calls, calibration = first_calls(model, calibration, chooser.judged_by)
    # A file serves all calibrators, so that another can be tried without another pass.
    keep = () if checkpoint is None else read_by(known_calibrators(observers_of(quantizers)))
    observe(model, calibration, statistics=statistics, checkpoint=checkpoint, keep=keep)
    # All grids before any is set: where one cannot be had, the model is left as it was.
    grids: Grids = choose(observers_of(quantizers))
    if chooser is not None and calibration is not None and not once:
        # Not before the pass: they would be kept in memory all along.
        calls, _ = first_calls(model, calibration, chooser.judged_by)
    if chooser is not None and calls:
        grids = _chosen(model, calls, [grids, *candidates(quantizers, chooser.calibrators)])
    for quantizer, qparams in zip(quantizers, grids, strict=True):
        quantizer.set_qparams(qparams)
        # Those of the process that leads: another kind of processor may round otherwise.
        distributed.of_lead(quantizer.scale)
        distributed.of_lead(quantizer.zero_point)
    model.simulate()


def observe(
    model: QuantizedModel,
    calibration: Iterable[Any] | None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
    keep: Iterable[Statistic] = (),
) -> int:
    """Fill the model's observers, from data or from files; no grid changes.

    Args:
        model: as ``prepare`` makes it.
        calibration: an iterable of input batches.
        statistics: files to read and merge instead.
        checkpoint: where statistics are written.
        keep: statistics beside those that the recipe's calibrator reads.

    Returns:
        How many samples the statistics are of.

    Raises:
        DataError, ModelFileError, GroupError: as `calibrate`.
    """
    with _observing(model, activations(model)), torch.no_grad():
        return gather(
            ModelRunner(model), calibration,
            statistics=statistics, checkpoint=checkpoint, keep=keep,
        )  # fmt: skip


def known_calibrators(
    observers: Iterable[Observer], names: Sequence[str] = ()
) -> dict[str, Calibrator]:
    """Calibrators that find ranges by themselves: by default all there are.

    They have the settings that they have by default; the recipe's own has the recipe's.

    Raises:
        RecipeError: one is unknown, or chooses from others.
    """
    own = {type(observer.calibrator): observer.calibrator for observer in observers}
    found = {}
    for name in names or plugins.names_of("calibrators", Calibrator):
        kind = plugins.find("calibrators", name, Calibrator)
        if not issubclass(kind, Chooser):
            found[name] = own[kind] if kind in own else kind()
        elif names:
            raise RecipeError(f"{name} chooses from other calibrators; compare those instead")
    return found


def read_by(calibrators: Mapping[str, Calibrator]) -> tuple[Statistic, ...]:
    """What calibrators read, and the histogram that their errors are computed from."""
    read = (s for calibrator in calibrators.values() for s in calibrator.statistics)
    return tuple(dict.fromkeys((Histogram(), *read)))


def activations(model: QuantizedModel) -> list[FakeQuantize]:
    """The quantizers of activations, in the order of the plan."""
    return [q for q in model.of_role("activation") if q.observer is not None]


def observers_of(quantizers: Sequence[FakeQuantize]) -> list[Observer]:
    """Their observers, in the same order."""
    return [q.observer for q in quantizers if q.observer is not None]


def candidates(
    quantizers: Sequence[FakeQuantize], calibrators: Sequence[Calibrator]
) -> list[Grids]:
    """The grids that each calibrator finds for every quantizer."""
    observers = observers_of(quantizers)
    return [choose(observers, calibrator) for calibrator in calibrators]


def first_calls(
    model: QuantizedModel, calibration: Iterable[Any], samples: int
) -> tuple[list[batches.Call], Iterable[Any]]:
    """About so many of the first samples, and all data, also of an iterator read once."""
    if samples == 0:
        return [], calibration
    peeked: Iterable[Any] = calibration
    if isinstance(calibration, Iterator):
        peeked, calibration = tee(calibration)
    with distributed.together():
        return calls_of(model.capture, peeked, samples), calibration


def calls_of(captured: Capture, calibration: Iterable[Any], samples: int) -> list[batches.Call]:
    """About so many of the first samples, checked, in calls of `SAMPLES_AT_A_TIME`.

    Raises:
        DataError: as `calibrate`.
    """
    checked = _checked(batches.as_batches(calibration), captured, 0)
    calls = batches.regroup(checked, SAMPLES_AT_A_TIME, captured.batched)
    return list(islice(calls, math.ceil(samples / SAMPLES_AT_A_TIME)))


def judged(
    model: QuantizedModel, calls: Sequence[batches.Call], sets: Sequence[Grids]
) -> Verdict | None:
    """What the process that leads finds; ``None`` on the others."""
    with distributed.together():
        return judge(model, calls, sets) if distributed.place().leads else None


def _chosen(model: QuantizedModel, calls: Sequence[batches.Call], sets: Sequence[Grids]) -> Grids:
    """The grids that the process that leads has chosen: floats may differ elsewhere."""
    verdict = judged(model, calls, sets)
    numbers = torch.zeros(len(sets[0]), dtype=torch.int64)
    if verdict is not None:
        numbers = torch.tensor(verdict.chosen)
    distributed.of_lead(numbers)
    return [sets[int(number)][i] for i, number in enumerate(numbers)]


def _chooser(quantizers: Sequence[FakeQuantize]) -> Chooser | None:
    """The recipe's calibrator, where it chooses from others."""
    found = (observer.calibrator for observer in observers_of(quantizers))
    return next((c for c in found if isinstance(c, Chooser)), None)


class ModelRunner(Runner):
    """A prepared model, whose quantizers observe."""

    def __init__(self, model: QuantizedModel) -> None:
        self._model = model
        named = ((g, q.observer) for g, q in model.quantizers.items())
        self._observers = {grid: o for grid, o in named if o is not None}

    @property
    def observers(self) -> Mapping[str, Observer]:
        """The observers of activations by the names of their grids."""
        return self._observers

    @property
    def fingerprint(self) -> str:
        """A hash of the float model's parameters and buffers."""
        return statistics_file.fingerprint(self._model.float_state())

    @property
    def samples(self) -> int:
        """A few; a model that was captured for so many takes those, whatever is said here."""
        return SAMPLES_AT_A_TIME

    def calls(self, batched: Iterable[batches.Call], first: int = 0) -> Iterator[batches.Call]:
        """Checked calls with their inputs where the model was captured with them."""
        captured = self._model.capture
        return batches.regroup(
            _checked(batched, captured, first), SAMPLES_AT_A_TIME, captured.batched
        )

    def run(self, call: batches.Call) -> None:
        """Run the float model."""
        args, kwargs = call
        self._model(*args, **kwargs)


def _checked(
    calls: Iterable[batches.Call], captured: Capture, first: int
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Calls with their inputs where the model was captured with them, of the form that it takes."""
    for index, call in enumerate(calls, start=first):
        args, kwargs = batches.bind_inputs(*call, captured.input_names[: len(captured.args)])
        batches.check_batch(
            args, kwargs, captured.args, captured.kwargs, index,
            dynamic_dims=captured.dynamic_dims,
        )  # fmt: skip
        yield args, kwargs


@contextmanager
def _observing(model: QuantizedModel, quantizers: list[FakeQuantize]) -> Iterator[None]:
    """The float model with observers on, in evaluation mode; afterwards as it was."""
    training = model.training
    quantizing = {q: q.quantizing for q in model.quantizers.values()}
    model.eval()
    model.simulate(False)
    for quantizer in quantizers:
        quantizer.observe()
    try:
        yield
    finally:
        for quantizer, enabled in quantizing.items():
            quantizer.observe(False)
            quantizer.quantize_values(enabled)
        model.train(training)
