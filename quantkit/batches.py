"""Batches of any kind as the arguments of a model call, checked one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantkit.data import Batch, DataSpec
from quantkit.errors import DataError

#: The inputs of one model call, by order and by name.
Call = tuple[tuple[Tensor, ...], dict[str, Tensor]]


def as_batches(calibration: object, first: int = 0) -> Iterator[Call]:
    """Each batch of any data as the ``(args, kwargs)`` of a model call, one at a time.

    Args:
        calibration: a `DataSpec`, a `Data`, a ``DataLoader`` or any iterable of batches; a batch
            is one tensor or array, a tuple or list of them (inputs by order), or a mapping
            (inputs by name).
        first: the number of the first batch, for messages.

    Raises:
        DataError: no batch, an empty one, NaN or infinity, or batches that differ in form.

    Example:
        >>> [args[0].shape for args, _ in as_batches([torch.zeros(2, 3), np.zeros((1, 3))])]
        [torch.Size([2, 3]), torch.Size([1, 3])]
    """
    if isinstance(calibration, DataSpec):
        calibration = calibration.open()
    if isinstance(calibration, Tensor | np.ndarray | Mapping | Batch):
        kind = type(calibration).__name__
        raise DataError(f"calibration is one {kind}, not an iterable of batches; pass [batch]")
    if isinstance(calibration, str | bytes | Path) or not isinstance(calibration, Iterable):
        raise DataError(
            f"calibration {calibration!r} is no iterable of batches; pass a list of tensors, or "
            "load_data_spec of a YAML file"
        )
    return _checked(calibration, first)


def _checked(batches: Iterable[object], start: int) -> Iterator[Call]:
    first: list[int | str] | None = None
    for index, batch in enumerate(batches, start):
        if isinstance(batch, Batch):
            batch = batch.inputs
        named = batch if isinstance(batch, Mapping) else {}
        listed = batch if isinstance(batch, list | tuple) else () if named is batch else (batch,)
        args = tuple(_leaf(value, index, i) for i, value in enumerate(listed))
        kwargs = {str(name): _leaf(value, index, name) for name, value in named.items()}
        form: list[int | str] = [*range(len(args)), *sorted(kwargs)]
        first = form if first is None else first
        if not form:
            raise DataError(f"batch {index} has no input; leave it out")
        if form != first:
            raise DataError(
                f"batch {index} has the inputs {form}, batch {start} {first}; give all alike"
            )
        yield args, kwargs
    if first is None:
        again = " (an iterator can be read only once)" if isinstance(batches, Iterator) else ""
        raise DataError(f"calibration data has no batch{again}; pass a list of at least one")


def _leaf(value: object, index: int, name: object) -> Tensor:
    """One input as a tensor that calibration can use."""
    where = f"batch {index}, input {name!r}"
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        # A copy: torch warns of read-only memory, and takes no foreign byte order.
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        raise DataError(f"{where} is a {type(value).__name__}; pass tensors or numeric arrays")
    if value.numel() == 0:
        raise DataError(f"{where} is empty, shape {tuple(value.shape)}; leave the batch out")
    if (value.is_floating_point() or value.is_complex()) and not value.isfinite().all():
        raise DataError(f"{where} holds NaN or infinity; clean the data or its preprocessing")
    return value


def samples_of(call: Call) -> int:
    """How many samples a call is of: the most rows that an input has.

    Example:
        >>> samples_of(((torch.zeros(4, 3), torch.zeros(1, 3)), {}))
        4
    """
    args, kwargs = call
    return max((x.shape[0] for x in (*args, *kwargs.values()) if x.dim()), default=1)


def regroup(calls: Iterable[Call], size: int, batched: AbstractSet[int | str]) -> Iterator[Call]:
    """The same samples in calls of ``size`` each, whatever calls they come in; the last is smaller.

    Args:
        calls: checked, all of one form.
        size: samples a call.
        batched: the inputs, by position or name, whose first dimension counts samples. The others
            (one row of positions, say) are handed on as they are.

    Calls of other shapes (longer sentences, say) are not joined with those before them.

    Example:
        >>> calls = [((torch.zeros(3, 2),), {}), ((torch.zeros(2, 2),), {})]
        >>> [args[0].shape[0] for args, _ in regroup(calls, 4, {0})]
        [4, 1]
    """
    if not batched:
        yield from calls
        return
    rest: dict[int | str, Tensor] | None = None
    for args, kwargs in calls:
        pairs: list[tuple[int | str, Tensor]] = [*enumerate(args), *kwargs.items()]
        call = dict(pairs)
        if rest is not None:
            if _alike(rest, call, batched):
                call = {k: torch.cat([rest[k], x]) if k in batched else x for k, x in call.items()}
            else:
                yield _call(rest)
        count = next((x.shape[0] for k, x in call.items() if k in batched), 0)
        whole = count - count % size
        for start in range(0, whole, size):
            yield _call(_cut(call, slice(start, start + size), batched))
        rest = _cut(call, slice(whole, count), batched) if whole < count else None
    if rest is not None:
        yield _call(rest)


def _alike(
    first: Mapping[int | str, Tensor],
    second: Mapping[int | str, Tensor],
    batched: AbstractSet[int | str],
) -> bool:
    """Whether two calls differ in nothing but their samples."""
    return all(
        x.shape[1:] == second[k].shape[1:] if k in batched else torch.equal(x, second[k])
        for k, x in first.items()
    )


def _cut(
    call: Mapping[int | str, Tensor], part: slice, batched: AbstractSet[int | str]
) -> dict[int | str, Tensor]:
    return {k: x[part] if k in batched else x for k, x in call.items()}


def _call(inputs: Mapping[int | str, Tensor]) -> Call:
    args = tuple(x for k, x in inputs.items() if isinstance(k, int))
    return args, {k: x for k, x in inputs.items() if isinstance(k, str)}


def bind_inputs(args: Sequence[Tensor], kwargs: Mapping[str, Tensor], names: Sequence[str]) -> Call:
    """Move inputs given by name to the positions where a model was captured with them.

    ``names`` are the model's parameters that its example inputs fill by order.

    Example:
        >>> bind_inputs((), {"x": torch.tensor(1)}, ["x"])
        ((tensor(1),), {})
    """
    placed, rest = list(args), dict(kwargs)
    for name in names[len(args) :]:
        if name not in rest:
            break
        placed.append(rest.pop(name))
    return tuple(placed), rest


def check_batch(
    args: Sequence[Tensor],
    kwargs: Mapping[str, Tensor],
    example_args: Sequence[object],
    example_kwargs: Mapping[str, object],
    batch_index: int,
    *,
    dynamic_dims: AbstractSet[int] = frozenset({0}),
) -> None:
    """Check a batch against the example inputs that the model was captured with.

    ``dynamic_dims`` are the dimensions whose size may differ from the example's; an example that
    is no tensor is not compared. ``batch_index`` is for the message.

    Raises:
        DataError: names the input, what it got and what was expected.
    """
    got: dict[object, Tensor] = dict([*enumerate(args), *kwargs.items()])
    want: dict[object, object] = dict([*enumerate(example_args), *example_kwargs.items()])
    if got.keys() != want.keys():
        raise DataError(
            f"batch {batch_index} has the inputs {list(got)}, the example inputs are {list(want)}; "
            "give batches the form of the example inputs, without labels"
        )
    for name, example in want.items():
        if not isinstance(example, Tensor):
            continue
        expected = _form(example, dynamic_dims)
        if _form(got[name], dynamic_dims) != expected:
            kind = str(example.dtype).removeprefix("torch.")
            other = got[name].dtype != example.dtype
            how = f" (`dtype: {kind}` under the input in a data file)" if other else ""
            raise DataError(
                f"batch {batch_index}, input {name!r}: got {_form(got[name])}, expected "
                f"{expected}; convert the data{how}, or capture the model with example inputs like "
                "it"
            )


def _form(tensor: Tensor, dynamic_dims: AbstractSet[int] = frozenset()) -> str:
    """Type and shape, such as ``float32 (any, 3, 32, 32)``."""
    sizes = ("any" if d in dynamic_dims else str(size) for d, size in enumerate(tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} ({', '.join(sizes)})"
