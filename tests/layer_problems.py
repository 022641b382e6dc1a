"""Layers' rounding problems with inputs that go together, as those of real layers do."""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.reconstruction.layers import Form, spread
from quantkit.reconstruction.problem import LayerProblem
from quantkit.spec import QuantSpec

SPECS = {
    "int8": QuantSpec(axis=0),
    "int8 per tensor": QuantSpec(),
    "int8 of 7 bits": QuantSpec(axis=0, bits=7),
    "uint8 asymmetric": QuantSpec(dtype="uint8", axis=0, symmetric=False),
    "int4": QuantSpec(dtype="int4", axis=0),
    "int4 per group": QuantSpec(dtype="int4", axis=1, group_size=16),
    "int4 per group, asymmetric": QuantSpec(dtype="int4", axis=1, group_size=16, symmetric=False),
    "fp8": QuantSpec(dtype="fp8_e4m3", axis=0),
}


def correlated(groups: int, count: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Inputs ``(groups, count, inputs)`` that few causes make, of very different sizes."""
    causes = torch.randn(groups, count, max(inputs // 4, 2), generator=generator)
    mixed = causes @ torch.randn(groups, causes.shape[-1], inputs, generator=generator)
    noise = 0.1 * torch.randn(groups, count, inputs, generator=generator)
    return (mixed + noise) * torch.rand(groups, 1, inputs, generator=generator).exp2()


def problem_of(
    weight: Tensor,
    floating: Tensor,
    quantized: Tensor,
    spec: QuantSpec,
    form: Form | None = None,
) -> LayerProblem:
    """The problem of a weight of a model, and of inputs ``(groups, count, inputs)``."""
    form = form or Form(tuple(weight.shape))
    qparams = numerics.choose_qparams(*numerics.tensor_range(weight, spec), spec)
    step, zero_point = spread(qparams, tuple(weight.shape))
    count = floating.shape[1]
    return LayerProblem(
        name="layer",
        weight=form.matrices(weight),
        step=form.matrices(step),
        zero_point=form.matrices(zero_point),
        spec=spec,
        quantized=quantized.mT @ quantized / count,
        crossed=floating.mT @ quantized / count,
        floating=floating.mT @ floating / count,
        shared=form.shared(spec),
    )


def linear(spec: QuantSpec, seed: int = 0, *, rows: int = 12, inputs: int = 48) -> LayerProblem:
    """A linear layer behind layers that have erred a little; two inputs are always zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator) ** 3  # with a tail
    weight[3] = 0.0
    floating = correlated(1, 400, inputs, generator)
    floating[..., [5, 20]] = 0.0
    quantized = floating + 0.02 * torch.randn(floating.shape, generator=generator)
    quantized[..., [5, 20]] = 0.0
    return problem_of(weight, floating, quantized, spec)


def depthwise(spec: QuantSpec, seed: int = 0) -> LayerProblem:
    """A depthwise convolution, 3 x 3, of 8 channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 1, 3, 3, generator=generator)
    form = Form((8, 1, 3, 3), groups=8, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    floating = correlated(8, 300, 9, generator)
    quantized = floating + 0.02 * torch.randn(floating.shape, generator=generator)
    return problem_of(weight, floating, quantized, spec, form)


def convolution(spec: QuantSpec, seed: int = 0) -> LayerProblem:
    """A convolution, 3 x 3, of 32 channels in 2 groups: a group of inputs lies 9 taps apart."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 16, 3, 3, generator=generator)
    form = Form((8, 16, 3, 3), groups=2, kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    floating = correlated(2, 600, 144, generator)
    quantized = floating + 0.02 * torch.randn(floating.shape, generator=generator)
    return problem_of(weight, floating, quantized, spec, form)


MAKERS = (linear, depthwise, convolution)


def nearest_error(problem: LayerProblem) -> Tensor:
    """The error of each row, rounded to nearest."""
    return problem.error(problem.values(problem.snap(problem.weight)))
