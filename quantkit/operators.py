"""Fake-quantize as an operator of PyTorch: one node in a graph, whatever a compiler makes of it.

``torch.ops.quantkit.fake_quantize`` has the values of `numerics.fake_quantize_values`, to the bit.
A compiler that knows the operator can lower it to one Q/DQ pair; to all others it is opaque, so
they neither fold it into a constant weight nor decompose it. It has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit import numerics
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec

_SCHEMA = (
    "(Tensor x, Tensor scale, Tensor zero_point, str dtype, bool symmetric, int? axis, "
    "int? group_size, int? bits) -> Tensor"
)


@torch.library.custom_op("quantkit::fake_quantize", mutates_args=(), schema=_SCHEMA)
def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    dtype: Any,
    symmetric: bool,
    axis: int | None,
    group_size: int | None,
    bits: int | None,
) -> Tensor:
    """``x`` on a grid, in the dtype of ``x``; the last five arguments are a ``QuantSpec``.

    Args:
        x: float32, float16 or bfloat16.
        scale: float32, of shape ``numerics.scale_shape(x.shape, spec)``.
        zero_point: int32, of the same shape.
        dtype: storage format.
        symmetric: zero maps to the middle of the grid.
        axis: whose slices have a scale of their own.
        group_size: how many elements along it share one.
        bits: used of the format.

    Example:
        >>> x, scale, zero = torch.tensor([0.26, 99.0]), torch.tensor(0.1), torch.tensor(0).int()
        >>> y = torch.ops.quantkit.fake_quantize(x, scale, zero, "int8", True, None, None, None)
        >>> [round(v, 4) for v in y.tolist()]
        [0.3, 12.7]
    """
    spec = QuantSpec(dtype=dtype, symmetric=symmetric, axis=axis, group_size=group_size, bits=bits)
    return numerics.fake_quantize_values(x, scale, zero_point, spec)


@fake_quantize.register_fake
def _(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    dtype: str,
    symmetric: bool,
    axis: int | None,
    group_size: int | None,
    bits: int | None,
) -> Tensor:
    return torch.empty_like(x)


#: What a node of a graph that calls the operator has as its target.
OPERATOR = torch.ops.quantkit.fake_quantize.default


def spec_arguments(spec: QuantSpec) -> tuple[Any, ...]:
    """The last five arguments of the operator.

    Example:
        >>> spec_arguments(QuantSpec(dtype="int4", axis=1, group_size=32))
        ('int4', True, 1, 32, None)
    """
    return (spec.dtype, spec.symmetric, spec.axis, spec.group_size, spec.bits)


@dataclass(frozen=True)
class Call:
    """What a node of the operator is given, whatever stands for its tensors.

    Attributes:
        x: the tensor that is put on the grid.
        scale, zero_point: the grid's numbers.
        spec: its form.
    """

    x: Any
    scale: Any
    zero_point: Any
    spec: QuantSpec

    @classmethod
    def of(cls, arguments: tuple[Any, ...]) -> Call:
        """Read positional arguments of the operator."""
        x, scale, zero_point, dtype, symmetric, axis, group_size, bits = arguments
        spec = QuantSpec(
            dtype=dtype, symmetric=symmetric, axis=axis, group_size=group_size, bits=bits
        )
        return cls(x, scale, zero_point, spec)

    @property
    def qparams(self) -> QParams:
        """The grid, checked; the arguments must be tensors."""
        return QParams(scale=self.scale.cpu(), zero_point=self.zero_point.cpu(), spec=self.spec)


def is_call(node: object) -> bool:
    """Whether a node of a graph calls the operator."""
    return isinstance(node, fx.Node) and node.target is OPERATOR
