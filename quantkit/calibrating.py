"""Calibration: data through a float model into statistics, and statistics into grids.

`collect` is one pass, on one process or many, that can be interrupted and resumed; `choose` turns
what was collected into grids, for all tensors at once, as often as there are calibrators to try.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit import distributed, statistics_file
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.interfaces import Calibrator, Statistic
from quantkit.numerics import QParams
from quantkit.observer import Observer
from quantkit.running import SAMPLES_AT_A_TIME as SAMPLES_AT_A_TIME
from quantkit.running import Checkpoint as Checkpoint
from quantkit.running import Runner as Runner
from quantkit.running import Share
from quantkit.spec import QuantSpec


def collect(
    runner: Runner, calibration: Iterable[Any], *, checkpoint: Checkpoint | None = None
) -> int:
    """Run the data through the model, once; its observers then hold the statistics of all.

    Where ``torch.distributed`` is initialized each process runs its share, and all end with the
    statistics of everything. What runs at a time is the same on any number of processes, so ranges
    and histograms are those of one, exactly where the model computes the same floats on each (its
    threads may differ in a last bit).

    Returns:
        How many samples they are of.

    Raises:
        DataError: no batch, or one of the wrong shape or type, or with NaN or infinity.
        ModelFileError: the checkpoint to resume is of another model or other data, or not readable.
        GroupError: another process has failed.
    """
    place = distributed.place()
    if place.world > 1 and not distributed.all_equal(runner.fingerprint):
        distributed.agree(
            ModelFileError(
                "the processes have models of different weights; load weights, or seed the random "
                "generator where the model is made"
            )
        )
    with distributed.together():
        share = Share(runner, calibration, checkpoint, place)
        whole = share.resume()
        if not whole:
            share.collect()
    if whole:
        return share.samples
    samples = torch.tensor([share.samples])
    if place.world > 1:
        distributed.all_reduce(samples, "sum")
        for observer in runner.observers.values():
            state = observer.state
            for statistic in observer.statistics:
                statistic.reduce(state, distributed.all_reduce)
    with distributed.together():
        share.finish(int(samples))
    return int(samples)


def gather(
    runner: Runner,
    calibration: Iterable[Any] | None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
    keep: Iterable[Statistic] = (),
) -> int:
    """Fill a runner's observers, from data (see `collect`) or from files; returns how many samples.

    Args:
        runner: what runs the data.
        calibration: an iterable of input batches.
        statistics: files to read and merge instead.
        checkpoint: where statistics are written while data run.
        keep: statistics beside those that the recipe's calibrator reads.

    Raises:
        DataError, ModelFileError, GroupError: as `collect`.
        RecipeError: what is to be kept, and what the calibrators read, are at odds.
    """
    kept = tuple(keep)
    for observer in runner.observers.values():
        try:
            observer.keep(kept)
        except ValueError as error:
            raise RecipeError(str(error)) from error
    if statistics:
        return statistics_file.load_merged(statistics, runner.observers, runner.fingerprint)
    if calibration is None:
        raise DataError("nothing to calibrate with; give calibration batches, or statistics")
    for observer in runner.observers.values():
        observer.reset()
    return collect(runner, calibration, checkpoint=checkpoint)


def choose(observers: Sequence[Observer], calibrator: Calibrator | None = None) -> list[QParams]:
    """The grids that a calibrator finds, for all tensors at once.

    Args:
        observers: they have seen data.
        calibrator: for all of them; by default each one's own.

    Raises:
        DataError: one has observed nothing, or NaN or infinity, or not what the calibrator reads.
    """
    found = all_ranges(observers, calibrator)
    return [o.grid(low, high) for o, (low, high) in zip(observers, found, strict=True)]


def all_ranges(
    observers: Sequence[Observer], calibrator: Calibrator | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The ranges behind the grids of `choose`, each end of shape ``(channels,)``."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, observer in enumerate(observers):
        observer.check()
        groups[_key(observer, calibrator)].append(index)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for members in groups.values():
        chosen = [observers[i] for i in members]
        used = chosen[0].calibrator if calibrator is None else calibrator
        for observer in chosen:
            _require(observer, used)
        bounds = ranges([o.state for o in chosen], used, chosen[0].spec)
        found.update(zip(members, zip(*bounds, strict=True), strict=True))
    return [found[index] for index in range(len(observers))]


def ranges(
    states: Sequence[Mapping[str, Tensor]], calibrator: Calibrator, spec: QuantSpec
) -> tuple[list[Tensor], list[Tensor]]:
    """The ranges of many tensors whose states are alike, by one search.

    Returns:
        The smallest and the largest values, of each tensor one of shape ``(channels,)``.
    """
    channels = [state["minimum"].numel() for state in states]
    rows = {
        key: torch.cat([state[key] for state in states])
        for key, value in states[0].items()
        if value.dim() > 0
    }
    low, high = calibrator.range(rows, spec)
    return list(torch.split(low, channels)), list(torch.split(high, channels))


def _require(observer: Observer, calibrator: Calibrator) -> None:
    for statistic in calibrator.statistics:
        if statistic not in observer.statistics:
            raise DataError(
                f"{calibrator} reads {statistic}, which was not kept of tensor {observer.name!r}; "
                "keep it before data are seen: Observer.keep, or `keep` of calibrate"
            )


def _key(observer: Observer, calibrator: Calibrator | None) -> object:
    """What observers have in common whose tensors are searched together."""
    spec = observer.spec
    return (
        observer.calibrator if calibrator is None else calibrator,
        (spec.dtype, spec.symmetric, spec.bits),
        observer.get_buffer("minimum").device,
        tuple((key, tuple(value.shape[1:])) for key, value in observer.state.items()),
    )
