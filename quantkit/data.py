"""Calibration and evaluation data, declared in YAML or taken from any iterable of batches.

A `DataSpec` says where rows come from and how each model input is read from a column; `Data`
streams batches, decoding a row when its batch is due.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from quantkit.errors import DataError
from quantkit.transform import Transform, numeric, one_line

_Count = Annotated[int, Field(strict=True, gt=0)]


class DataSpec(BaseModel, frozen=True, extra="forbid"):
    """Where rows come from, and how model inputs and labels are read from them.

    Attributes:
        source: a ``.parquet``, ``.npz`` or ``.npy`` file (its one column is named as the file), a
            folder of images (columns ``image`` and, from class subfolders, ``label``) or of
            Parquet, or the name of a dataset on the Hugging Face hub, which is streamed.
        subset: the hub dataset's configuration, where it has several.
        split: such as ``validation``; needed where the source has more than one.
        inputs: model input name to how it is read; models are called with these names.
        label: the column of labels.
        limit: read at most so many rows.
        seed: shuffle with this seed (a stream: within a buffer of 1,000 rows); ``None`` keeps the
            order of the source. A folder is sorted by class: with ``limit``, shuffle it.
        batch_size: rows a batch.

    Example:
        >>> DataSpec(source="mnist", inputs={"x": {"column": "image", "mode": "L"}}).columns
        ['image']
    """

    source: Annotated[str, Field(min_length=1)]
    subset: str | None = None
    split: str | None = None
    inputs: Annotated[dict[str, Transform], Field(min_length=1)]
    label: str | None = None
    limit: _Count | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] | None = None
    batch_size: _Count = 32

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        named = [transform.column or name for name, transform in self.inputs.items()]
        return list(dict.fromkeys(named + ([] if self.label is None else [self.label])))

    def open(self) -> Data:
        """The data itself; ``DataError`` where the source or a column is not there."""
        arrays = Path(self.source).suffix in {".npz", ".npy"}
        return Data(self, _open_arrays(self) if arrays else _open_dataset(self))


def load_data_spec(path: str | Path) -> DataSpec:
    """Read a `DataSpec` from YAML; a ``source`` that lies beside the file is found there.

    Raises:
        DataError: names the file, the key, its value and what is allowed.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = DataSpec.model_validate(content)
    except ValidationError as error:
        told = "; ".join(_told(item) for item in error.errors())
        raise DataError(f"{path}: {told}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: {one_line(error)}; give a data file in YAML") from error
    beside = path.parent / spec.source
    return spec.model_copy(update={"source": str(beside)}) if beside.exists() else spec


def _told(error: Any) -> str:
    """One of pydantic's errors as ``key: got value; what is allowed``."""
    place, kind = error["loc"], error["type"]
    model: type[BaseModel] = Transform if len(place) > 2 and place[0] == "inputs" else DataSpec
    key = ".".join(map(str, place)) or "the file"
    if kind == "extra_forbidden":
        return f"{key}: no such key; allowed: {', '.join(model.model_fields)}"
    if kind == "missing":
        return f"{key}: missing; add it (a data file has {', '.join(model.model_fields)})"
    if kind == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: got {error['input']!r}; {error['msg']}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Model inputs by name in the order declared, and labels; the first dimension is the batch.

    Labels are int64 (classes), float32 (scores), or ``None`` where the data has none.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None


@dataclass(frozen=True)
class _Table:
    """Rows with their number in the source, undecoded, as often as asked for.

    A stream has no length, and no other order: its ``shuffled`` is ``None``.
    """

    rows: Callable[[], Iterator[tuple[int, Mapping[str, Any]]]]
    length: int | None
    classes: tuple[str, ...] | None = None
    shuffled: Callable[[], Iterator[tuple[int, Mapping[str, Any]]]] | None = None


