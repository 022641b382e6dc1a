"""Cross-layer equalization: matrices of weights in, scales of channels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def strongest(weight: Tensor, groups: int = 1) -> Tensor:
    """The largest ``|w|`` over the taps: ``(groups, rows, inputs)``, float64.

    A factor on a channel acts on it as it acts on the weight.

    Args:
        weight: ``(outputs, inputs / groups, ...)``.
        groups: of the convolution.
    """
    taps = weight.detach().double().abs().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    return taps.amax(-1)


def row_ranges(matrix: Tensor) -> Tensor:
    """The largest weight of each output channel, ``(channels,)``."""
    return matrix.amax(-1).flatten()


def column_ranges(matrix: Tensor, repeat: int = 1) -> Tensor:
    """The largest weight on each input channel, ``(channels,)``.

    Args:
        matrix: ``(groups, rows, inputs)``.
        repeat: how many inputs in a row belong to one channel.
    """
    return matrix.amax(-2).reshape(-1, repeat).amax(-1)


def equalizing_scale(first: Tensor, second: Tensor) -> Tensor:
    """``s = sqrt(r1 / r2)`` (Nagel et al. 2019, arXiv:1906.04721, equation 11); 1 for dead ones.

    Divided by ``s`` the first range, and multiplied by it the second, both are ``sqrt(r1 r2)``.

    Example:
        >>> equalizing_scale(torch.tensor([8.0, 0.0]), torch.tensor([2.0, 1.0])).tolist()
        [2.0, 1.0]
    """
    alive = (first > 0) & (second > 0)
    ratio = torch.where(alive, first, torch.ones_like(first)) / torch.where(
        alive, second, torch.ones_like(second)
    )
    return ratio.sqrt()


@dataclass(frozen=True)
class Joint:
    """Channels that one layer makes and others read, by the numbers of their matrices.

    Attributes:
        first: the layer that makes them.
        readers: ``(layer, repeat)`` of each that reads them.
        reach: the largest values of the channels, ``(channels,)``; ``None`` where that is not
            asked for.
    """

    first: int
    readers: tuple[tuple[int, int], ...]
    reach: Tensor | None = None


def equalized(
    matrices: Sequence[Tensor],
    joints: Sequence[Joint],
    *,
    bound: float = 1e3,
    tolerance: float = 1e-4,
    most: int = 100,
) -> list[Tensor]:
    """The scale of each joint's channels, when all joints are equalized in turn until none moves.

    What is made equal to the range of the readers' weights is that of the first layer's weights;
    where a joint has a ``reach``, its geometric mean with that.

    Args:
        matrices: of each layer, from `strongest`.
        joints: in order; a layer may be in two, as the middle of three.
        bound: scales lie between ``1 / bound`` and ``bound``.
        tolerance: relative change of a scale at which to stop.
        most: rounds.

    Returns:
        ``(channels,)`` each, float64, by which the first layer's rows are to be divided and the
        readers' columns multiplied.
    """
    now = [matrix.clone() for matrix in matrices]
    scales = [torch.ones_like(row_ranges(now[joint.first])) for joint in joints]
    for _ in range(most):
        moved = 0.0
        for index, joint in enumerate(joints):
            step = _step(now, joint, scales[index])
            whole = (scales[index] * step).clamp(1.0 / bound, bound)
            step = whole / scales[index]
            scales[index] = whole
            now[joint.first] = rows_divided(now[joint.first], step)
            for n, repeat in joint.readers:
                now[n] = columns_multiplied(now[n], step, repeat)
            moved = max(moved, float(step.log().abs().max()))
        if moved < tolerance:
            break
    return scales


def _step(now: Sequence[Tensor], joint: Joint, scale: Tensor) -> Tensor:
    """By how much more a joint's channels are to be scaled."""
    given = row_ranges(now[joint.first])
    if joint.reach is not None:
        given = (given * joint.reach / scale).sqrt()
    ranges = [column_ranges(now[n], repeat) for n, repeat in joint.readers]
    return equalizing_scale(given, torch.stack(ranges).amax(0))


def rows_divided(matrix: Tensor, scale: Tensor) -> Tensor:
    """``matrix / scale``, one scale an output channel; ``(groups, rows, inputs, ...)``."""
    return matrix / scale.reshape(*matrix.shape[:2], *[1] * (matrix.dim() - 2))


def columns_multiplied(matrix: Tensor, scale: Tensor, repeat: int = 1) -> Tensor:
    """``matrix * scale``, one scale an input channel; ``(groups, rows, inputs, ...)``."""
    spread = scale.repeat_interleave(repeat).reshape(matrix.shape[0], 1, matrix.shape[2])
    return matrix * spread.reshape(*spread.shape, *[1] * (matrix.dim() - 3))


def read_constant(weight: Tensor, constant: Tensor, groups: int = 1, repeat: int = 1) -> Tensor:
    """What a layer makes of an input that is the same everywhere: ``W c`` over inputs and taps.

    Args:
        weight: ``(outputs, inputs / groups, ...)``.
        constant: of each channel, ``(channels,)``.
        groups: of the convolution.
        repeat: how many inputs in a row belong to one channel.

    Returns:
        ``(outputs,)``, float64.

    Example:
        >>> read_constant(torch.tensor([[1.0, 2.0]]), torch.tensor([10.0, 1.0])).tolist()
        [12.0]
    """
    sums = weight.detach().double().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    columns = constant.double().repeat_interleave(repeat).reshape(groups, -1, 1)
    return (sums.sum(-1) @ columns).flatten()
