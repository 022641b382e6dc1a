"""How one column's values become one model input: declared, so that no Python is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, Field, model_validator
from torch import Tensor

from quantkit.errors import DataError

if TYPE_CHECKING:
    import PIL.Image

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
        array = numeric(value)
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


def numeric(value: object) -> np.ndarray:
    """A value as an array of numbers."""
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
        raise DataError(f"cannot decode the image ({one_line(error)}); replace it") from error
    raise DataError(f"{type(value).__name__} is no image; remove mode to read numbers")


def one_line(error: BaseException) -> str:
    """An error's message on one line, or its kind where it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
