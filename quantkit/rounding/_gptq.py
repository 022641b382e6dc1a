"""GPTQ as mathematics: weights, a matrix of moments and a grid in, integers of the grid out."""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.reconstruction.problem import snap
from quantkit.spec import QuantSpec


def gptq(
    target: Tensor,
    gram: Tensor,
    step: Tensor,
    zero_point: Tensor,
    spec: QuantSpec,
    *,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = False,
) -> Tensor:
    """Integers that make ``tr((Q - V) G (Q - V)ᵀ)`` small: GPTQ, algorithm 1.

    Inputs are rounded one after another; what each errs the inputs after it make up for, as the
    Cholesky factor of ``G⁻¹`` says (Frantar et al. 2022, arXiv:2210.17323, section 3.3).

    Args:
        target: ``V``, ``(groups, rows, inputs)``.
        gram: ``G``, ``(groups, inputs, inputs)``.
        step: of the grid, of the shape of ``target``.
        zero_point: the same.
        spec: the form of the grid.
        damping: the part of G's mean diagonal that is added to its diagonal.
        block: inputs whose corrections are gathered before they reach what lies beyond.
        act_order: round those inputs first whose moments are largest, each on its own step.

    Returns:
        Integers as floats (FP8: values in steps), of the shape of ``target``.

    Example:
        >>> values, grid = torch.tensor([[[0.4, 0.4]]]), torch.ones(1, 1, 2)
        >>> alike = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # two inputs that move together
        >>> gptq(values, alike, grid, 0 * grid, QuantSpec()).tolist()
        [[[0.0, 1.0]]]
    """
    order = _order(gram, act_order)
    columns = order[:, None].expand_as(target)
    values, step = target.gather(-1, columns), step.gather(-1, columns)
    zero_point = zero_point.gather(-1, columns)
    rows = order[:, :, None].expand_as(gram)
    gram = gram.double().gather(1, rows).gather(2, order[:, None].expand_as(gram))
    factor = inverse_factor(gram, damping).to(values.dtype)
    integers, inputs = torch.empty_like(values), values.shape[-1]
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = torch.zeros_like(values[..., start:stop])
        for i in range(start, stop):
            one = slice(i, i + 1)
            found = snap(values[..., one], step[..., one], zero_point[..., one], spec)
            integers[..., one] = found
            on_grid = (found - zero_point[..., one]) * step[..., one]
            error = (values[..., one] - on_grid) / factor[:, one, one]
            values[..., i + 1 : stop] -= error * factor[:, one, i + 1 : stop]
            errors[..., i - start : i - start + 1] = error
        values[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return integers.scatter(-1, columns, integers.clone())


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper triangular ``U`` with ``Uᵀ U = (G + d)⁻¹``, float64.

    An input that is always zero says nothing of the others, and gets a diagonal of its own.

    Example:
        >>> inverse_factor(torch.tensor([[[4.0, 0.0], [0.0, 0.0]]]), 0.0).abs().tolist()
        [[[0.5, 0.0], [0.0, 1.0]]]
    """
    damped = gram.double().clone()
    diagonal = damped.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    ridge = damping * diagonal.mean(-1, keepdim=True)
    diagonal += ridge
    diagonal[dead] = 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _order(gram: Tensor, act_order: bool) -> Tensor:
    """The order in which the inputs of each group are rounded."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    if act_order:
        return diagonal.argsort(dim=-1, descending=True, stable=True)
    return torch.arange(diagonal.shape[-1], device=gram.device).expand_as(diagonal)
