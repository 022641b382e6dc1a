"""What is counted of the values that go through a grid: sums of fixed size, call by call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.analysis._diagnosis_values import NAMED, OUTLIER, GridUse, Outlier, Role
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec

#: Share of the values that may lie beyond each end: one in a thousand, both ends together.
RARE = 0.0005
#: Half the step of fp8_e4m3 below its largest value, 448.
_HALF_STEP_FP8 = 16.0


def ends(spec: QuantSpec) -> tuple[int, int]:
    """The lowest and the highest code that a range is mapped to.

    Of a symmetric grid no range needs the code below ``-qmax``.

    Example:
        >>> ends(QuantSpec()), ends(QuantSpec(symmetric=False))
        ((-127, 127), (-128, 127))
    """
    low = 2 * spec.middle - spec.qmax if spec.symmetric and not spec.is_float else spec.qmin
    return low, spec.qmax


def unused_share(low: Tensor, high: Tensor, spec: QuantSpec) -> Tensor:
    """The part of a grid that values from code ``low`` to code ``high`` leave out.

    Args:
        low: smallest code of each slice, which may lie beyond the end.
        high: largest code.
        spec: the grid.

    Example:
        >>> unused_share(torch.tensor([0.0, -500.0]), torch.tensor([127.0, 500.0]), QuantSpec())
        tensor([0.5000, 0.0000])
    """
    first, last = ends(spec)
    reached = high.clamp(first, last) - low.clamp(first, last)
    return 1.0 - reached / (last - first)


def headroom(histogram: Tensor, spec: QuantSpec) -> float:
    """The share by which a range would be shorter if one value in a thousand were cut off.

    A symmetric range is as long as its larger side.

    Args:
        histogram: how many values have each code, from ``spec.qmin`` on.
        spec: the grid, of integers.

    Example:
        >>> counts = torch.zeros(256, dtype=torch.int64)
        >>> counts[128 : 128 + 13] = 1000  # codes 0 to 12
        >>> counts[255] = 1
        >>> round(headroom(counts, QuantSpec()), 2)
        0.91
    """
    total = int(histogram.sum())
    if total == 0:
        return 1.0
    first = int((histogram.cumsum(0) > RARE * total).nonzero()[0]) + spec.qmin
    last = spec.qmax - int((histogram.flip(0).cumsum(0) > RARE * total).nonzero()[0])
    if spec.symmetric:
        used = max(spec.middle - first, last - spec.middle) / (spec.qmax - spec.middle)
    else:
        used = (last - first) / (spec.qmax - spec.qmin)
    return 1.0 - min(used, 1.0)


def outliers(peaks: Tensor) -> tuple[float, int, tuple[Outlier, ...]]:
    """The spread of channels, how many are outliers, and the largest of those.

    Args:
        peaks: largest magnitude of each channel.

    Returns:
        The largest over the median; how many are `OUTLIER` times the median or more; the first of
        them. The median is that of the channels that are not all zero.

    Example:
        >>> outliers(torch.tensor([1.0, 2.0, 1.0, 32.0, 0.0]))
        (32.0, 1, (Outlier(channel=3, times=32.0),))
    """
    alive = peaks[peaks > 0.0]
    if alive.numel() == 0:
        return 1.0, 0, ()
    times = (peaks / alive.median()).double()
    order = torch.argsort(times, descending=True, stable=True)
    found = [int(i) for i in order if float(times[i]) >= OUTLIER]
    named = tuple(Outlier(channel=i, times=float(times[i])) for i in found[:NAMED])
    return float(times.max()), len(found), named


@dataclass(eq=False)
class Peaks:
    """The largest magnitude of each channel; nothing where the number of channels changes."""

    values: Tensor | None = None
    mixed: bool = False

    def update(self, x: Tensor, axis: int) -> None:
        """Take in a tensor whose dimension ``axis`` counts channels."""
        if self.mixed or x.numel() == 0 or x.dim() == 0:
            return
        finite = x.detach().nan_to_num(0.0, 0.0, 0.0)
        own = finite.abs().movedim(axis, 0).flatten(1).amax(1).float()
        if self.values is not None and self.values.shape != own.shape:
            self.mixed, self.values = True, None
            return
        self.values = own if self.values is None else torch.maximum(self.values, own)


@dataclass(eq=False)
class Counts:
    """What goes through one grid.

    Attributes:
        name: of the grid.
        role: of what.
        qparams: the grid.
        peaks: of the channels.
    """

    name: str
    role: Role
    qparams: QParams
    peaks: Peaks = field(default_factory=Peaks)
    _sums: Tensor | None = None
    _range: tuple[Tensor, Tensor] | None = None
    _codes: tuple[Tensor, Tensor] | None = None
    _histogram: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in values, of a shape that fits the grid; what is no number does not count."""
        spec, told = self.qparams.spec, x.isfinite()
        if not told.all():
            x = x[told] if spec.axis is None else torch.where(told, x, 0.0)
        if x.numel() == 0:
            return
        scale, zero_point = numerics.broadcast(self.qparams, x.shape)
        x = x.detach().float()
        steps = x / scale + zero_point
        codes = steps if spec.is_float else steps.round()
        low, high = numerics.row_range(numerics.slices(codes, spec))
        error = (numerics.fake_quantize(x, self.qparams) - x).square()
        sums = [x.numel(), 0.0, _sum(error), 0.0, _sum(x.square())]
        half = _HALF_STEP_FP8 if spec.is_float else 0.5
        if bool((high > spec.qmax).any() | (low < spec.qmin).any()):
            beyond = (steps > spec.qmax + half) | (steps < spec.qmin - half)
            sums[1], sums[3] = int(beyond.sum()), _sum(error[beyond])
        found = torch.tensor(sums, dtype=torch.float64)
        self._sums = found if self._sums is None else self._sums + found
        self._range = _wider(self._range, (x.min(), x.max()))
        self._codes = _wider(self._codes, (low, high))
        if not spec.is_float:
            self._count(codes.clamp_(spec.qmin, spec.qmax))

    def _count(self, codes: Tensor) -> None:
        spec = self.qparams.spec
        numbers = (codes - spec.qmin).to(torch.int32).flatten()
        found = torch.bincount(numbers, minlength=spec.qmax - spec.qmin + 1).cpu()
        self._histogram = found if self._histogram is None else self._histogram + found

    def use(self, channels: Peaks | None = None) -> GridUse | None:
        """What was found; ``None`` where nothing came through.

        Args:
            channels: as the layer that reads the tensor has them; by default the grid's own.
        """
        if self._sums is None or self._range is None or self._codes is None:
            return None
        spec = self.qparams.spec
        count, beyond, error, clipped, power = self._sums.tolist()
        first, last = ends(spec)
        steps = self.qparams.scale, self.qparams.zero_point
        low, high = ((end - steps[1]) * steps[0] for end in (first, last))
        peaks = (channels or self.peaks).values
        spread, many, largest = (1.0, 0, ()) if peaks is None else outliers(peaks)
        return GridUse(
            grid=self.name, role=self.role, spec=str(spec),
            low=float(self._range[0]), high=float(self._range[1]),
            grid_low=float(low.min()), grid_high=float(high.max()),
            saturated=beyond / count, clipped=clipped / error if error > 0.0 else 0.0,
            unused=float(unused_share(*self._codes, spec).mean()),
            headroom=None if self._histogram is None else headroom(self._histogram, spec),
            noise=error / power if power > 0.0 else 0.0,
            channels=1 if peaks is None else peaks.numel(),
            spread=spread, outliers=many, largest=largest,
        )  # fmt: skip


def _sum(x: Tensor) -> float:
    return float(x.sum(dtype=torch.float64))


def _wider(
    known: tuple[Tensor, Tensor] | None, found: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    if known is None:
        return found
    return torch.minimum(known[0], found[0]), torch.maximum(known[1], found[1])
