"""Calibrators compared from one pass: the range of each for every tensor, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantkit import histogram, rounding_error
from quantkit.batches import Call
from quantkit.calibrating import Checkpoint, all_ranges
from quantkit.interfaces import Calibrator, Statistic
from quantkit.model import QuantizedModel
from quantkit.model_calibration import (
    activations,
    first_calls,
    judged,
    known_calibrators,
    observe,
    observers_of,
    read_by,
)
from quantkit.observer import Observer

#: Samples by which the outputs are judged; as many as ``calibrator: best`` takes.
SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class CalibratedRange:
    """What one calibrator makes of one tensor.

    Attributes:
        calibrator: its name.
        low, high: the range, the widest of all channels.
        sqnr: signal to quantization noise of the tensor in dB, from its histogram.
    """

    calibrator: str
    low: float
    high: float
    sqnr: float


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """What calibrators make of one tensor.

    Attributes:
        tensor: its grid's name.
        form: the form of the grid, such as ``int8 symmetric per tensor``.
        symmetric: whether the grid reaches as far on both sides of zero.
        low, high: the range of everything seen.
        ranges: one of each calibrator.
    """

    tensor: str
    form: str
    symmetric: bool
    low: float
    high: float
    ranges: tuple[CalibratedRange, ...]

    @property
    def best(self) -> CalibratedRange:
        """The one of the least noise; of equal ones the first."""
        return max(self.ranges, key=lambda r: r.sqnr)


@dataclass(frozen=True, kw_only=True)
class CalibratorComparison:
    """What calibrators make of a model.

    Attributes:
        calibrators: their names.
        tensors: what they make of each.
        output_sqnr: of each calibrator the signal to noise at the model's outputs in dB, measured
            with all activations on its ranges; ``None`` where no data were at hand.
        mixed_sqnr: that of the best choice for each tensor (``calibrator: best``).
        samples: how many samples the statistics are of.
    """

    calibrators: tuple[str, ...]
    tensors: tuple[TensorComparison, ...]
    output_sqnr: tuple[float, ...] | None = None
    mixed_sqnr: float | None = None
    samples: int = 0

    def wins(self, calibrator: str) -> int:
        """For how many tensors it makes the least noise."""
        return sum(tensor.best.calibrator == calibrator for tensor in self.tensors)

    def mean_sqnr(self, calibrator: str) -> float:
        """The mean over the tensors, in dB."""
        found = [r.sqnr for t in self.tensors for r in t.ranges if r.calibrator == calibrator]
        return sum(found) / len(found) if found else math.nan

    @property
    def best(self) -> str:
        """The one that serves the outputs best; without data, the tensors on average."""
        scores = self.output_sqnr or tuple(map(self.mean_sqnr, self.calibrators))
        return self.calibrators[max(range(len(scores)), key=lambda i: scores[i])]


def compare_calibrators(
    model: QuantizedModel,
    calibration: Iterable[Any] | None = None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
    names: Sequence[str] = (),
    samples: int = SAMPLES,
) -> CalibratorComparison:
    """What each calibrator would choose for every activation, from one pass over the data.

    The model's grids stay as they are; its observers hold the statistics afterwards.

    Args:
        model: as ``prepare`` makes it.
        calibration: an iterable of input batches.
        statistics: files that ``quantkit calibrate`` wrote, read instead of running data.
        checkpoint: where statistics are written while they are collected.
        names: the calibrators; by default all there are.
        samples: how many of the first samples judge the outputs; 0 for none.

    Raises:
        RecipeError: a calibrator is unknown, or one that chooses from others.
        DataError, ModelFileError: as ``quantkit.calibrate``.
    """
    observers = observers_of(activations(model))
    found, kept = compared_and_kept(observers, names)
    calls: list[Call] = []
    if calibration is not None:
        calls, calibration = first_calls(model, calibration, samples)
    seen = observe(model, calibration, statistics=statistics, checkpoint=checkpoint, keep=kept)
    compared, chosen = _compared(observers, found, seen)
    if not calls:
        return compared
    sets = [[o.grid(*r) for o, r in zip(observers, chosen[name], strict=True)] for name in found]
    # As `calibrator: best`, which tries the least error of each tensor first.
    numbers = [compared.calibrators.index(tensor.best.calibrator) for tensor in compared.tensors]
    least = [sets[number][i] for i, number in enumerate(numbers)]
    verdict = judged(model, calls, [least, *sets])
    if verdict is None:
        return compared
    return replace(compared, output_sqnr=verdict.sqnr[1:], mixed_sqnr=verdict.chosen_sqnr)


def compared_and_kept(
    observers: Sequence[Observer], names: Sequence[str] = ()
) -> tuple[dict[str, Calibrator], tuple[Statistic, ...]]:
    """The calibrators to compare, and what is to be kept: all that any reads, not these alone.

    So a file of statistics serves every calibrator, whichever were compared.

    Raises:
        RecipeError: a calibrator is unknown, or one that chooses from others.
    """
    found = known_calibrators(observers, names)
    return found, read_by(known_calibrators(observers) | found)


def compare_observed(
    observers: Sequence[Observer], calibrators: Mapping[str, Calibrator], samples: int
) -> CalibratorComparison:
    """What calibrators make of tensors that were observed, without a look at the outputs.

    Args:
        observers: they have kept histograms, and what the calibrators read.
        calibrators: by name.
        samples: how many the observers have seen.

    Raises:
        DataError: one has observed nothing, or NaN or infinity.
    """
    return _compared(observers, calibrators, samples)[0]


def _compared(
    observers: Sequence[Observer], calibrators: Mapping[str, Calibrator], samples: int
) -> tuple[CalibratorComparison, dict[str, list[tuple[Tensor, Tensor]]]]:
    """The comparison, and every range behind it."""
    chosen = {name: all_ranges(observers, c) for name, c in calibrators.items()}
    tensors = tuple(
        _of_tensor(observer, {name: found[i] for name, found in chosen.items()})
        for i, observer in enumerate(observers)
    )
    names = tuple(calibrators)
    return CalibratorComparison(calibrators=names, tensors=tensors, samples=samples), chosen


def _of_tensor(observer: Observer, chosen: Mapping[str, tuple[Tensor, Tensor]]) -> TensorComparison:
    """What calibrators make of a tensor that was observed, with a histogram of it."""
    state, spec = observer.state, observer.spec
    both = rounding_error.spans(state["counts"], state["exponent"])
    power = float(histogram.power(state["counts"], state["exponent"]).sum())
    low, high = (torch.stack(ends, dim=1) for ends in zip(*chosen.values(), strict=True))
    noises = rounding_error.noise_of_ranges(both, low, high, spec).sum(dim=0)
    return TensorComparison(
        tensor=observer.name,
        form=str(spec),
        symmetric=spec.symmetric,
        low=_least(state["minimum"]),
        high=-_least(-state["maximum"]),
        ranges=tuple(
            CalibratedRange(
                calibrator=name, low=_least(low), high=-_least(-high), sqnr=_decibels(power, noise)
            )
            for (name, (low, high)), noise in zip(chosen.items(), noises.tolist(), strict=True)
        ),
    )


def _least(x: Tensor) -> float:
    return float(x.min())


def _decibels(power: float, noise: float) -> float:
    if noise == 0.0 or power == 0.0:
        return math.inf
    return 10.0 * math.log10(power / noise)
