"""The roofline: how fast a layer could run at most, what holds it back, and what fewer bits gain.

A layer of ``F`` operations that moves ``B`` bytes needs ``max(F / peak, B / bandwidth)`` seconds at
least. The larger term is what bounds it. Source: Williams, Waterman and Patterson, "Roofline: an
insightful visual performance model for multicore architectures", Communications of the ACM, 2009.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from quantkit.errors import TargetError
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.work import WIDTHS, LayerWork, ModelWork

Bound: TypeAlias = Literal["memory", "compute"]


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What a device can do at most.

    Attributes:
        name: of the device.
        peaks: operations a second (a product and a sum are two) by what is multiplied, dense.
        bandwidth: bytes a second between memory and chip.
        source: ``measured`` on this machine, or from the ``table`` of data sheets.
        notes: how it was measured, or the data sheet.
    """

    name: str
    peaks: Mapping[Dtype, float]
    bandwidth: float
    source: Literal["measured", "table"]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.peaks:
            raise ValueError(f"{self.name}: a roof needs the peak of one format at least")
        for what, value in (*self.peaks.items(), ("bandwidth", self.bandwidth)):
            if not value > 0:
                raise ValueError(f"{self.name}: {what} must be positive, got {value}")

    def peak(self, dtype: Dtype) -> float:
        """Operations a second in a format.

        Raises:
            TargetError: the device does not multiply in it, or it is not known how fast.
        """
        found = self.peaks.get(dtype)
        if found is None:
            raise TargetError(
                f"{self.name}: no peak is known for {dtype}; choose of: {', '.join(self.peaks)}"
            )
        return found

    def ridge(self, dtype: Dtype) -> float:
        """Operations a byte from which on a layer is bound by compute.

        Example:
            >>> roof = Roof(name="a", peaks={Dtype.INT8: 200.0}, bandwidth=50.0, source="table")
            >>> roof.ridge(Dtype.INT8)
            4.0
        """
        return self.peak(dtype) / self.bandwidth

    def seconds(self, work: LayerWork, dtype: Dtype, *, weights: Dtype | None = None) -> float:
        """The least time that a layer can take; see `place` for the arguments."""
        compute = work.flops / self.peak(dtype) if work.flops else 0.0
        return max(compute, work.bytes(dtype, weights=weights) / self.bandwidth)


@dataclass(frozen=True, kw_only=True)
class RooflinePoint:
    """Where one layer lies under a roof.

    Attributes:
        name: of the layer.
        dtype: what it runs in.
        flops: its operations.
        bytes: what it moves at least.
        intensity: operations a byte.
        bound: what holds it back at the roof.
        attainable: seconds at the roof.
        seconds: as measured; ``None`` where it was not.
        gains: by format of fewer bits, how many times as fast it could be at most, at the roof of
            that format beside its own roof; never under 1, since a layer may stay as it is.
    """

    name: str
    dtype: Dtype
    flops: int
    bytes: float
    intensity: float
    bound: Bound
    attainable: float
    seconds: float | None
    gains: Mapping[Dtype, float]

    @property
    def distance(self) -> float | None:
        """Measured time over attainable time: 1 is at the roof.

        Under 1 where the layer's data came from caches, which are faster than the memory that the
        roof stands for. ``None`` where nothing was measured, or nothing is computed or moved.
        """
        if self.seconds is None or not self.attainable:
            return None
        return self.seconds / self.attainable


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """All layers of a model under one roof."""

    roof: Roof
    batch: int
    points: tuple[RooflinePoint, ...]

    @property
    def attainable(self) -> float:
        """Seconds of the whole model at the roof, a layer after the other."""
        return sum(point.attainable for point in self.points)

    def gain(self, dtype: Dtype) -> float:
        """How many times as fast the whole model could be at most with every layer in a format."""
        faster = sum(p.attainable / p.gains.get(dtype, 1.0) for p in self.points)
        return self.attainable / faster if faster else 1.0

    def share(self, bound: Bound) -> float:
        """The share of the attainable time that is bound by memory, or by compute; 0 to 1."""
        held = sum(p.attainable for p in self.points if p.bound == bound)
        return held / self.attainable if self.attainable else 0.0

    def to_json(self) -> str:
        """Every field, with ``distance`` of each point."""
        data = asdict(self)
        for row, point in zip(data["points"], self.points, strict=True):
            row["distance"] = point.distance
        return json.dumps(data)

    def table(self, most: int = 15) -> str:
        """A line for each of the ``most`` layers with the longest times, and one for the model."""
        return "\n".join(self._lines(most))

    def _lines(self, most: int) -> Iterator[str]:
        formats = list(dict.fromkeys(f for point in self.points for f in point.gains))
        yield f"{self.roof.name} ({self.roof.source}), batch {self.batch}"
        gains = "".join(f"{f'{f} at most':>17}" for f in formats)
        yield f"{'layer':<32} {'in':<5} {'MFLOP':>9} {'kB':>9} {'FLOP/B':>7}  bound   " + (
            f"{'roof us':>9} {'took us':>9} {'times':>6}{gains}"
        )
        longest = sorted(self.points, key=lambda p: -(p.seconds or p.attainable))
        for p in longest[:most]:
            took = "-" if p.seconds is None else f"{1e6 * p.seconds:.1f}"
            away = "-" if p.distance is None else f"{p.distance:.1f}"
            gained = "".join(
                f"{f'{p.gains[f]:.2f} x' if f in p.gains else '-':>17}" for f in formats
            )
            yield (
                f"{p.name[-32:]:<32} {p.dtype:<5} {p.flops / 1e6:9.3f} {p.bytes / 1e3:9.1f} "
                f"{p.intensity:7.2f}  {p.bound:<7} {1e6 * p.attainable:9.1f} {took:>9} {away:>6}"
                f"{gained}"
            )
        if len(longest) > most:
            yield f"and {len(longest) - most} more layers"
        told = ", ".join(f"{f} {self.gain(f):.2f} x" for f in formats)
        yield (
            f"all layers at the roof: {1e3 * self.attainable:.3f} ms, {self.share('memory'):.0%} "
            "of it bound by memory" + (f"; the most that fewer bits gain: {told}" if told else "")
        )


