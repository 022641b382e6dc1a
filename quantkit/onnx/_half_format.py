"""The two half formats: what they hold, and how float32 rounds to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

#: The formats that a float file can be converted to.
Precision: TypeAlias = Literal["float16", "bfloat16"]

#: A mask's value in place of one beyond the format: e to its power is 0 in either, and several
#: masks may be added up without overflow.
MASK = 10_000.0


@dataclass(frozen=True, kw_only=True)
class HalfFormat:
    """A float format of 16 bits.

    Attributes:
        name: as quantkit calls it.
        type: as ONNX calls it.
        dtype: of numpy arrays that hold it.
        largest: the largest finite number.
        smallest: the smallest number with a full mantissa.
        integers: up to here it holds every integer.
        opset: the oldest in which ONNX's convolutions take it.
    """

    name: Precision
    type: ir.DataType
    dtype: Any
    largest: float
    smallest: float
    integers: int
    opset: int

    def round(self, array: np.ndarray) -> np.ndarray:
        """The nearest numbers of the format, in float32; beyond its range infinity.

        Example:
            >>> FORMATS["float16"].round(np.float32([1 / 3, 1e-9, 1e6])).tolist()
            [0.333251953125, 0.0, inf]
        """
        return self.store(array).astype(np.float32)

    def store(self, array: np.ndarray) -> np.ndarray:
        """The same, in the format itself."""
        with np.errstate(over="ignore"):
            stored: np.ndarray = np.asarray(array).astype(self.dtype)
        return stored

    def overflows(self, array: np.ndarray) -> bool:
        """Whether a finite number of the array is infinite in the format.

        Example:
            >>> FORMATS["float16"].overflows(np.float32([65504, -np.inf]))
            False
            >>> FORMATS["float16"].overflows(np.float32([-3.4e38]))
            True
        """
        return bool((np.isfinite(array) & ~np.isfinite(self.round(array))).any())


#: By name.
FORMATS: Mapping[str, HalfFormat] = MappingProxyType(
    {
        "float16": HalfFormat(
            name="float16", type=ir.DataType.FLOAT16, dtype=np.float16,
            largest=65504.0, smallest=2.0**-14, integers=2048, opset=7,
        ),
        "bfloat16": HalfFormat(
            name="bfloat16", type=ir.DataType.BFLOAT16, dtype=ml_dtypes.bfloat16,
            largest=(2.0 - 2.0**-7) * 2.0**127, smallest=2.0**-126,
            integers=256, opset=22,
        ),
    }
)  # fmt: skip
