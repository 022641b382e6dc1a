"""One layer's rounding as a least-squares problem: matrices in, matrices out.

A layer computes ``W x`` with ``x`` what one output position reads. Once the layers before it are
quantized it reads ``x̂`` instead, and its weights become ``Ŵ`` on their grid. The mean squared error
of its result over samples and positions is a quadratic form of two matrices of the inputs' size,
however many samples there are:

    E |Ŵ x̂ - W x|² = tr(Ŵ G Ŵᵀ) - 2 tr(Ŵ Cᵀ Wᵀ) + tr(W F Wᵀ),
    G = E[x̂ x̂ᵀ],  C = E[x x̂ᵀ],  F = E[x xᵀ].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from quantkit.spec import QuantSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerProblem:
    """What a rounding is told of a layer: its weights, their grid, and moments of its inputs.

    Attributes:
        name: of the layer.
        weight: ``(groups, rows, inputs)`` float32: the filters of each group of a convolution as
            rows (channels by taps); linear layers have one group.
        step: of the grid, of the same shape.
        zero_point: the same.
        spec: the form of the grid; its axis is that of the weight in the model, not here.
        quantized: ``G``, ``(groups, inputs, inputs)`` float32, of the inputs that the quantized
            layers before it make, on the activation's own grid where it has one.
        crossed: ``C = E[x x̂ᵀ]``, of the same shape.
        floating: ``F``, of the same shape.
        shared: the dimensions of ``(groups, rows)`` whose members have one step together, and keep
            one.
    """

    name: str
    weight: Tensor
    step: Tensor
    zero_point: Tensor
    spec: QuantSpec
    quantized: Tensor
    crossed: Tensor
    floating: Tensor
    shared: tuple[int, ...] = ()

    def snap(self, values: Tensor, step: Tensor | None = None) -> Tensor:
        """The nearest integers of the grid to ``values`` (FP8: values in steps), as floats."""
        return snap(values, self.step if step is None else step, self.zero_point, self.spec)

    def values(self, integers: Tensor, step: Tensor | None = None) -> Tensor:
        """What integers of the grid stand for."""
        return (integers - self.zero_point) * (self.step if step is None else step)

    def error(self, values: Tensor) -> Tensor:
        """``E |Ŵ x̂ - W x|²`` of weights ``values``, for each row: ``(groups, rows)`` float64."""
        return output_error(values, self.weight, self.quantized, self.crossed, self.floating)

    @property
    def alone(self) -> LayerProblem:
        """The problem of the layer by itself: its target is what it makes of the inputs it gets.

        So it does not make up for what the layers before have erred. That generalizes: what they
        err correlates with the inputs by chance more than by nature where samples are few.
        """
        return replace(self, crossed=self.quantized, floating=self.quantized)

    @cached_property
    def ideal(self) -> Tensor:
        """The weights, on no grid, that make the least error of the quantized inputs.

        ``W C G⁻¹``, with G damped by 1 % of its mean diagonal towards ``W`` itself: they differ
        from ``weight`` where the layers before it erred in a way that weights can repair.
        """
        return ideal_weight(self.weight, self.quantized, self.crossed)


def snap(values: Tensor, step: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """``clamp(round(values / step) + zero_point)``; of FP8 the nearest value, in steps.

    Example:
        >>> one, zero = torch.tensor(0.5), torch.tensor(0.0)
        >>> snap(torch.tensor([0.7, -99.0]), one, zero, QuantSpec()).tolist()
        [1.0, -128.0]
    """
    steps = values / step
    if spec.is_float:
        held = steps.clamp(spec.qmin, spec.qmax)
        return held.to(torch.float8_e4m3fn).to(steps.dtype)
    return (steps.round() + zero_point).clamp(spec.qmin, spec.qmax)


def output_error(
    values: Tensor, weight: Tensor, quantized: Tensor, crossed: Tensor, floating: Tensor
) -> Tensor:
    """The module's equation, for each row.

    Args:
        values: ``Ŵ``, ``(groups, rows, inputs)``.
        weight: ``W``, of the same shape.
        quantized: ``G``, ``(groups, inputs, inputs)``.
        crossed: ``C``.
        floating: ``F``.

    Returns:
        ``(groups, rows)``, float64, never below zero.

    Example:
        >>> w, eye = torch.tensor([[[2.0, 1.0]]]), torch.eye(2)[None]
        >>> output_error(w - 0.5, w, eye, eye, eye).item()
        0.5
    """
    own, other = values.double(), weight.double()
    total = ((own @ quantized.double()) * own).sum(-1)
    total -= 2.0 * ((other @ crossed.double()) * own).sum(-1)
    total += ((other @ floating.double()) * other).sum(-1)
    return total.clamp(min=0.0)


def ideal_weight(
    weight: Tensor, quantized: Tensor, crossed: Tensor, damping: float = 0.01
) -> Tensor:
    """``argmin_V E |V x̂ - W x|² + d |V - W|²``, ``d`` being ``damping`` of G's mean diagonal.

    Example:
        >>> w, eye = torch.tensor([[[2.0, 1.0]]]), torch.eye(2)[None]
        >>> ideal_weight(w, eye, eye).allclose(w)
        True
    """
    gram = quantized.double()
    ridge = damping * gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)
    eye = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    damped = gram + ridge[:, None, None] * eye
    wanted = weight.double() @ (crossed.double() + ridge[:, None, None] * eye)
    solved: Tensor = torch.linalg.solve(damped, wanted, left=False)
    return solved.to(weight.dtype)
