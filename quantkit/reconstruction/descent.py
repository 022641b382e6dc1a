"""Coordinate descent on the squared error of a layer's result, over the points of a grid.

With all weights of a row but one held, the error is a parabola in that one, whose best point on the
grid is the nearest to its vertex. Sweeps over the inputs never raise the error and end where no
single weight can lower it (Zhang et al. 2024, COMQ, arXiv:2403.07134, section 3; Behdin et al.
2023, QuantEase, arXiv:2309.01885, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantkit.reconstruction.problem import LayerProblem

#: Columns whose changes are gathered before all others are told: one product for many.
TOGETHER = 64


def descend(
    integers: Tensor,
    step: Tensor,
    zero_point: Tensor,
    gram: Tensor,
    wanted: Tensor,
    *,
    low: int,
    high: int,
    sweeps: int,
) -> Tensor:
    """The integers after some sweeps; fewer where nothing changes any more.

    Args:
        integers: to begin with, ``(groups, rows, inputs)``.
        step: of the grid, of the same shape.
        zero_point: the same.
        gram: ``G = E[x̂ x̂ᵀ]``, ``(groups, inputs, inputs)``.
        wanted: ``W C``, of the integers' shape: the error is ``tr(Ŵ G Ŵᵀ) - 2 tr(Ŵ wantedᵀ)``.
        low: the least integer of the grid.
        high: the largest.
        sweeps: over all inputs, at most.

    Example:
        >>> one = torch.ones(1, 1, 2)
        >>> gram = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
        >>> w = torch.tensor([[[0.4, 0.4]]])  # nearest: 0, 0; the sum is better met by 1, 0
        >>> descend(0 * one, one, 0 * one, gram, w @ gram, low=-8, high=7, sweeps=4).tolist()
        [[[1.0, 0.0]]]
    """
    q, scale, zero = integers.double(), step.double(), zero_point.double()
    g = gram.double()
    curvature = g.diagonal(dim1=-2, dim2=-1)
    residual = wanted.double() - ((q - zero) * scale) @ g
    for _ in range(sweeps):
        changed = False
        for start in range(0, q.shape[-1], TOGETHER):
            part = slice(start, min(start + TOGETHER, q.shape[-1]))
            moved = _sweep(
                q[..., part], scale[..., part], zero[..., part],
                residual[..., part], g[:, part, part], curvature[:, part], low, high,
            )  # fmt: skip
            if bool(moved.any()):
                changed = True
                residual -= moved @ g[:, part, :]
        if not changed:
            break
    return q.to(integers.dtype)


def quickly(problem: LayerProblem) -> Tensor:
    """The values after one sweep from nearest; of FP8, whose steps vary, the ideal, snapped."""
    if problem.spec.is_float:
        return problem.values(problem.snap(problem.ideal))
    found = descend(
        problem.snap(problem.weight), problem.step, problem.zero_point, problem.quantized,
        problem.weight.double() @ problem.crossed.double(),
        low=problem.spec.qmin, high=problem.spec.qmax, sweeps=1,
    )  # fmt: skip
    return problem.values(found)


def _sweep(
    q: Tensor, scale: Tensor, zero: Tensor, residual: Tensor, gram: Tensor, curvature: Tensor,
    low: int, high: int,
) -> Tensor:  # fmt: skip
    """Some columns, changed in place in ``q``; what their values have moved by."""
    own = residual.clone()
    moved = torch.zeros_like(own)
    for j in range(q.shape[-1]):
        bend = curvature[:, None, j]
        # An input that is never anything but zero: its weights do not matter, and stay.
        shift = torch.where(bend > 0.0, own[..., j] / bend.clamp(min=1e-30), 0.0)
        best = (q[..., j] + shift / scale[..., j]).round().clamp(low, high)
        delta = (best - q[..., j]) * scale[..., j]
        if bool(delta.any()):
            own -= delta[..., None] * gram[:, None, j, :]
            moved[..., j] = delta
            q[..., j] = best
    return moved
