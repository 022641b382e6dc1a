"""What a report of Nsight Systems tells: kernels, copies, how full the GPU was, ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantkit.profiling.kinds import KernelKind, Unit


@dataclass(frozen=True, kw_only=True)
class NsysKernel:
    """All runs of one kernel.

    Attributes:
        name: as the compiler made it, demangled.
        kind: what the name tells of unit, type and work.
        count: how often it ran.
        seconds: of all runs.
        median: seconds of one run.
    """

    name: str
    kind: KernelKind
    count: int
    seconds: float
    median: float


@dataclass(frozen=True, kw_only=True)
class NsysCopy:
    """All copies of one kind, such as ``HtoD``, from host to device."""

    kind: str
    count: int
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NsysDevice:
    """How one GPU was filled, from its first kernel's start to its last kernel's end.

    Attributes:
        device: its number.
        name: empty where the export does not tell.
        span: seconds from first to last.
        busy: seconds in which one kernel ran at least.
        gap: seconds of the longest time without any.
        before_gap: the kernel that ended before it; empty without a gap.
    """

    device: int
    name: str
    span: float
    busy: float
    gap: float
    before_gap: str

    @property
    def idle(self) -> float:
        """The share of the span in which no kernel ran; 0 to 1."""
        return 1.0 - self.busy / self.span if self.span else 0.0


@dataclass(frozen=True, kw_only=True)
class NsysRange:
    """All NVTX ranges of one name.

    Attributes:
        name: of the range, such as ``quantkit: calibrate`` or ``layer1.0.conv1 (Conv2d)``.
        count: how many there were.
        seconds: of the processor, from begin to end.
        kernels: kernels that were launched inside, wherever they ran later.
        kernel_seconds: of these kernels.
    """

    name: str
    count: int
    seconds: float
    kernels: int
    kernel_seconds: float


@dataclass(frozen=True, kw_only=True)
class NsysSummary:
    """What an export tells; the longest first.

    Attributes:
        missing: tables and columns that the export has not: what depends on them is empty.
    """

    kernels: tuple[NsysKernel, ...]
    copies: tuple[NsysCopy, ...]
    devices: tuple[NsysDevice, ...]
    ranges: tuple[NsysRange, ...]
    missing: tuple[str, ...]

    @property
    def kernel_seconds(self) -> float:
        """Of all kernels."""
        return sum(kernel.seconds for kernel in self.kernels)

    def share(self, unit: Unit) -> float:
        """The share of all kernels' time on one unit, by their names; 0 to 1."""
        ran = sum(k.seconds for k in self.kernels if k.kind.unit is unit)
        return ran / self.kernel_seconds if self.kernel_seconds else 0.0

    def table(self, most: int = 15) -> str:
        """Devices, kernels, copies and ranges, a line each."""
        return "\n".join(self._lines(most))

    def _lines(self, most: int) -> Iterator[str]:
        for d in self.devices:
            yield (
                f"GPU {d.device} {d.name}: busy {1e3 * d.busy:.3f} of {1e3 * d.span:.3f} ms, "
                f"idle {d.idle:.1%}, longest gap {1e3 * d.gap:.3f} ms"
            )
        yield f"{'ms':>9} {'share':>6} {'count':>6}  {'unit':<13}{'type':<9}kernel"
        for k in self.kernels[:most]:
            share = k.seconds / self.kernel_seconds if self.kernel_seconds else 0.0
            yield (
                f"{1e3 * k.seconds:9.3f} {share:6.1%} {k.count:6}  {k.kind.unit:<13}"
                f"{k.kind.dtype:<9}{k.name[:80]}"
            )
        for c in self.copies:
            yield f"{1e3 * c.seconds:9.3f} copy {c.kind}: {c.count}, {c.bytes / 1e6:.3f} MB"
        for r in self.ranges[:most]:
            yield (
                f"{1e3 * r.seconds:9.3f} range {r.name}: {r.count}, {r.kernels} kernels of "
                f"{1e3 * r.kernel_seconds:.3f} ms"
            )
        for what in self.missing:
            yield f"the export has no {what}"
