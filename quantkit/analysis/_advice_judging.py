"""Whether a change of the outputs is more than chance: paired by samples. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.analysis._advice_values import Measured
from quantkit.analysis.losses import decibels

#: A gain of so many standard errors: of a dozen trials at two, chance would pass one in four.
SIGNIFICANT = 3.0
#: What is worth a change of the recipe, in dB.
MATTERS = 0.1
#: What is worth a slower model, in dB.
WORTH_TIME = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Noises:
    """The outputs' noise.

    Attributes:
        each: of each sample (of each call, where outputs do not count samples), ``(samples,)``.
        whole: of all together: each output's squared error over its squares, added up.
    """

    each: Tensor
    whole: float


def energies(
    found: Sequence[Tensor], wanted: Sequence[Tensor], samples: int, real: Tensor | None = None
) -> Tensor:
    """Squared error and squares of each output for each sample, ``(outputs, rows, 2)`` float64.

    Args:
        found: outputs of the quantized model.
        wanted: of the float model; what is no number in it does not count.
        samples: of the call; where an output has another first dimension there is one row.
        real: which positions are no padding.

    Example:
        >>> y = torch.ones(2, 4)
        >>> energies([1.5 * y], [y], 2).tolist()
        [[[1.0, 4.0], [1.0, 4.0]]]
    """
    apart = all(y.dim() > 0 and y.shape[0] == samples for y in wanted)
    rows = samples if apart else 1
    sums = torch.zeros(len(wanted), rows, 2, dtype=torch.float64)
    for index, (y, own) in enumerate(zip(wanted, found, strict=True)):
        told = y.isfinite() & _counted(y, real)
        clean = torch.where(told, y.double(), 0.0)
        error = torch.where(told, own.double() - clean, 0.0)
        for place, values in enumerate((error, clean)):
            sums[index, :, place] = values.square().reshape(rows, -1).sum(1).cpu()
    return sums


def noises(sums: Sequence[Tensor]) -> Noises:
    """The noise of what `energies` found for each call.

    Example:
        >>> noises([torch.tensor([[[1.0, 4.0], [1.0, 4.0]]], dtype=torch.float64)]).whole
        0.25
    """
    tiny = torch.finfo(torch.float64).tiny
    joined = torch.cat(list(sums), dim=1)
    each = (joined[..., 0] / joined[..., 1].clamp(min=tiny)).sum(0)
    total = joined.sum(1)
    whole = float((total[:, 0] / total[:, 1].clamp(min=tiny)).sum())
    return Noises(each=each, whole=math.inf if math.isnan(whole) else whole)


def paired(before: Noises, after: Noises) -> Measured:
    """What each sample gains, on the mean, and how sure that is.

    Example:
        >>> one = Noises(each=torch.full((4,), 0.1), whole=0.1)
        >>> two = Noises(each=torch.full((4,), 0.01), whole=0.01)
        >>> print(paired(one, two))
        10.0 to 20.0 dB (+10.00 ± 0.00 on 4 samples)
    """
    # A sample without noise has gained or lost no more than the floor tells.
    floor = torch.tensor(1e-15, dtype=torch.float64)
    own = torch.maximum(before.each.double(), floor)
    gains = 10.0 * torch.log10(own / torch.maximum(after.each.double(), floor))
    gains = gains.nan_to_num(nan=-math.inf)
    count = gains.numel()
    error = float(gains.std()) / math.sqrt(count) if count > 1 else math.inf
    return Measured(
        before=decibels(before.whole), after=decibels(after.whole), gain=float(gains.mean()),
        error=math.inf if math.isnan(error) else error, samples=count,
    )  # fmt: skip


def helps(found: Measured, *, costs: bool = False) -> bool:
    """Whether a change is worth making: beyond chance, and enough for what it costs.

    Example:
        >>> found = Measured(before=20.0, after=20.5, gain=0.5, error=0.1, samples=16)
        >>> helps(found), helps(found, costs=True)
        (True, False)
    """
    least = WORTH_TIME if costs else MATTERS
    sure = found.gain > SIGNIFICANT * found.error
    return sure and found.gain >= least and found.after > found.before


def _counted(y: Tensor, real: Tensor | None) -> Tensor:
    """Which values are no padding."""
    whole = torch.ones((), dtype=torch.bool, device=y.device)
    if real is None or y.dim() != 3 or y.shape[:2] != real.shape:
        return whole
    return real.to(y.device)[:, :, None]