class Data:
    """An opened `DataSpec`: iterate it for batches, as often as you like, in the same order.

    `shuffled` gives data that training reads in another order each time.

    Attributes:
        spec: what it was opened from.
        rows: how many there are, ``None`` where a stream does not tell.
        classes: the names of the labels, ``None`` where the source does not tell.
    """

    def __init__(self, spec: DataSpec, table: _Table) -> None:
        self.spec = spec
        self.rows = table.length
        self.classes = table.classes
        self._table = table

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    @property
    def batch_count(self) -> int | None:
        """How many batches there are; ``None`` where a stream does not tell."""
        return None if self.rows is None else math.ceil(self.rows / self.spec.batch_size)

    def shuffled(self) -> Data:
        """The same rows in a new random order each time they are read, for training.

        The order is of torch's global generator: ``torch.manual_seed`` repeats it.

        Raises:
            DataError: a stream from the hub has no length, and no row can be picked out of it.
        """
        if self._table.shuffled is None:
            raise DataError(
                f"{self.spec.source}: is a stream from the hub, which does not say how many rows "
                "it has, and training shuffles them all; save it to .parquet, and give that as "
                "source"
            )
        return Data(self.spec, replace(self._table, rows=self._table.shuffled))

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Batches of ``batch_size`` rows (by default the spec's); the last may be smaller.

        Raises:
            DataError: names the row that cannot be read or does not fit its batch.
        """
        return (batch for _, batch in self.numbered(lambda _: True, batch_size))

    def numbered(
        self, wanted: Callable[[int], bool], batch_size: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """The wanted batches with their numbers; the rows of all others are not decoded."""
        rows = self._table.rows()
        for index in count():
            batch = list(islice(rows, batch_size or self.spec.batch_size))
            if not batch:
                return
            if not wanted(index):
                continue
            inputs = {
                name: self._stack(batch, transform.column or name, transform.read)
                for name, transform in self.spec.inputs.items()
            }
            label = self.spec.label
            labels = None if label is None else self._stack(batch, label, _label)
            yield index, Batch(inputs=inputs, labels=labels)

    def _stack(
        self,
        batch: list[tuple[int, Mapping[str, Any]]],
        column: str,
        read: Callable[[object], Tensor],
    ) -> Tensor:
        tensors: list[Tensor] = []
        for number, row in batch:
            where = f"{self.spec.source}: row {number}, column {column!r}"
            try:
                tensors.append(read(row[column]))
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            got, first = tuple(tensors[-1].shape), tuple(tensors[0].shape)
            if got != first:
                raise DataError(
                    f"{where}: shape {got} does not stack with {first}, which began the batch; "
                    "set resize and crop (images), pad_to (numbers) or batch_size: 1"
                )
        return torch.stack(tensors)


def _label(value: object) -> Tensor:
    array = numeric(value)
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _local(
    order: Sequence[int],
    read: Callable[[int], Mapping[str, Any]],
    classes: tuple[str, ...] | None = None,
) -> _Table:
    """A table whose rows can be had by number, in any order."""

    def rows(numbers: Iterable[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        return ((number, read(number)) for number in numbers)

    def shuffled() -> Iterator[tuple[int, Mapping[str, Any]]]:
        return rows(order[place] for place in torch.randperm(len(order)).tolist())

    return _Table(lambda: rows(order), len(order), classes, shuffled)


def _order(spec: DataSpec, length: int) -> Sequence[int]:
    """The row numbers to read, in order."""
    if spec.seed is None:
        return range(length)[: spec.limit]
    order: list[int] = np.random.default_rng(spec.seed).permutation(length)[: spec.limit].tolist()
    return order


def _open_arrays(spec: DataSpec) -> _Table:
    path = Path(spec.source)
    if spec.split or spec.subset:
        raise DataError(f"{path}: an array file has no split and no subset; remove the key")
    try:
        arrays = _map(path, spec)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; correct source, or write the file first") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {one_line(error)}; save numbers with numpy.savez") from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{path}: columns differ in rows ({lengths}); save as many of each")
    order = _order(spec, next(iter(lengths.values())))
    return _local(order, lambda i: {name: array[i] for name, array in arrays.items()})


def _map(path: Path, spec: DataSpec) -> dict[str, np.ndarray]:
    """The columns of an array file, memory-mapped."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        _require(spec, [path.stem])
        return {path.stem: array}
    arrays: dict[str, np.ndarray] = {}
    # A zip cannot be mapped in place: it is unpacked to disk, and the mapping keeps the unpacked
    # file alive after its folder is gone.
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        _require(spec, [member.removesuffix(".npy") for member in archive.namelist()])
        for name in spec.columns:
            file = archive.extract(f"{name}.npy", folder)
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
    return arrays


def _open_dataset(spec: DataSpec) -> _Table:
    import datasets

    table, local = _load_table(spec)
    _require(spec, table.column_names or next(iter(table), {}))
    features = table.features or {}
    classes = tuple(getattr(features.get(spec.label), "names", None) or ()) or None
    for column in spec.columns:
        if isinstance(features.get(column), datasets.Image):
            # Left encoded here, so that nothing is decoded before its batch is due.
            table = table.cast_column(column, datasets.Image(decode=False))
    table = table.select_columns(spec.columns)
    if local:
        return _local(_order(spec, len(table)), lambda i: table[i], classes)
    if spec.seed is not None:
        table = table.shuffle(seed=spec.seed)
    if spec.limit is not None:
        table = table.take(spec.limit)
    return _Table(lambda: _stream(spec.source, table), None, classes)


def _stream(source: str, table: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
    """Numbered rows; a connection may fail at any of them."""
    try:
        yield from enumerate(table)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: stream broke off, {one_line(error)}; try again") from error


def _load_table(spec: DataSpec) -> tuple[Any, bool]:
    """The source as `datasets` opens it, and whether it is local: memory-mapped, not a stream."""
    import datasets

    path = Path(spec.source)
    local = path.exists()
    if not local and (path.suffix == ".parquet" or spec.source[0] in "./~"):
        raise DataError(f"{path}: no such file or folder; correct source")
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(f"{path}: neither .parquet, .npz nor .npy; convert it to one of them")
    where = ("parquet", spec.source) if path.is_file() else (spec.source, None)
    try:
        table = datasets.load_dataset(
            where[0], spec.subset, data_files=where[1], split=spec.split, streaming=not local
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{spec.source}: {one_line(error)}; correct source or split") from error
    if isinstance(table, dict):
        if len(table) != 1:
            raise DataError(f"{spec.source}: set split to one of {', '.join(table)}")
        table = next(iter(table.values()))
    return table, local


def _require(spec: DataSpec, columns: Iterable[str]) -> None:
    have = list(columns)
    for column in spec.columns:
        if column not in have:
            raise DataError(f"{spec.source}: no column {column!r}; there are: {', '.join(have)}")
