"""How good outputs are: beside the reference's, and beside labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import DataError
from quantkit.onnx.parity import ParityMeter


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The outputs of one row over the data.

    Attributes:
        samples: how many.
        sqnr: signal to noise in dB beside the reference, of the output where it is lowest;
            infinite where all are equal; ``None`` for the reference, and where there is none.
        agreement: the share of predictions that are the reference's, likewise.
        accuracy: the share of labels that the largest logit names; ``None`` without labels.
    """

    samples: int
    sqnr: float | None = None
    agreement: float | None = None
    accuracy: float | None = None


def top1(outputs: Sequence[np.ndarray], labels: np.ndarray) -> tuple[int, int]:
    """How many labels the largest logit names, and of how many.

    Args:
        outputs: of one batch; one of them is of floats, ``(N, classes, …)``.
        labels: numbers of classes, ``(N, …)``.

    Raises:
        DataError: the two do not fit.

    Example:
        >>> top1([np.array([[0.0, 1.0], [1.0, 0.0]])], np.array([1, 1]))
        (1, 2)
    """
    floats = [x for x in outputs if x.dtype.kind == "f"]
    if len(floats) != 1 or floats[0].ndim < 2:
        shapes = ", ".join(str(x.shape) for x in floats) or "none of floats"
        raise DataError(
            f"labels need one output of logits (N, classes, …), the model's are {shapes}; leave "
            "the labels out"
        )
    (logits,) = floats
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise DataError(
            f"labels have shape {labels.shape}, logits {logits.shape}; give one label for each row "
            "of logits"
        )
    return int((logits.argmax(axis=1) == labels).sum()), int(labels.size)


class Judge:
    """Takes in the outputs of one row batch by batch; holds none of them."""

    def __init__(self) -> None:
        self._meters: list[ParityMeter] | None = None
        self._samples = self._right = self._labels = 0

    def update(
        self,
        outputs: Sequence[np.ndarray],
        rows: int,
        reference: Sequence[np.ndarray] | None,
        labels: np.ndarray | None,
    ) -> None:
        """One batch, of which the first ``rows`` samples count.

        Raises:
            DataError: the outputs do not fit the reference's, or the labels.
        """
        self._samples += rows
        own = [_first(x, rows) for x in outputs]
        if reference is not None:
            self._compare(own, [_first(x, rows) for x in reference])
        if labels is not None:
            right, count = top1(own, labels)
            self._right, self._labels = self._right + right, self._labels + count

    def _compare(self, own: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> None:
        shapes, others = ([x.shape for x in outputs] for outputs in (own, reference))
        if shapes != others:
            raise DataError(
                f"its outputs have the shapes {shapes}, the reference's {others}; compare models "
                "that put out the same"
            )
        if self._meters is None:
            self._meters = [ParityMeter(str(i)) for i in range(len(own))]
        for meter, got, wanted in zip(self._meters, own, reference, strict=True):
            meter.update(wanted, got, got)

    def result(self) -> Quality:
        """The figures over all batches so far."""
        found = [meter.result() for meter in self._meters or ()]
        agreements = [x.agreement for x in found if x.agreement is not None]
        # NaN is the worst there is.
        sqnr = min((x.sqnr for x in found), key=lambda s: (s == s, s), default=None)
        return Quality(
            samples=self._samples,
            sqnr=sqnr,
            agreement=min(agreements, default=None),
            accuracy=self._right / self._labels if self._labels else None,
        )


def _first(output: np.ndarray, rows: int) -> np.ndarray:
    """The rows that count; an output of no rows is left whole."""
    return output[:rows] if output.ndim else output
