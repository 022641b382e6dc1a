"""Steps that make the least error of a layer's results: matrices in, matrices out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

#: From the indices of some inputs and steps for them, ``(groups, rows, those)``, to the values on
#: that grid that are nearest to their weights.
Snap: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def column_sets(step: Tensor) -> list[Tensor]:
    """The inputs that share a step in every row, as indices, set by set.

    A row has one step: there is one set. It has one for each group of inputs: those are the sets,
    wherever their members lie (a convolution's groups lie a kernel's taps apart).

    Example:
        >>> step = torch.tensor([[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]])
        >>> [columns.tolist() for columns in column_sets(step)]
        [[0, 1], [2, 3]]
    """
    columns = step.flatten(0, 1)
    if bool((columns == columns[:, :1]).all()):
        return [torch.arange(columns.shape[1])]
    _, label = torch.unique(columns, dim=1, return_inverse=True)
    sets = [torch.nonzero(label == value).flatten() for value in label.unique()]
    return sorted(sets, key=lambda indices: int(indices[0]))


def best_steps(
    step: Tensor,
    gram: Tensor,
    wanted: Tensor,
    fractions: Sequence[float],
    snap: Snap,
    *,
    shared: tuple[int, ...] = (),
) -> Tensor:
    """Of each row and set of columns the fraction of its step with the least error of the result.

    The error ``E |V x̂ - W x|²`` of values ``V`` is, but for a constant, ``tr(V G Vᵀ - 2 V Bᵀ)``
    with ``B = W C``. One set of columns is tried after another while the others stay at their best
    so far, so a group may make up for what another errs, and no choice raises the error.

    Args:
        step: ``(groups, rows, inputs)``.
        gram: ``G``, ``(groups, inputs, inputs)``.
        wanted: ``B``, of the shape of ``step``.
        fractions: what to try beside the step itself.
        snap: rounds the weights to nearest.
        shared: the dimensions of ``(groups, rows)`` that have one step together.

    Returns:
        The steps, of the shape of ``step``.
    """
    gram, wanted, best = gram.double(), wanted.double(), step.clone()
    values = snap(torch.arange(step.shape[-1]), step)
    slope = values.double() @ gram - wanted
    for columns in column_sets(step):
        own = gram[:, columns][:, :, columns]
        least = torch.zeros(step.shape[:2], dtype=torch.float64, device=step.device)
        given = step[..., columns]
        before, chosen = values[..., columns], given
        moved = torch.zeros_like(before, dtype=torch.float64)
        for fraction in fractions:
            tried = given * fraction
            change = snap(columns, tried).double() - before.double()
            gain = (change * (2.0 * slope[..., columns] + change @ own)).sum(-1)
            for dim in shared:
                gain = gain.sum(dim, keepdim=True).expand_as(gain)
            better = gain < least
            least = torch.where(better, gain, least)
            chosen = torch.where(better[..., None], tried, chosen)
            moved = torch.where(better[..., None], change, moved)
        best[..., columns] = chosen
        slope += moved @ gram[:, columns]
    return best
