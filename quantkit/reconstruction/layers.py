"""The forms of a layer: its weight as matrices, and what one output position reads of its input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from quantkit import numerics
from quantkit.errors import RecipeError
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.model import Layer
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec


@dataclass(frozen=True)
class Form:
    """How a layer's weight and input become matrices.

    Attributes:
        shape: of the weight.
        groups: of a convolution; of a product of batched matrices, how many there are.
        kernel, stride, padding, dilation: of a convolution; empty for a product.
        transposed: the weight is ``(inputs, rows)``, as ``x @ w`` has it.
    """

    shape: tuple[int, ...]
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    transposed: bool = False

    def matrices(self, weight: Tensor) -> Tensor:
        """A weight (or its scales, spread to its shape) as ``(groups, rows, inputs)``."""
        if self.transposed:
            return weight.reshape(self.groups, *weight.shape[-2:]).mT.contiguous()
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        if self.transposed:
            return matrices.mT.reshape(self.shape)
        return matrices.reshape(self.shape)

    def shared(self, spec: QuantSpec) -> tuple[int, ...]:
        """The dimensions of ``(groups, rows)`` whose members have one step on such a grid.

        A product of batched matrices has one step for a column of all of them.
        """
        if spec.granularity == "tensor":
            return (0, 1)
        return (0,) if self.transposed and self.groups > 1 else ()

    def rows(self, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """What output positions read of ``x``: ``(groups, positions, inputs)``.

        Where there are more than ``most`` positions, so many of them are drawn. The same state of
        ``generator`` draws the same, so two inputs of one shape can be compared.
        """
        if not self.kernel:
            flat = x.reshape(self.groups, -1, x.shape[-1]) if self.groups > 1 else x
            flat = flat.reshape(self.groups, -1, x.shape[-1])
            chosen = _drawn(flat.shape[1], most, generator)
            return flat if chosen is None else flat[:, chosen]
        return self._patches(x, most, generator)

    def _patches(self, x: Tensor, most: int, generator: torch.Generator) -> Tensor:
        batch, channels = x.shape[:2]
        pads = [p for extent in reversed(self.padding) for p in (extent, extent)]
        x = F.pad(x, pads)
        extents = x.shape[2:]
        dims = len(self.kernel)
        outs = [
            (extents[d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // self.stride[d] + 1
            for d in range(dims)
        ]
        offsets, taps = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        for d in range(dims):
            place = torch.arange(outs[d]) * self.stride[d]
            tap = torch.arange(self.kernel[d]) * self.dilation[d]
            offsets = (offsets[:, None] * extents[d] + place).flatten()
            taps = (taps[:, None] * extents[d] + tap).flatten()
        count = offsets.numel()
        chosen = _drawn(batch * count, most, generator)
        if chosen is None:
            chosen = torch.arange(batch * count)
        start = (chosen // count) * prod(extents) * channels + offsets[chosen % count]
        channel = torch.arange(channels) * prod(extents)
        index = start[:, None, None] + channel[:, None] + taps  # (positions, channels, taps)
        read = x.reshape(-1)[index.reshape(-1)]
        return read.reshape(chosen.numel(), self.groups, -1).transpose(0, 1)


def _drawn(count: int, most: int, generator: torch.Generator) -> Tensor | None:
    """So many different numbers below ``count``; ``None`` for all of them."""
    if count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most]


def form_of(node: fx.Node, weight: Tensor) -> Form | None:
    """The form of a layer's node; ``None`` for what has none: transposed convolutions."""
    kind = kind_of(node)
    if kind is Kind.LINEAR:
        return Form(tuple(weight.shape))
    if kind is Kind.MATMUL:
        return Form(tuple(weight.shape), groups=prod(weight.shape[:-2]), transposed=True)
    if kind is not Kind.CONV:
        return None
    dims = weight.dim() - 2
    padding = _argument(node, 4, "padding", 0)
    dilation = _each(_argument(node, 5, "dilation", 1), dims)
    kernel = tuple(weight.shape[2:])
    groups = 8 if operator_name(node) == "convolution" else 6
    if padding == "valid":
        padding = 0
    elif padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(extent % 2 for extent in whole):
            return None  # more on one side than on the other
        padding = [extent // 2 for extent in whole]
    return Form(
        tuple(weight.shape),
        groups=int(_argument(node, groups, "groups", 1)),
        kernel=kernel,
        stride=_each(_argument(node, 3, "stride", 1), dims),
        padding=_each(padding, dims),
        dilation=dilation,
    )


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number a dimension."""
    if isinstance(value, int):
        return (value,) * dims
    values = tuple(int(v) for v in value)
    return values * dims if len(values) == 1 else values


def spread(qparams: QParams, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Scales and zero-points as tensors of a weight's whole shape, float32."""
    scale, zero_point = numerics.broadcast(qparams, shape)
    return scale.expand(shape), zero_point.float().expand(shape)


def gathered(step: Tensor, qparams: QParams) -> QParams:
    """The grid of steps that were spread to a weight's shape: the inverse of `spread`."""
    spec = qparams.spec
    low, _ = numerics.tensor_range(step, spec)
    return QParams(scale=low.float(), zero_point=qparams.zero_point, spec=spec)


def set_weight(layer: Layer, rounded: Tensor) -> None:
    """Put values on the grid into a layer.

    Raises:
        RecipeError: its weight is computed from others.
    """
    value = own_weight(layer)
    with torch.no_grad():
        value.copy_(rounded)


def own_weight(layer: Layer) -> Tensor:
    """The parameter that is a layer's weight.

    Raises:
        RecipeError: the weight is computed from others.
    """
    if layer.weight_value is None:
        raise RecipeError(
            f"{layer.name} computes its weight from others, so no rounding but nearest can be "
            "kept; set rounding: nearest, or leave the layer in float by an override"
        )
    return layer.weight_value
