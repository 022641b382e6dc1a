"""Calibration and evaluation data, declared in YAML or taken from any iterable of batches.

A `DataSpec` says where rows come from and how each model input is read from a column; `Data`
streams batches, decoding a row when its batch is due; `as_batches` and `check_batch` stand
between any data and a model call.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import torch
import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from torch import Tensor

from quantkit.errors import DataError

if TYPE_CHECKING:
    import PIL.Image

#: The inputs of one model call, by order and by name.
Call = tuple[tuple[Tensor, ...], dict[str, Tensor]]

_AsTuple = BeforeValidator(lambda v: tuple(v) if isinstance(v, list | tuple) else (v,))
_Count = Annotated[int, Field(strict=True, gt=0)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Size = Annotated[tuple[_Count, ...], _AsTuple, Field(min_length=1, max_length=2)]
_PerChannel = Annotated[tuple[_Number, ...], _AsTuple, Field(min_length=1)]


class Transform(BaseModel, frozen=True, extra="forbid"):
    """How one model input is made of a column; the steps are taken in the order of the fields.

    Attributes:
        column: the column; by default the input's own name.
        mode: colours of an image; ``None`` for a column of numbers, such as token ids, where
            only ``pad_to``, ``pad_value`` and ``dtype`` apply.
        resize: a number for the shorter side (the other follows), or ``[height, width]``.
        interpolation: the filter of Pillow (antialiased).
        crop: a number for a square, or ``[height, width]``, cut from the centre.
        scale: pixels (0 to 255) are divided by it.
        mean: subtracted after that, one for all channels or one each.
        std: divided by after that, one for all channels or one each.
        layout: the order of dimensions in a batch of images.
        pad_to: length to which the first dimension of a row of numbers is filled up.
        pad_value: what it is filled with.
        dtype: element type of the result. An integer type refuses what it cannot hold exactly.

    Example:
        >>> Transform(mode="RGB", scale=1, mean=127, std=128).read(np.full((2, 2, 3), 255, "u1"))[0]
        tensor([[1., 1.],
                [1., 1.]])
        >>> Transform(dtype="int64", pad_to=4).read([101, 102])
        tensor([101, 102,   0,   0])
    """

    column: str | None = None
    mode: Literal["RGB", "L"] | None = None
    resize: _Size | None = None
    interpolation: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: _Size | None = None
    scale: Annotated[_Number, Field(gt=0)] = 1.0
    mean: _PerChannel = (0.0,)
    std: _PerChannel = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"
    pad_to: _Count | None = None
    pad_value: int | float = 0
    dtype: Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"] = (
        "float32"
    )

    @model_validator(mode="after")
    def _check(self) -> Transform:
        plain = {"column", "mode", "pad_to", "pad_value", "dtype"}
        if self.mode is None and (wrong := self.model_fields_set - plain):
            raise ValueError(f"{', '.join(sorted(wrong))}: for images only; set mode: RGB or L")
        if self.mode and (wrong := self.model_fields_set & {"pad_to", "pad_value"}):
            raise ValueError(f"{', '.join(sorted(wrong))}: for numbers only; remove mode")
        if self.mode and {len(self.mean), len(self.std)} - {1, len(self.mode)}:
            raise ValueError(f"mean and std need 1 number, or {len(self.mode)} for {self.mode}")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0 in every channel")
        return self

    def read(self, value: object) -> Tensor:
        """One row's value as a tensor, without the batch dimension.

        Raises:
            DataError: a corrupt image, one smaller than ``crop``, or values that do not fit.
        """
        array = self._numbers(value) if self.mode is None else self._pixels(value)
        with np.errstate(invalid="ignore", over="ignore"):  # told below, and by as_batches
            result = array.astype(self.dtype, order="C")
        if result.dtype.kind != "f" and not np.array_equal(result, array):
            raise DataError(f"its values do not fit {self.dtype}; choose another dtype")
        return torch.from_numpy(result)

    def _numbers(self, value: object) -> np.ndarray:
        array = _numeric(value)
        if self.pad_to is None:
            return array
        if array.ndim == 0 or len(array) > self.pad_to:
            raise DataError(f"shape {array.shape} does not fit pad_to {self.pad_to}; raise it")
        fill = np.full((self.pad_to - len(array), *array.shape[1:]), self.pad_value)
        return np.concatenate([array, fill])

    def _pixels(self, value: object) -> np.ndarray:
        image = _decode(value)
        if image.mode.startswith(("I", "F")):
            raise DataError(f"the image has mode {image.mode}; store it with 8 bits a channel")
        image = self._place(image.convert(self.mode))
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        pixels = (pixels / np.float32(self.scale) - mean) / std
        return pixels.transpose(2, 0, 1) if self.layout == "nchw" else pixels

    def _place(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if self.resize is not None:
            width, height = (self.resize[0] * side // min(image.size) for side in image.size)
            if len(self.resize) == 2:
                height, width = self.resize
            from PIL.Image import Resampling

            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop is not None:
            height, width = (self.crop * 2)[:2]
            if height > image.height or width > image.width:
                have = f"{image.height}x{image.width}"
                raise DataError(f"crop {height}x{width} exceeds the image's {have}; set resize")
            # Rounded as torchvision's center_crop rounds, so that pixels are the same.
            top, left = round((image.height - height) / 2), round((image.width - width) / 2)
            image = image.crop((left, top, left + width, top + height))
        return image


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
        raise DataError(f"{path}: {_line(error)}; give a data file in YAML") from error
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
    """Rows with their number in the source, undecoded, as often as asked for."""

    rows: Callable[[], Iterator[tuple[int, Mapping[str, Any]]]]
    length: int | None
    classes: tuple[str, ...] | None = None


class Data:
    """An opened `DataSpec`: iterate it for batches, as often as you like, in the same order.

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

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Batches of ``batch_size`` rows (by default the spec's); the last may be smaller.

        Raises:
            DataError: names the row that cannot be read or does not fit its batch.
        """
        rows = self._table.rows()
        while batch := list(islice(rows, batch_size or self.spec.batch_size)):
            inputs = {
                name: self._stack(batch, transform.column or name, transform.read)
                for name, transform in self.spec.inputs.items()
            }
            label = self.spec.label
            yield Batch(
                inputs=inputs, labels=None if label is None else self._stack(batch, label, _label)
            )

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
    array = _numeric(value)
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _numeric(value: object) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal length
        raise DataError(f"not a rectangular array ({error}); pad it") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"holds {type(value).__name__}, not numbers; for an image set mode: RGB")
    return array


def _decode(value: object) -> PIL.Image.Image:
    """An image from an array HW or HWC, encoded bytes, or the ``bytes`` and ``path`` of Arrow."""
    import datasets
    import PIL.Image

    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    try:
        if isinstance(value, np.ndarray):
            return PIL.Image.fromarray(value.squeeze(-1) if value.shape[2:] == (1,) else value)
        if isinstance(value, dict):
            return cast("PIL.Image.Image", datasets.Image().decode_example(value))
    except Exception as error:  # Pillow's decoders raise almost anything on corrupt bytes
        raise DataError(f"cannot decode the image ({_line(error)}); replace it") from error
    raise DataError(f"{type(value).__name__} is no image; remove mode to read numbers")


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
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {_line(error)}; save numbers with numpy.savez") from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{path}: columns differ in rows ({lengths}); save as many of each")
    order = _order(spec, next(iter(lengths.values())))
    return _Table(
        lambda: ((i, {name: array[i] for name, array in arrays.items()}) for i in order), len(order)
    )


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
        order = _order(spec, len(table))
        return _Table(lambda: ((i, table[i]) for i in order), len(order), classes)
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
        raise DataError(f"{source}: stream broke off, {_line(error)}; try again") from error


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
        raise DataError(f"{spec.source}: {_line(error)}; correct source or split") from error
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


def _line(error: BaseException) -> str:
    """An error's message on one line, or its kind where it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def as_batches(calibration: object) -> Iterator[Call]:
    """Each batch of any data as the ``(args, kwargs)`` of a model call, one at a time.

    Args:
        calibration: a `DataSpec`, a `Data`, a ``DataLoader`` or any iterable of batches; a batch
            is one tensor or array, a tuple or list of them (inputs by order), or a mapping
            (inputs by name).

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
    return _checked(calibration)


def _checked(batches: Iterable[object]) -> Iterator[Call]:
    first: list[int | str] | None = None
    for index, batch in enumerate(batches):
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
            raise DataError(f"batch {index} has the inputs {form}, batch 0 {first}; give all alike")
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
            raise DataError(
                f"batch {batch_index}, input {name!r}: got {_form(got[name])}, expected "
                f"{expected}; convert the data, or capture the model with example inputs like it"
            )


def _form(tensor: Tensor, dynamic_dims: AbstractSet[int] = frozenset()) -> str:
    """Type and shape, such as ``float32 (any, 3, 32, 32)``."""
    sizes = ("any" if d in dynamic_dims else str(size) for d, size in enumerate(tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} ({', '.join(sizes)})"
