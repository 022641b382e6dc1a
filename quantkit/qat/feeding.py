"""Training data as calls of a model with their targets, checked as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch import Tensor

from quantkit import batches
from quantkit.data import Batch, DataSpec
from quantkit.errors import DataError
from quantkit.model import QuantizedModel

Call = tuple[tuple[Any, ...], dict[str, Any], Any]


class Feed:
    """What a model trains on: inputs where the model has them and where it is, and targets.

    Attributes:
        data: the batches, to be read once an epoch.

    Args:
        model: the quantized model.
        train: any iterable of batches that can be read again, or a `DataSpec`.
        labelled: whether batches are pairs of inputs and targets.

    Raises:
        DataError: they can be read but once, or do not say how many there are.
    """

    def __init__(self, model: QuantizedModel, train: Iterable[Any], *, labelled: bool) -> None:
        if iter(train) is train:
            raise DataError(
                "train can be read only once (it is an iterator), and every epoch reads it; pass a "
                "list, a DataLoader or a DataSpec"
            )
        self.data: Iterable[Any] = train.open() if isinstance(train, DataSpec) else train
        self._model, self._labelled = model, labelled
        self._length = _length(self.data)

    def __len__(self) -> int:
        """Batches an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Call]:
        """Positional inputs, inputs by name, and the target, ``None`` where there is none.

        Raises:
            DataError: a batch that the model does not take, or without a target.
        """
        captured = self._model.capture
        device = next(self._model.parameters()).device
        names = captured.input_names[: len(captured.args)]
        for index, batch in enumerate(self.data):
            inputs, target = self._parted(batch, index)
            ((args, kwargs),) = batches.as_batches([inputs], first=index)
            args, kwargs = batches.bind_inputs(args, kwargs, names)
            batches.check_batch(
                args, kwargs, captured.args, captured.kwargs, index,
                dynamic_dims=captured.dynamic_dims,
            )  # fmt: skip
            moved = tuple(x.to(device) for x in args), {k: x.to(device) for k, x in kwargs.items()}
            yield *moved, target.to(device) if isinstance(target, Tensor) else target

    def _parted(self, batch: object, index: int) -> tuple[Any, Any]:
        if self._labelled:
            instead = "leave loss out to learn from the float model alone"
            return parted(batch, index, reader="loss", instead=instead)
        return (batch.inputs if isinstance(batch, Batch) else batch), None


def _length(data: Iterable[Any]) -> int:
    count = getattr(data, "batch_count", None)
    if count is None:
        if not isinstance(data, Sized):
            raise DataError(
                "train does not say how many batches it has, which the learning rate needs; pass a "
                "list, a DataLoader of a dataset that has a length, or a DataSpec of a local file"
            )
        count = len(data)
    if count == 0:
        raise DataError("train has no batch; give one at least")
    return int(count)


def parted(batch: object, index: int, *, reader: str, instead: str) -> tuple[Any, Any]:
    """A batch as inputs and targets.

    Args:
        batch: a pair, or a `Batch` that has labels.
        index: its number, for messages.
        reader: what needs the targets.
        instead: the way out for who has none.

    Raises:
        DataError: it has no targets.
    """
    if isinstance(batch, Batch):
        if batch.labels is None:
            raise DataError(
                f"batch {index} has no labels, which {reader} needs; set label in the data, or "
                f"{instead}"
            )
        return batch.inputs, batch.labels
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DataError(
            f"batch {index} is a {type(batch).__name__}, not a pair of inputs and targets, which "
            f"{reader} needs; give pairs, or {instead}"
        )
    return batch[0], batch[1]
