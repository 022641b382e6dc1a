"""Histograms of fixed size that extend their range by merging bins.

A histogram has ``2 * half`` bins a row, ``half`` a power of two. Bin ``half + k`` counts the
samples with ``trunc(x / 2**exponent) = k``: the bin in the middle holds what is nearest to zero,
from both sides, and the width of all others is a power of two. A width that doubles joins pairs of
bins exactly, since ``trunc(trunc(x) / 2) = trunc(x / 2)``. Therefore the counts depend on nothing
but the samples, whatever the order and the batches they came in, and two histograms merge into
exactly the one that all samples would have given.

The exponent is the smallest with which every sample has a bin, so the largest magnitude falls into
the upper half of them: with ``half = 4096`` a range is resolved into 2,048 to 4,095 steps a side.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

#: The finest width, ``2**-126``: its reciprocal is the largest power of two in float32.
FINEST = -126
#: Samples binned at a time: the temporary copies then stay in the processor's cache.
CHUNK = 1 << 17
#: Neighbours count into so many copies of the bins in turn: a processor that adds to one bin twice
#: running (zeros behind a ReLU) waits for itself.
LANES = 2


def exponent_for(amax: Tensor, half: int) -> Tensor:
    """The smallest exponent whose ``half`` bins a side hold magnitudes up to ``amax``.

    Args:
        amax: finite, ``(rows,)``.
        half: bins a side, a power of two.

    Example:
        >>> exponent_for(torch.tensor([0.0, 1.0, 3.9, 4.0]), half=4).tolist()
        [-126, -1, 0, 1]
    """
    _, above = torch.frexp(amax)
    exponent = above - (half.bit_length() - 1)
    return torch.where(amax > 0, exponent, FINEST).clamp(min=FINEST).to(torch.int32)


def coarsen(counts: Tensor, exponent: Tensor, target: Tensor) -> Tensor:
    """The counts as they would be with the wider bins of ``target``.

    Args:
        counts: int64, ``(rows, 2 * half)``.
        exponent: int32, ``(rows,)``.
        target: int32, ``(rows,)``, nowhere below ``exponent``.

    Example:
        >>> counts = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
        >>> coarsen(counts, torch.tensor([0]), torch.tensor([1])).tolist()
        [[0, 0, 0, 3, 12, 13, 0, 0]]
    """
    half = counts.shape[1] // 2
    place = torch.arange(-half, half, device=counts.device)
    shift = (target - exponent).clamp(min=0, max=31).unsqueeze(1)
    joined = place.sign() * (place.abs() >> shift) + half
    return torch.zeros_like(counts).scatter_add_(1, joined, counts)


def add_(counts: Tensor, exponent: Tensor, samples: Tensor, amax: Tensor) -> None:
    """Count ``samples``, widening the bins first where one would have no place; in place.

    NaN and infinities count as zeros: the range, which is kept beside a histogram, tells of them.
    Nothing waits for the device.

    Args:
        counts: int64, ``(rows, 2 * half)``.
        exponent: int32, ``(rows,)``.
        samples: float32, ``(rows, samples)``.
        amax: their largest magnitudes, ``(rows,)``.
    """
    half = counts.shape[1] // 2
    if samples.device.type != "cpu" or torch.compiler.is_compiling():
        _add_at_once(counts, exponent, samples)
        return
    if samples.shape[0] == 1:
        _add_row(counts, exponent, samples[0], float(amax))
        return
    if not bool(torch.isfinite(amax).all()):
        samples = _clean(samples)
        amax = samples.abs().amax(dim=1)
    target = torch.maximum(exponent, exponent_for(amax, half))
    if not torch.equal(target, exponent):
        counts.copy_(coarsen(counts, exponent, target))
        exponent.copy_(target)
    _count(counts, samples, _reciprocal(target), half)


def _add_at_once(counts: Tensor, exponent: Tensor, samples: Tensor) -> None:
    """As `add_`, to the bit, without a branch on what the samples are."""
    half = counts.shape[1] // 2
    samples = _clean(samples)
    target = torch.maximum(exponent, exponent_for(samples.abs().amax(dim=1), half))
    counts.copy_(coarsen(counts, exponent, target))
    exponent.copy_(target)
    place = (samples * _reciprocal(target)).to(torch.int64) + half
    counts.scatter_add_(1, place, torch.ones_like(place[:, :1]).expand_as(place))


def _add_row(counts: Tensor, exponent: Tensor, samples: Tensor, amax: float) -> None:
    """As `add_`, to the bit, for one row: few operations, since this runs for each batch."""
    half = counts.shape[1] // 2
    if not math.isfinite(amax):
        samples = _clean(samples)
        amax = float(samples.abs().max())
    held = int(exponent)
    needed = FINEST if amax == 0.0 else math.frexp(amax)[1] - (half.bit_length() - 1)
    if needed > held:
        target = torch.full_like(exponent, needed)
        counts.copy_(coarsen(counts, exponent, target))
        exponent.fill_(needed)
    reciprocal = 2.0 ** -max(held, needed)
    lanes = _lanes(half, CHUNK)
    for part in torch.split(samples, CHUNK):
        places = (part * reciprocal).to(lanes.dtype)
        places += lanes[: part.numel()]
        found = torch.bincount(places, minlength=LANES * 2 * half)
        counts.add_(found.view(LANES, -1).sum(dim=0))


@lru_cache(maxsize=4)
def _lanes(half: int, count: int) -> Tensor:
    """What is added to the places of neighbours: the middle of each one's copy of the bins."""
    middles = (torch.arange(count, dtype=torch.int32) % LANES) * (2 * half) + half
    # The smaller integers are, the faster they are counted.
    return middles.to(torch.int16) if LANES * 2 * half <= 1 << 15 else middles


def _clean(samples: Tensor) -> Tensor:
    return samples.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _count(counts: Tensor, samples: Tensor, reciprocal: Tensor, half: int) -> None:
    """Add the samples' places to the counts, a chunk at a time; on a processor."""
    rows = samples.shape[0]
    first = torch.arange(rows, dtype=torch.int32).unsqueeze(1) * (2 * half) + half
    # Of many rows a chunk is as large as the counts, which are passed over for each.
    step = max(1, max(CHUNK, counts.numel()) // rows)
    for start in range(0, samples.shape[1], step):
        part = samples[:, start : start + step]
        places = (part * reciprocal).to(torch.int32)
        places += first
        found = torch.bincount(places.reshape(-1), minlength=counts.numel())
        counts += found.view_as(counts)


def _reciprocal(exponent: Tensor) -> Tensor:
    """``2**-exponent`` of shape ``(rows, 1)``, written as bits: a power may be off by one of them.

    Exact from `FINEST` to the 126 that the largest float needs with 4 bins a side.
    """
    return ((127 - exponent) << 23).view(torch.float32).unsqueeze(1)


def widths(exponent: Tensor) -> Tensor:
    """The width of the bins, float64, of the shape of ``exponent``.

    Example:
        >>> widths(torch.tensor([-1, 3])).tolist()
        [0.5, 8.0]
    """
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def magnitudes(counts: Tensor) -> Tensor:
    """The histogram of ``|x|``: ``(rows, half)``, bin k for ``trunc(|x| / width) = k``.

    Example:
        >>> magnitudes(torch.tensor([[0, 1, 2, 3]])).tolist()
        [[2, 4]]
    """
    half = counts.shape[1] // 2
    both = counts[:, half:].clone()
    both[:, 1:] += counts[:, 1:half].flip(1)
    return both


def sides(counts: Tensor) -> tuple[Tensor, Tensor]:
    """What lies below and above zero, each ``(rows, half)`` by magnitude.

    The middle bin, whose samples are zeros nearly always, counts as neither: its place is 0.

    Example:
        >>> [side.tolist() for side in sides(torch.tensor([[0, 1, 2, 3]]))]
        [[[0, 1]], [[0, 3]]]
    """
    half = counts.shape[1] // 2
    below, above = torch.zeros_like(counts[:, half:]), counts[:, half:].clone()
    below[:, 1:] = counts[:, 1:half].flip(1)
    above[:, 0] = 0
    return below, above


def power(counts: Tensor, exponent: Tensor) -> Tensor:
    """The sum of the squares of all samples, float64 ``(rows,)``, to half a bin's width."""
    both = magnitudes(counts).double()
    centers = torch.arange(both.shape[1], device=counts.device, dtype=torch.float64) + 0.5
    squares = centers.square() + 1.0 / 12.0
    squares[0] = 0.0
    return (both @ squares) * widths(exponent).square()


def check_bins(half: int) -> None:
    """Refuse a number of bins that does not merge.

    Raises:
        ValueError: it is no power of two, or below 4.
    """
    if half < 4 or not math.log2(half).is_integer():
        raise ValueError(f"a histogram has a power of two of bins a side, 4 or more, got {half}")
