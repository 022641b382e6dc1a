"""Data to judge by, apart from those that calibrate: how they are split, and that none is both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quantkit import batches
from quantkit.data import Batch, Data, DataSpec
from quantkit.errors import DataError

#: At most so many rows calibrate; beyond that ranges hardly move, and the rest judges better.
MOST_CALIBRATING = 512


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The batches of a data file behind those that calibrate, in the same order each time.

    Attributes:
        data: all of the file.
        first: the number of the first batch to judge by.
        batch_size: rows a batch.
    """

    data: Data
    first: int
    batch_size: int

    def __iter__(self) -> Iterator[Batch]:
        found = self.data.numbered(lambda index: index >= self.first, self.batch_size)
        return (batch for _, batch in found)


def split(spec: DataSpec) -> tuple[DataSpec, HeldOut]:
    """Rows to calibrate with, as a data file of their own, and the others to judge by.

    Rows are shuffled with the file's seed (0 where it has none). The first half, at most 512,
    calibrates, in whole batches; the rest is held out.

    Raises:
        DataError: there are fewer than 2 rows, or a stream does not tell how many.
    """
    spec = spec.model_copy(update={"seed": spec.seed or 0})
    data = spec.open()
    if data.rows is None:
        raise DataError(
            f"{spec.source}: is a stream, which does not say how many rows it has to split; give "
            "held-out data of their own"
        )
    if data.rows < 2:
        raise DataError(
            f"{spec.source}: has {data.rows} rows, too few to split; give held-out data of their "
            "own, or more rows"
        )
    half = min(data.rows // 2, MOST_CALIBRATING)
    batch_size = min(spec.batch_size, half)
    first = half // batch_size
    held_out = HeldOut(data=data, first=first, batch_size=batch_size)
    return spec.model_copy(update={"limit": first * batch_size}), held_out


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What some data are, row by row.

    Attributes:
        rows: a hash of each row's inputs, in order.
        fingerprint: of all, labels among them.
    """

    rows: tuple[bytes, ...]
    fingerprint: str


def seen(data: Iterable[Any], *, labelled: bool) -> Seen:
    """Read data once, and hash every row.

    Args:
        data: batches of inputs, pairs of inputs and labels, or of `Batch`.
        labelled: whether batches are pairs, where they are no `Batch`.

    Raises:
        DataError: there is no batch.
    """
    rows: list[bytes] = []
    whole = hashlib.sha256()
    for batch in data:
        inputs, labels = parted(batch, labelled=labelled)
        tensors = [x.detach().cpu().contiguous() for x in _tensors(inputs)]
        count = max((x.shape[0] for x in tensors if x.dim()), default=1)
        for row in range(count):
            own = hashlib.sha256()
            for x in tensors:
                own.update(_bytes(x[row] if x.dim() and x.shape[0] == count else x))
            rows.append(own.digest())
            whole.update(rows[-1])
        for label in _tensors(labels):
            whole.update(_bytes(label.detach().cpu().contiguous()))
    if not rows:
        raise DataError("the data have no batch; give one at least")
    return Seen(rows=tuple(rows), fingerprint=whole.hexdigest())


def require_apart(calibration: Seen, held_out: Seen) -> None:
    """Refuse data that judge what they have calibrated.

    Raises:
        DataError: a row of the one is a row of the other.
    """
    known = set(calibration.rows)
    shared = [number for number, row in enumerate(held_out.rows) if row in known]
    if shared:
        raise DataError(
            f"{len(shared)} of the {len(held_out.rows)} held-out samples calibrate as well (the "
            f"first is number {shared[0]}), and would judge themselves; take them out of one"
        )


def parted(batch: object, *, labelled: bool) -> tuple[Any, Any]:
    """Inputs and labels (``None``: none) of one batch.

    Raises:
        DataError: there are no labels.
    """
    if isinstance(batch, Batch):
        if labelled and batch.labels is None:
            raise DataError("the data have no labels; set label in the data file")
        return batch.inputs, batch.labels if labelled else None
    if not labelled:
        return batch, None
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DataError(
            f"a held-out batch is a {type(batch).__name__}, not a pair of inputs and labels; give "
            "pairs, or metric='agreement', which needs no labels"
        )
    return batch[0], batch[1]


def _tensors(values: Any) -> list[Tensor]:
    if values is None:
        return []
    ((args, kwargs),) = batches.as_batches([values])
    return [*args, *kwargs.values()]


def _bytes(x: Tensor) -> bytes:
    about = f"{x.dtype} {tuple(x.shape)}".encode()
    return about + x.reshape(-1).view(torch.uint8).numpy().tobytes()
