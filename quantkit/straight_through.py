"""Fake-quantize with a gradient: values put on a grid in float, and what flows back.

On tensors and plain numbers alone: scales and zero-points come in a form that broadcasts against
the tensor (`quantkit.numerics` makes it), and are not checked here. On a CPU these run several
times as fast as torch's own operators (torch 2.13), whose loops use no vector units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantkit.spec import QuantSpec


class StraightThrough(torch.autograd.Function):
    """Quantize and dequantize; the gradient passes where nothing was clipped.

    Bengio et al. 2013, arXiv:1308.3432.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
        """``x`` on the grid, in the dtype of ``x``."""
        # Copies: a grid that follows is overwritten by the next tensor, maybe before the backward.
        ctx.save_for_backward(x, scale.clone(), zero_point.clone())
        ctx.spec = spec
        return _on_grid(x, scale, zero_point, spec).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        """The gradient of the result, zero where it was clipped."""
        x, scale, zero_point = ctx.saved_tensors
        return _inside(grads[0], x, scale, zero_point, ctx.spec), None, None, None


class LearnedStep(torch.autograd.Function):
    """Quantize and dequantize on a grid that learns: its step, and where it begins.

    With ``y`` the result, ``s`` the scale and ``b`` the value of the lowest code, the gradients are
    those of LSQ (Esser et al. 2020, arXiv:1902.08153, equations 3 and 5) and, where there is a
    ``b``, of LSQ+ (Bhalgat et al. 2020, arXiv:2004.09576, equations 4 to 6), save that what still
    rounds to an end of the grid is not clipped, as in torch's operators:

    ======  ====================  =======================
    of y    where it is inside    where it is clipped
    ======  ====================  =======================
    in x    1                     0
    in s    (y - x) / s           the code, counted from that of zero; with ``b`` from the lowest
    in b    0                     1
    ======  ====================  =======================

    Both are multiplied by ``weight``, which makes them comparable to those of weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        lowest: Tensor | None,
        zero_point: Tensor,
        spec: QuantSpec,
        weight: float,
    ) -> Tensor:
        """``x`` on the grid of ``scale`` and ``zero_point``, in the dtype of ``x``.

        Args:
            ctx: of autograd.
            x: the tensor.
            scale: positive.
            lowest: the value of the lowest code, of which ``zero_point`` was made; ``None`` where
                the grid is symmetric.
            zero_point: on the grid.
            spec: the form of the grid.
            weight: of the gradients of ``scale`` and ``lowest``.
        """
        y = _on_grid(x, scale, zero_point, spec)
        ctx.save_for_backward(x, scale, zero_point, y)
        ctx.spec, ctx.weight, ctx.shifted = spec, weight, lowest is not None
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None, None, None, None]:
        """The gradients of ``x``, ``scale`` and ``lowest``."""
        x, scale, zero_point, y = ctx.saved_tensors
        grad, spec = grads[0], ctx.spec
        inner = _inside(grad, x, scale, zero_point, spec)
        clipped = (grad - inner).float()
        of_scale = _sum_of_products(inner.float(), y - x, scale)
        of_scale += _sum_of_products(clipped, y, scale)
        of_scale = of_scale / scale
        of_lowest = None
        if ctx.shifted:
            beyond = clipped.sum() if scale.dim() == 0 else clipped.sum_to_size(scale.shape)
            of_scale = of_scale - (spec.qmin - zero_point) * beyond
            of_lowest = beyond * ctx.weight
        return inner, of_scale * ctx.weight, of_lowest, None, None, None


def _on_grid(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """``dequantize(quantize(x))`` in float32, multiplying by the reciprocal."""
    inverse = 1.0 / scale
    if torch.compiler.is_compiling():
        return _on_grid_in_a_graph(x.float() * inverse, scale, zero_point, spec)
    y = x.float() * inverse
    low, high = spec.qmin, spec.qmax
    if spec.is_float:
        return y.clamp_(low, high).to(torch.float8_e4m3fn).float().mul_(scale)
    if (zero := _known(zero_point, spec)) is not None:
        return y.round_().clamp_(low - zero, high - zero).mul_(scale)
    return y.round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)


def _on_grid_in_a_graph(
    steps: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec
) -> Tensor:
    """As `_on_grid`, for tracing: nothing in place, no value read."""
    if spec.is_float:
        return steps.clamp(spec.qmin, spec.qmax).to(torch.float8_e4m3fn).float() * scale
    if spec.symmetric:  # a constant, which a compiler need not load
        codes = torch.round(steps).clamp(spec.qmin - spec.middle, spec.qmax - spec.middle)
        return codes * scale
    zero = zero_point.float()
    return ((torch.round(steps) + zero).clamp(spec.qmin, spec.qmax) - zero) * scale


def _inside(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """``grad``, zero where ``x`` was clipped."""
    steps = x.float() * (1.0 / scale)
    # Half a step beyond the ends, so that the ends themselves are inside; FP8 is not rounded here.
    low, high = (spec.qmin, spec.qmax) if spec.is_float else (spec.qmin - 0.5, spec.qmax + 0.5)
    if torch.compiler.is_compiling() or spec.is_float:
        if not spec.is_float:
            steps = torch.round(steps) + (spec.middle if spec.symmetric else zero_point.float())
        return torch.where((steps >= low) & (steps <= high), grad, torch.zeros_like(grad))
    zero = _known(zero_point, spec)
    if zero is None:
        steps.round_().add_(zero_point)
    else:
        steps.round_()
        low, high = low - zero, high - zero
    # In one pass, without a mask.
    passed: Tensor = torch.ops.aten.hardtanh_backward(grad, steps.to(grad.dtype), low, high)
    return passed


def _known(zero_point: Tensor, spec: QuantSpec) -> int | None:
    """The zero-point as a number, where that is known without waiting for a device."""
    if spec.symmetric:
        return spec.middle
    return int(zero_point) if zero_point.dim() == 0 and zero_point.device.type == "cpu" else None


def _sum_of_products(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """``sum(a * b)`` for each scale, in the shape of the scales."""
    if scale.dim() == 0:
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a * b).sum_to_size(scale.shape)
