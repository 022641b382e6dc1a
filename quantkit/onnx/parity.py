"""How far one tensor is from another that it should repeat, summed up batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How far one tensor is from its reference, over all batches.

    Attributes:
        sqnr: signal to quantization noise in dB; infinite where both are equal, ``nan`` where it
            holds what is not a number and the reference does not, or the reverse.
        cosine: of the angle between the two as vectors, from -1 to 1; ``nan`` where one is zero.
        largest: the largest absolute difference.
        agreement: the share of rows, from 0 to 1, whose largest value stands in the same place;
            ``None`` where it is not one row of scores for each input.
    """

    sqnr: float
    cosine: float
    largest: float
    agreement: float | None


@dataclass(frozen=True, kw_only=True)
class OutputParity(Closeness):
    """One output of a quantized file beside that of its reference.

    Attributes:
        name: the output's name in the file.
        default_mode: how far ONNX Runtime's default mode is from its exact one, as a share of the
            largest value: over 0, sums saturate or activations are rounded.
    """

    name: str
    default_mode: float


class Meter:
    """Sums for one tensor; holds no batch.

    Example:
        >>> meter = Meter()
        >>> meter.update(np.array([[10.0, 0.0]]), np.array([[10.0, 1.0]]))
        >>> found = meter.result()
        >>> round(found.sqnr, 6), round(found.cosine, 6), found.largest, found.agreement
        (20.0, 0.995037, 1.0, 1.0)
    """

    def __init__(self) -> None:
        self._signal = self._noise = self._largest = 0.0
        self._energy = self._product = self._shift = 0.0
        self._count = 0
        self._agreed = self._rows = 0
        self._scores = True

    def update(self, reference: np.ndarray, got: np.ndarray) -> None:
        """Take in one batch of both; of one shape."""
        wanted, got = reference.astype(np.float64), got.astype(np.float64)
        apart = difference(wanted, got).ravel()
        seen = wanted.ravel(), got.ravel()
        if not np.isfinite(apart).all() or not np.isfinite(seen[0]).all():
            both = np.isfinite(seen[0]) & np.isfinite(seen[1])
            seen = seen[0][both], seen[1][both]
        self._signal += float(seen[0] @ seen[0])
        self._energy += float(seen[1] @ seen[1])
        self._product += float(seen[0] @ seen[1])
        with np.errstate(invalid="ignore"):  # of infinities of both signs
            self._noise += float(apart @ apart)
            self._shift += float(apart.sum())
        self._count += apart.size
        self._largest = larger(self._largest, apart)
        self._scores &= reference.ndim == 2 and reference.shape[1] > 1
        if self._scores:
            self._agreed += int((wanted.argmax(1) == got.argmax(1)).sum())
            self._rows += len(wanted)

    def result(self, *, shifted: bool = False) -> Closeness:
        """The figures over all batches so far.

        ``shifted``: one is the other plus a constant, which is left out of the SQNR alone.
        """
        noise = self._noise
        if shifted and self._count:
            noise = max(0.0, noise - self._shift**2 / self._count)
        return Closeness(
            sqnr=_sqnr(self._signal, noise),
            cosine=_cosine(self._product, self._signal, self._energy),
            largest=self._largest,
            agreement=self._agreed / self._rows if self._scores and self._rows else None,
        )


class ParityMeter:
    """Sums for one output in two modes; holds no batch.

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
        self._meter = Meter()
        self._peak = self._moved = 0.0

    def update(self, reference: np.ndarray, exact: np.ndarray, default: np.ndarray) -> None:
        """Take in one batch: the reference, and the file in both modes; all of one shape."""
        self._meter.update(reference, exact)
        got = exact.astype(np.float64)
        self._peak = larger(self._peak, got[np.isfinite(got)])
        self._moved = larger(self._moved, difference(got, default.astype(np.float64)))

    @property
    def default_mode(self) -> float:
        """How far the default mode is from the exact one, as a share of the largest value."""
        return self._moved / self._peak if self._peak else self._moved

    def result(self) -> OutputParity:
        """The figures over all batches so far."""
        found = self._meter.result()
        return OutputParity(
            name=self.name, sqnr=found.sqnr, cosine=found.cosine, largest=found.largest,
            agreement=found.agreement, default_mode=self.default_mode,
        )  # fmt: skip


def difference(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """``got - wanted``; the infinities of a mask are equal to themselves."""
    with np.errstate(invalid="ignore"):
        apart = got - wanted
        return apart if np.isfinite(apart).all() else np.where(wanted == got, 0.0, apart)


def larger(largest: float, values: np.ndarray) -> float:
    """The larger of what was largest and the largest magnitude here; NaN stays."""
    return float(np.maximum(largest, np.abs(values).max(initial=0.0)))


def _sqnr(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isinf(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def _cosine(product: float, signal: float, energy: float) -> float:
    size = math.sqrt(signal) * math.sqrt(energy)
    return min(1.0, max(-1.0, product / size)) if size else math.nan
