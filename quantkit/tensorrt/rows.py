"""Calibration data as a network's inputs want it: by name, of one shape, of the right type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.batches import Call, as_batches, bind_inputs, regroup
from quantkit.data import Data, DataSpec
from quantkit.errors import DataError

#: One batch: the value of each input.
Row = dict[str, Tensor]


@dataclass(frozen=True)
class NetworkInput:
    """One input of a network.

    Attributes:
        name: as the ONNX file has it.
        shape: with a negative number where any size will do.
        dtype: the calibrator hands over float32, whatever float the network has, or integers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """Such as ``x: float32 (any, 3, 32, 32)``."""
        sizes = ", ".join("any" if size < 0 else str(size) for size in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')} ({sizes})"

    def takes(self, shape: Sequence[int], *, any_batch: bool) -> bool:
        """Whether a batch of this shape fits, where ``any_batch`` with any number of samples."""
        if len(shape) != len(self.shape):
            return False
        pairs = list(zip(self.shape, shape, strict=True))
        return all(want in (-1, got) for want, got in pairs[1 if any_batch else 0 :])


def rows(calibration: object, inputs: Sequence[NetworkInput]) -> Iterator[Row]:
    """Each batch by the network's names, checked and converted, one at a time.

    Nothing is opened before the first is asked for: a cache may do instead.

    Args:
        calibration: what ``quantkit.batches.as_batches`` takes.
        inputs: of the network, in order.

    Raises:
        DataError: no data, or a batch whose inputs the network does not have, or not as they are.
    """
    names = [one.name for one in inputs]
    for index, (args, kwargs) in enumerate(as_batches(calibration)):
        positional, rest = bind_inputs(args, kwargs, names)
        given = dict(zip(names, positional, strict=False)) | rest
        if len(positional) > len(names) or given.keys() != set(names):
            got = len(args) or ", ".join(kwargs)
            raise DataError(
                f"batch {index} has the inputs [{got}], the network takes {len(names)}: "
                f"{', '.join(map(str, inputs))}; give each batch all of them, by name or in this "
                "order, without labels"
            )
        yield {one.name: _converted(given[one.name], one, index) for one in inputs}


def batch_inputs(inputs: Iterable[NetworkInput]) -> list[NetworkInput]:
    """The inputs whose first dimension counts samples: of any size, or as large as the first's."""
    listed = [one for one in inputs if one.shape]
    dynamic = [one for one in listed if one.shape[0] < 0]
    return dynamic or [one for one in listed if one.shape[0] == listed[0].shape[0]]


def whole_batches(
    batches: Iterable[Row], inputs: Sequence[NetworkInput], shapes: Mapping[str, Sequence[int]]
) -> Iterator[Row]:
    """The same samples in batches of exactly these shapes; only the last may be smaller.

    Raises:
        DataError: a batch has another shape than the first.
    """
    counting = {one.name for one in batch_inputs(inputs)}
    size = next((shapes[name][0] for name in sorted(counting)), 1)
    calls: Iterator[Call] = (((), dict(row)) for row in batches)
    for _, row in regroup(calls, size, counting):
        for name, value in row.items():
            want, got = tuple(shapes[name]), tuple(value.shape)
            short = name in counting and got[1:] == want[1:] and got[0] < want[0]
            if got != want and not short:
                raise DataError(
                    f"input {name!r} has a batch of shape {got}, and TensorRT calibrates with one "
                    f"shape, here {want}: crop or pad the data to it (`crop`, `pad_to`)"
                )
        yield dict(row)


def describe(calibration: object) -> str:
    """What the data is, in a line."""
    if isinstance(calibration, Data):
        calibration = calibration.spec
    if isinstance(calibration, DataSpec):
        return calibration.model_dump_json(exclude_defaults=True)
    count = f" of {len(calibration)}" if hasattr(calibration, "__len__") else ""
    return f"{type(calibration).__name__}{count}"


def _converted(value: Tensor, want: NetworkInput, index: int) -> Tensor:
    where = f"batch {index}, input {want.name!r}"
    # Whether an input counts samples is for regroup; here any number of them is right.
    if not want.takes(tuple(value.shape), any_batch=bool(want.shape)):
        raise DataError(
            f"{where} has shape {tuple(value.shape)}, the network takes {want}; convert the data"
        )
    if value.is_floating_point() != want.dtype.is_floating_point:
        raise DataError(
            f"{where} is {str(value.dtype).removeprefix('torch.')}, the network takes {want}; "
            "set its dtype in the data file, or convert the data"
        )
    narrow = value.detach().to("cpu", want.dtype)
    if not want.dtype.is_floating_point and not torch.equal(narrow.to(value.dtype), value.cpu()):
        raise DataError(f"{where} has values that {want} does not hold; check the data")
    return narrow
