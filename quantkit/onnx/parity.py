"""How far the outputs of one model are from those of another, summed up batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output of a quantized file beside that of its reference.

    Attributes:
        name: the output's name in the file.
        sqnr: signal to quantization noise in dB; infinite where both are equal, ``nan`` where
            the file puts out what is not a number.
        largest: the largest absolute difference.
        agreement: the share of rows, from 0 to 1, whose largest value stands in the same place;
            ``None`` where the output is not one row of scores for each input.
        default_mode: how far ONNX Runtime's default mode is from its exact one, as a share of the
            largest value: over 0, sums saturate or activations are rounded.
    """

    name: str
    sqnr: float
    largest: float
    agreement: float | None
    default_mode: float


class ParityMeter:
    """Sums for one output; holds no batch.

    Example:
        >>> meter = ParityMeter("logits")
        >>> exact = np.array([[10.0, 0.0]])
        >>> meter.update(exact, exact + [[0.0, 1.0]], exact + [[0.0, 1.0]])
        >>> result = meter.result()
        >>> round(result.sqnr, 6), result.largest, result.agreement
        (20.0, 1.0, 1.0)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._signal = self._noise = self._largest = 0.0
        self._peak = self._moved = 0.0
        self._agreed = self._rows = 0
        self._scores = True

    def update(self, reference: np.ndarray, exact: np.ndarray, default: np.ndarray) -> None:
        """Take in one batch: the reference, and the file in both modes; all of one shape."""
        wanted, got = reference.astype(np.float64), exact.astype(np.float64)
        apart = _difference(wanted, got)
        finite = wanted[np.isfinite(wanted)]
        self._signal += float(np.square(finite).sum())
        self._noise += float(np.square(apart).sum())
        self._largest = _larger(self._largest, apart)
        self._peak = _larger(self._peak, got[np.isfinite(got)])
        self._moved = _larger(self._moved, _difference(got, default.astype(np.float64)))
        self._scores &= reference.ndim == 2 and reference.shape[1] > 1
        if self._scores:
            self._agreed += int((wanted.argmax(1) == got.argmax(1)).sum())
            self._rows += len(wanted)

    def result(self) -> OutputParity:
        """The figures over all batches so far."""
        return OutputParity(
            name=self.name,
            sqnr=_sqnr(self._signal, self._noise),
            largest=self._largest,
            agreement=self._agreed / self._rows if self._scores and self._rows else None,
            default_mode=self._moved / self._peak if self._peak else self._moved,
        )


def _difference(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """``got - wanted``; the infinities of a mask are equal to themselves."""
    with np.errstate(invalid="ignore"):
        return np.where(wanted == got, 0.0, got - wanted)


def _larger(largest: float, values: np.ndarray) -> float:
    """The larger of what was largest and the largest magnitude here; NaN stays."""
    return float(np.maximum(largest, np.abs(values).max(initial=0.0)))


def _sqnr(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isinf(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf
