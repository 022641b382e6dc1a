"""The search for the threshold of least Kullback-Leibler divergence, for many histograms at once.

NVIDIA's published search (S7310, see ``calibrators/entropy.py``): for each number of bins i, P is
``bins[:i]`` with all beyond added to the last, and Q is ``bins[:i]`` merged to the levels of the
grid and spread again over the non-empty bins of each; the i of least KL(P ‖ Q) is chosen.

Done as written that costs i steps for each i. But a level of Q is one number, S / c (the samples
of its bins over how many of them are not empty), so with P = p / n and Q = q / m

    n KL = Σ p log p - Σ over levels S log(S / c) - (outliers) log(S / c of the last) - n log(n / m)

where the sums over bins are differences of running sums: each i then costs as many steps as there
are levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import xlogy

from quantkit.spec import QuantSpec

#: Numbers computed at once: bounds the memory of the search to some megabytes.
AT_ONCE = 1 << 17
#: Divergences that differ by less are equal: so much is the rounding of their sums.
EQUAL = 1e-11


def levels(spec: QuantSpec, *, one_sided: bool = False) -> Tensor:
    """Where the levels of a grid begin, as fractions of its threshold, with the end: 0 to 1.

    128 equal ones for int8; for FP8 those halfway between its values.

    Args:
        spec: the form of the grid.
        one_sided: the whole grid is on one side of zero.

    Example:
        >>> levels(QuantSpec(dtype="int4")).tolist()
        [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    """
    if spec.is_float:
        codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        between = (codes[1:] + codes[:-1]) / 2.0
        ends = torch.cat([codes[:1], between, codes[-1:]])
        return ends / ends[-1]
    count = spec.qmax - (spec.qmin if one_sided else spec.middle) + 1
    return torch.arange(count + 1, dtype=torch.float64) / count


def least(counts: Tensor, levels: Tensor, *, stride: int = 1) -> Tensor:
    """The number of bins, of each row, whose divergence is least; of equal ones the largest.

    The first bin, where zeros lie, counts as its neighbour does, as in NVIDIA's own code. Bins
    beyond the last that is not empty are no candidates. Nor, unlike there, are thresholds that more
    than half of the samples exceed: where one bin is left of P, Q is equal to it, and nothing
    seems lost.

    Args:
        counts: histograms of ``|x|``, ``(rows, bins)``.
        levels: where levels begin, ``(levels + 1,)``, from 0 to 1.
        stride: every so many candidates, from as many bins as there are levels.

    Returns:
        int64, ``(rows,)``, from 1 to ``bins``.
    """
    counts = counts.double().clone()
    counts[:, 0] = counts[:, 1]
    filled = counts > 0
    place = torch.arange(1, counts.shape[1] + 1, device=counts.device)
    last = (filled * place).amax(dim=1).clamp(min=1)
    first = min(levels.numel() - 1, counts.shape[1])
    candidates = torch.arange(first, counts.shape[1] + 1, stride, device=counts.device)
    # A level takes the bins from its beginning on: from the first integer at or above it.
    begins = torch.ceil(candidates.unsqueeze(1) * levels.to(counts.device)).long()
    step = max(1, AT_ONCE // begins.numel())
    found = []
    for i in range(0, counts.shape[0], step):
        some = slice(i, i + step)
        # Those up to the last bin of these rows: the others would be thrown away.
        some_candidates = max(1, int((candidates <= last[some].max()).sum()))
        found.append(
            _least(counts[some], last[some], candidates[:some_candidates], begins[:some_candidates])
        )
    return torch.cat(found)


def _least(counts: Tensor, last: Tensor, candidates: Tensor, begins: Tensor) -> Tensor:
    divergence = _divergence(counts, candidates, begins)
    divergence[candidates > last.unsqueeze(1)] = torch.inf
    inside = _running(counts)
    divergence[inside[:, candidates] < inside[:, -1:] / 2.0] = torch.inf
    smallest = divergence.amin(dim=1, keepdim=True)
    best = (candidates * (divergence <= smallest + EQUAL)).amax(dim=1)
    return torch.where(smallest.squeeze(1).isinf(), last, best)


def _divergence(counts: Tensor, candidates: Tensor, begins: Tensor) -> Tensor:
    """KL(P ‖ Q) of every candidate, ``(rows, candidates)``; infinite where Q lacks what P has.

    Args:
        counts: ``(rows, bins)``.
        candidates: numbers of bins, ``(candidates,)``.
        begins: where their levels begin, with the end, ``(candidates, levels + 1)``.
    """
    total = counts.sum(dim=1, keepdim=True)
    samples, filled, terms = (_running(x) for x in (counts, counts > 0, xlogy(counts, counts)))
    merged, spread = (
        running.index_select(1, begins.view(-1)).view(-1, *begins.shape).diff(dim=2)
        for running in (samples, filled)
    )
    spread = merged / spread.clamp_(min=1)
    inside = samples[:, candidates]
    outside = total - inside
    end = counts[:, candidates - 1]
    own = terms[:, candidates - 1] + xlogy(end + outside, end + outside)
    # The level of the last bin: a grid of many levels may have empty ones behind it.
    holder = (begins < candidates.unsqueeze(1)).sum(dim=1) - 1
    behind = spread[:, torch.arange(candidates.numel()), holder]
    cross = xlogy(merged, spread).sum(dim=2) + xlogy(outside, behind)
    divergence = (own - cross) / total - torch.log(total) + torch.log(inside)
    lacking = (end == 0) & (outside > 0)
    return torch.where(lacking, torch.inf, divergence)


def _running(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2 … numbers of each row."""
    return torch.nn.functional.pad(x.double().cumsum(dim=1), (1, 0))
