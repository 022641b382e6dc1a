"""How a tensor maps to a grid of few bits, and which tensors of a layer do.

``QuantSpec`` and ``Scheme`` are plain frozen values, checked when they are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

DType = Literal["int8", "uint8", "int4", "fp8_e4m3"]

#: Bits of storage of one element, by format.
STORAGE_BITS: dict[DType, int] = {"int8": 8, "uint8": 8, "int4": 4, "fp8_e4m3": 8}

#: Largest finite value of FP8 E4M3 (OCP 8-bit floating point specification, table 1).
FP8_E4M3_MAX = 448.0


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The grid of one tensor: ``x ≈ (q - zero_point) * scale``.

    Attributes:
        dtype: storage format of ``q``.
        symmetric: zero maps to the middle of the grid, so ``|x| <= amax`` is covered. Otherwise
            the grid covers ``[min, max]`` (always containing zero).
        axis: ``None`` for one scale per tensor; else the dimension whose slices have their own.
        group_size: with ``axis``, how many consecutive elements along it share one scale; every
            other dimension then has its own (the blocked form of ONNX ``QuantizeLinear``).
        bits: use fewer bits than the format stores: 7-bit weights in int8 do not saturate the
            16-bit sums of x86 processors without VNNI.

    Example:
        >>> QuantSpec(dtype="int8", axis=0).granularity
        'channel'
        >>> QuantSpec(dtype="int8", bits=7).qmin, QuantSpec(dtype="int8", bits=7).qmax
        (-64, 63)
    """

    dtype: DType = "int8"
    symmetric: bool = True
    axis: int | None = None
    group_size: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DType):
            raise ValueError(
                f"dtype {self.dtype!r} is not a format; choose one of {', '.join(get_args(DType))}"
            )
        if self.group_size is not None and self.axis is None:
            raise ValueError("group_size needs an axis to cut into groups; give axis as well")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be 1 or more, got {self.group_size}")
        if self.dtype == "fp8_e4m3" and not self.symmetric:
            raise ValueError("fp8_e4m3 has no zero-point; set symmetric to true")
        if self.bits is not None:
            if self.dtype == "fp8_e4m3":
                raise ValueError("bits applies to integer formats; remove it for fp8_e4m3")
            if not 2 <= self.bits <= STORAGE_BITS[self.dtype]:
                raise ValueError(
                    f"bits must be from 2 to {STORAGE_BITS[self.dtype]} for {self.dtype}, "
                    f"got {self.bits}"
                )

    @property
    def is_float(self) -> bool:
        """Whether the grid is a floating-point format."""
        return self.dtype == "fp8_e4m3"

    @property
    def granularity(self) -> Literal["tensor", "channel", "group"]:
        """How many scales a tensor has: one, one a channel, or one a group."""
        if self.axis is None:
            return "tensor"
        return "channel" if self.group_size is None else "group"

    @property
    def qmin(self) -> int:
        """The smallest integer of the grid (for fp8_e4m3, of its value range)."""
        if self.is_float:
            return -int(FP8_E4M3_MAX)
        if self.dtype == "uint8":
            return 0
        return -(1 << (self._used_bits - 1))

    @property
    def qmax(self) -> int:
        """The largest integer of the grid (for fp8_e4m3, of its value range)."""
        if self.is_float:
            return int(FP8_E4M3_MAX)
        if self.dtype == "uint8":
            return (1 << self._used_bits) - 1
        return (1 << (self._used_bits - 1)) - 1

    @property
    def middle(self) -> int:
        """The zero-point of a symmetric grid: 0, or 128 for uint8."""
        return (self.qmax + 1) // 2 if self.dtype == "uint8" else 0

    @property
    def _used_bits(self) -> int:
        return STORAGE_BITS[self.dtype] if self.bits is None else self.bits

    def __str__(self) -> str:
        """Such as ``int8 symmetric per channel (axis 0)``."""
        form = "symmetric" if self.symmetric else "asymmetric"
        bits = "" if self.bits is None else f" ({self.bits} bits)"
        if self.granularity == "tensor":
            return f"{self.dtype}{bits} {form} per tensor"
        if self.granularity == "channel":
            return f"{self.dtype}{bits} {form} per channel (axis {self.axis})"
        return f"{self.dtype}{bits} {form} per group of {self.group_size} (axis {self.axis})"


def shiftable(spec: QuantSpec) -> bool:
    """Whether a grid is a symmetric one of the tensor shifted by a constant: int8 per tensor.

    Example:
        >>> shiftable(QuantSpec(symmetric=False)), shiftable(QuantSpec())
        (True, False)
    """
    return spec.dtype == "int8" and not spec.symmetric and spec.granularity == "tensor"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What is quantized in a layer: weights, activations, or both. ``None`` is left in float.

    Example:
        >>> Scheme(weights=QuantSpec(axis=0), activations=None).kind
        'weight-only'
    """

    weights: QuantSpec | None
    activations: QuantSpec | None

    def __post_init__(self) -> None:
        if self.activations is not None and self.activations.granularity == "group":
            raise ValueError(
                "activations per group are run by no engine; use per tensor (or per channel)"
            )

    @property
    def kind(self) -> Literal["weight-only", "activation-only", "weights and activations", "none"]:
        """The usual name of this combination."""
        if self.weights is not None and self.activations is not None:
            return "weights and activations"
        if self.weights is not None:
            return "weight-only"
        return "none" if self.activations is None else "activation-only"

    @property
    def centered(self) -> Scheme:
        """The scheme with activations as the pass ``center`` deploys them: symmetric, shifted."""
        spec = self.activations
        if spec is None or not shiftable(spec):
            return self
        return replace(self, activations=replace(spec, symmetric=True))
