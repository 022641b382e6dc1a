"""The outputs of each runtime on the same data, judged beside the reference and the labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.benching import arrays
from quantkit.benching.inputs import Input, chunks
from quantkit.benching.planning import Cell
from quantkit.benching.process import RowError, Worker
from quantkit.benching.quality import Judge, Quality
from quantkit.benching.report import LeftOut
from quantkit.data import Batch, Data, DataSpec
from quantkit.errors import DataError
from quantkit.qat.feeding import parted

#: A row is known by its runtime, device and precision.
Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One batch of the data, as a file."""

    inputs: Path
    rows: int
    labels: np.ndarray | None


class Evaluation:
    """Data in files, and what came of them.

    Attributes:
        found: what each row's outputs are worth.
        left_out: rows whose outputs could not be judged.

    Args:
        data: batches, each with its labels or ``None``.
        inputs: what the models take.
        batch: samples a run.
        samples: at most so many.
        folder: for the files; no other's.
        timeout_s: how long one runtime may take for all.

    Raises:
        DataError: the data do not fit the model, or labels are no numbers of classes.
    """

    def __init__(
        self,
        data: Iterable[tuple[object, Tensor | None]],
        inputs: Sequence[Input],
        *,
        batch: int,
        samples: int,
        folder: Path,
        timeout_s: float,
    ) -> None:
        self.found: dict[Key, Quality] = {}
        self.left_out: list[LeftOut] = []
        self._folder, self._timeout_s = folder, timeout_s
        self._reference: Path | None = None
        self._parts: list[_Part] = []
        for number, chunk in enumerate(chunks(data, inputs, batch, samples)):
            path = folder / f"{number}.npz"
            arrays.write(path, chunk.inputs)
            self._parts.append(_Part(inputs=path, rows=chunk.rows, labels=chunk.labels))

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(part.rows for part in self._parts)

    @property
    def labelled(self) -> bool:
        """Whether accuracy is measured."""
        return any(part.labels is not None for part in self._parts)

    def __call__(self, cell: Cell, worker: Worker) -> None:
        """Have a worker run the data, and judge what it puts out."""
        key = (cell.target, cell.device, cell.precision)
        folder = self._folder / "-".join(key).replace("/", "_")
        folder.mkdir()
        try:
            files = [str(part.inputs) for part in self._parts]
            worker.ask("evaluate", "evaluated", self._timeout_s, inputs=files, folder=str(folder))
            self.found[key] = self._judged(folder)
        except (RowError, DataError) as error:
            reason = f"its outputs are not judged: {error}"
            self.left_out.append(
                LeftOut(
                    target=cell.target, device=cell.device, precision=cell.precision, reason=reason
                )
            )
            return
        if self._reference is None and cell.reference:
            self._reference = folder

    def _judged(self, folder: Path) -> Quality:
        judge = Judge()
        for part in self._parts:
            outputs = list(arrays.read(folder / part.inputs.name).values())
            reference = None
            if self._reference is not None:
                reference = list(arrays.read(self._reference / part.inputs.name).values())
            judge.update(outputs, part.rows, reference, part.labels)
        return judge.result()


def pairs_of(data: Iterable[Any], *, labelled: bool) -> Iterator[tuple[object, Tensor | None]]:
    """Each batch as inputs and labels.

    Args:
        data: batches; a `DataSpec` says itself whether there are labels.
        labelled: whether batches of another kind are pairs of inputs and labels.

    Raises:
        DataError: a batch has no labels, or they are no numbers of classes.
    """
    opened = data.open() if isinstance(data, DataSpec) else data
    if isinstance(opened, Data):
        labelled = labelled and opened.spec.label is not None
    for index, batch in enumerate(opened):
        if not labelled:
            yield (batch.inputs if isinstance(batch, Batch) else batch), None
            continue
        instead = "give data of inputs alone as data, which serve SQNR"
        inputs, labels = parted(batch, index, reader="accuracy", instead=instead)
        yield inputs, _classes(labels, index)


def _classes(labels: object, index: int) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise DataError(
            f"batch {index}: labels are {kind}, not whole numbers of classes; convert them, or "
            "leave them out"
        )
    return labels.to(torch.int64)
