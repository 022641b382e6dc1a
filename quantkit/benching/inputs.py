"""What a model takes, and batches of it: out of data, of examples, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantkit import batches as batches_of
from quantkit.errors import DataError, ModelFileError

#: No input of a model can have this name.
_LABELS: Final = "\0labels"

#: The inputs of one run by name, in the model's order.
Arrays: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a model.

    Attributes:
        name: what the model calls it.
        shape: sizes; ``None`` where any will do.
        dtype: of NumPy.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    @property
    def batched(self) -> bool:
        """Whether the first dimension may vary: it counts samples."""
        return bool(self.shape) and self.shape[0] is None


def inputs_of_program(program: torch.export.ExportedProgram) -> tuple[Input, ...]:
    """What a program takes, in its order.

    Raises:
        DataError: an input is no tensor, or lies in a list or dictionary.
    """
    names = program.graph_signature.user_inputs
    args, kwargs = program.example_inputs or ((), {})
    leaves = pytree.tree_leaves((args, kwargs))
    plain = len(names) == len(args) + len(kwargs) == len(leaves)
    if not plain or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise DataError(
            "the model takes inputs that are no tensors, or lie in lists or dictionaries; wrap it "
            "in a module that takes tensors"
        )
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    found: list[Input] = []
    for own, key in zip(names, [*names[: len(args)], *kwargs], strict=True):
        value = values[str(own)]
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        empty = torch.empty(0, dtype=value.dtype)
        found.append(Input(name=str(key), shape=shape, dtype=_array(empty).dtype))
    return tuple(found)


def inputs_of_onnx(path: Path) -> tuple[Input, ...]:
    """What an ONNX file takes, in its order.

    Raises:
        ModelFileError: there is no such file, it is no ONNX file, or an input is no tensor.
    """
    import onnx

    from quantkit.onnx.facts import read_proto

    graph = read_proto(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    found: list[Input] = []
    for given in graph.input:
        if given.name in constants:
            continue
        kind = given.type.tensor_type
        if not kind.HasField("shape"):
            raise ModelFileError(
                f"{path}: input {given.name} has no known rank; export it with its shape"
            )
        dims = kind.shape.dim
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        found.append(Input(name=given.name, shape=shape, dtype=dtype))
    if not found:
        raise ModelFileError(f"{path}: has no input, or is no ONNX file; export the model again")
    return tuple(found)


def fixed_batch(inputs: Sequence[Input]) -> int | None:
    """The one batch size that a model takes, where it takes no other.

    Example:
        >>> fixed_batch([Input(name="x", shape=(4, 3), dtype=np.dtype("float32"))])
        4
    """
    if any(given.batched for given in inputs) or not inputs or not inputs[0].shape:
        return None
    return inputs[0].shape[0]


def made_up(inputs: Sequence[Input]) -> Arrays:
    """Inputs where there are no data: normal numbers, and zeros where they are whole.

    Whole numbers are mostly indices, and 0 is one in every table.

    Raises:
        DataError: a size other than that of the batch is not known.
    """
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for given in inputs:
        free = [d for d, size in enumerate(given.shape) if size is None and d > 0]
        if free:
            raise DataError(
                f"input {given.name} may have any size in dimension {free[0]}; give --data, or "
                "--input-shape"
            )
        sizes = tuple(1 if size is None else size for size in given.shape)
        floats = given.dtype.kind == "f"
        values = generator.standard_normal(sizes) if floats else np.zeros(sizes)
        arrays[given.name] = values.astype(given.dtype)
    return arrays


def resized(arrays: Mapping[str, np.ndarray], size: int, batched: AbstractSet[str]) -> Arrays:
    """The same samples, over and over, until there are ``size`` of them.

    Example:
        >>> resized({"x": np.array([1, 2])}, 3, {"x"})["x"].tolist()
        [1, 2, 1]
    """
    return {
        name: np.resize(value, (size, *value.shape[1:])) if name in batched else value
        for name, value in arrays.items()
    }


def first_samples(data: Iterable[Any], inputs: Sequence[Input], count: int) -> Arrays:
    """The first ``count`` samples, or all that there are and have the shape of the first.

    Raises:
        DataError: there is none, or they do not name the model's inputs.
    """
    batched = {given.name for given in inputs if given.batched}
    calls = batches_of.as_batches(data)
    named = (named_call(call, [given.name for given in inputs]) for call in calls)
    first = next(named)
    parts = [first]
    while batched and sum(_rows(part, batched) for part in parts) < count:
        part = next(named, None)
        if part is None:
            break
        if all(part[name].shape[1:] == first[name].shape[1:] for name in batched):
            parts.append(part)
    return {
        name: np.concatenate([part[name] for part in parts])[:count] if name in batched else value
        for name, value in first.items()
    }


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A batch to judge outputs by.

    Attributes:
        inputs: of the size asked for.
        rows: how many of its samples count: the last batch is filled up by repeating.
        labels: of all its samples; ``None`` where the data have none.
    """

    inputs: Arrays
    rows: int
    labels: np.ndarray | None


def chunks(
    data: Iterable[tuple[object, Tensor | None]], inputs: Sequence[Input], size: int, most: int
) -> Iterator[Chunk]:
    """Batches of ``size`` of the first ``most`` samples of batches with their labels.

    A file may take one size alone, so there is no smaller one.

    Raises:
        DataError: batches that the model does not take.
    """
    names = [given.name for given in inputs]
    batched = {given.name for given in inputs if given.batched}
    keys: set[int | str] = {i for i, name in enumerate(names) if name in batched}
    taken = 0
    for args, kwargs in batches_of.regroup(_labelled(data), size, keys | batched | {_LABELS}):
        if taken >= most:
            return
        labels = kwargs.pop(_LABELS, None)
        arrays = named_call((args, kwargs), names)
        rows = min(_rows(arrays, batched), most - taken) if batched else size
        taken += rows
        yield Chunk(
            inputs=resized(arrays, size, batched),
            rows=rows,
            labels=None if labels is None else _array(labels)[:rows],
        )


def _labelled(data: Iterable[tuple[object, Tensor | None]]) -> Iterator[batches_of.Call]:
    """Batches as calls, the labels as one more input: so they are cut as the inputs are."""
    for index, (given, labels) in enumerate(data):
        ((args, kwargs),) = batches_of.as_batches([given], first=index)
        yield args, kwargs if labels is None else {**kwargs, _LABELS: labels}


def named_call(call: batches_of.Call, names: Sequence[str]) -> Arrays:
    """A batch as arrays by the model's names.

    Raises:
        DataError: it has inputs that the model has not, or lacks one.
    """
    args, kwargs = call
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or set(given) != set(names):
        listed = ", ".join([*(f"input {i}" for i in range(len(args))), *kwargs])
        raise DataError(
            f"data has the inputs {listed}; the model takes {', '.join(names)}; name them alike"
        )
    return {name: _array(given[name]) for name in names}


def _rows(arrays: Mapping[str, np.ndarray], batched: AbstractSet[str]) -> int:
    return next(len(arrays[name]) for name in arrays if name in batched)


def _array(value: Tensor) -> np.ndarray:
    if value.dtype is torch.bfloat16:
        raise DataError("an input is bfloat16, which NumPy has not; give the model float32 inputs")
    array: np.ndarray = value.detach().cpu().numpy()
    return array