def place(
    work: LayerWork,
    seconds: float | None,
    roof: Roof,
    dtype: Dtype = Dtype.FP32,
    *,
    weights: Dtype | None = None,
) -> RooflinePoint:
    """Where a layer lies under a roof.

    Args:
        work: what it computes and moves.
        seconds: what it took; ``None`` where it was not measured.
        roof: of the device that it ran on.
        dtype: what it multiplies, and what its activations are held in.
        weights: what its weights are held in, where that differs.

    Raises:
        TargetError: the roof has no peak for ``dtype``.
        ValueError: ``seconds`` is not positive.

    Example:
        >>> from quantkit.graph.abstract import Kind
        >>> roof = Roof(
        ...     name="a", peaks={Dtype.FP32: 1e12, Dtype.INT8: 4e12}, bandwidth=1e11,
        ...     source="table")
        >>> fc = LayerWork(name="fc", kind=Kind.LINEAR, macs=10**6, read=10**3, weights=10**6,
        ...     written=10**3)
        >>> point = place(fc, 1e-4, roof)
        >>> point.bound, round(point.intensity, 2), round(point.distance, 2)
        ('memory', 0.5, 2.5)
        >>> {str(f): round(gain, 2) for f, gain in point.gains.items()}
        {'int8': 4.0}
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{work.name}: a measured time is positive, got {seconds}")
    moved = work.bytes(dtype, weights=weights)
    attainable = roof.seconds(work, dtype, weights=weights)
    compute = work.flops / roof.peak(dtype)
    return RooflinePoint(
        name=work.name, dtype=dtype, flops=work.flops, bytes=moved, seconds=seconds,
        intensity=work.flops / moved if moved else 0.0, attainable=attainable,
        bound="compute" if compute > moved / roof.bandwidth else "memory",
        gains=gains(work, roof, dtype, weights=weights),
    )  # fmt: skip


def gains(
    work: LayerWork, roof: Roof, dtype: Dtype, *, weights: Dtype | None = None
) -> dict[Dtype, float]:
    """How many times as fast a layer could be at most in each format of fewer bits.

    It compares two roofs, not a measured time with a roof: what a better kernel in the same format
    would gain is `RooflinePoint.distance`, and no merit of fewer bits.
    """
    own = roof.seconds(work, dtype, weights=weights)
    found: dict[Dtype, float] = {}
    for other in roof.peaks:
        least = roof.seconds(work, other)
        if WIDTHS[other] < WIDTHS[dtype]:
            found[other] = max(1.0, own / least) if least else 1.0
    return found


def roofline(
    work: ModelWork,
    roof: Roof,
    *,
    seconds: Mapping[str, float] | None = None,
    dtypes: Mapping[str, Dtype] | Dtype = Dtype.FP32,
    weights: Mapping[str, Dtype] | None = None,
) -> Roofline:
    """All layers of a model under one roof.

    Args:
        work: of `sizes.work_of` or `sizes.work_of_onnx`; for engines that fuse, of fused graphs.
        roof: of the device.
        seconds: what each layer took, by name; layers without a time are placed without.
        dtypes: what each layer runs in, by name, or one for all; layers that are not named run in
            fp32.
        weights: what the weights of a layer are held in, by its name, where that differs.
    """
    times, stored = seconds or {}, weights or {}

    def in_format(name: str) -> Dtype:
        return dtypes if isinstance(dtypes, Dtype) else dtypes.get(name, Dtype.FP32)

    points = tuple(
        place(
            layer, times.get(layer.name), roof, in_format(layer.name),
            weights=stored.get(layer.name),
        )
        for layer in work.layers
    )  # fmt: skip
    return Roofline(roof=roof, batch=work.batch, points=points)
