"""What a profiler recorded, whichever it was, and the figures that follow: pure functions."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from quantkit.profiling.kinds import KernelKind, Work
from quantkit.profiling.report import KernelTime, LayerTime, Totals

#: Start and end, in seconds.
Span: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One run of one kernel.

    Attributes:
        name: of the kernel, as the profiler prints it.
        op: the operator that asked for it; empty where it is not known.
        layer: of the model; empty where it is not known.
        run: which run of the model, from 0.
        start: in seconds, on the recording's clock.
        seconds: its own time, without that of others that it called.
        dtype: of its first input, where the profiler tells it; else empty.
        blocks_per_sm: thread blocks for each multiprocessor.
    """

    name: str
    op: str
    layer: str
    run: int
    start: float
    seconds: float
    dtype: str = ""
    blocks_per_sm: float | None = None

    @property
    def span(self) -> Span:
        """From its start, of its own time."""
        return self.start, self.start + self.seconds


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Some runs of a model.

    Attributes:
        device: where the kernels ran.
        calls: of kernels, in the order in which they ran.
        runs: when each run of the model began and ended.
        launches: how long the processor took to queue the kernels of each run, in seconds; empty
            on a processor.
    """

    device: Literal["cpu", "cuda"]
    calls: tuple[Call, ...]
    runs: tuple[Span, ...]
    launches: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a recording without a run, or with calls outside of all runs."""
        if not self.runs:
            raise ValueError("a recording has one run or more")
        if any(not 0 <= call.run < len(self.runs) for call in self.calls):
            raise ValueError(f"a call is of one of the {len(self.runs)} runs")

    def without_first(self) -> Recording:
        """Without the first run, in which a profiler sets itself up; as it is where it is all."""
        if len(self.runs) < 2:
            return self
        calls = tuple(replace(call, run=call.run - 1) for call in self.calls if call.run > 0)
        return replace(self, calls=calls, runs=self.runs[1:], launches=self.launches[1:])


#: Tells what a call ran on, in which type, and how sure that is.
Classify: TypeAlias = Callable[[Call], KernelKind]


def union(spans: Iterable[Span]) -> float:
    """How long any of some spans lasts, in seconds.

    Example:
        >>> union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
        4.0
    """
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def totals(recording: Recording, walls: Sequence[float] = ()) -> Totals:
    """Medians over the runs, and the quickest.

    Args:
        recording: with the profiler.
        walls: seconds of runs without it, if any were measured.
    """
    by_run: dict[int, list[Span]] = defaultdict(list)
    for call in recording.calls:
        by_run[call.run].append(call.span)
    busy = [_busy(recording.device, by_run[run]) for run in range(len(recording.runs))]
    return Totals(
        runs=len(recording.runs),
        wall_s=statistics.median(walls) if walls else None,
        profiled_s=statistics.median(end - start for start, end in recording.runs),
        busy_s=statistics.median(busy),
        quickest_s=min(walls or [end - start for start, end in recording.runs]),
        least_busy_s=min(busy),
        launch_s=statistics.median(recording.launches) if recording.launches else None,
    )


def _busy(device: str, spans: Sequence[Span]) -> float:
    """Kernels of a GPU overlap; an operator's own time may lie on both sides of what it calls."""
    if device == "cuda":
        return union(spans)
    return sum(end - start for start, end in spans)


def kernel_times(recording: Recording, classify: Classify) -> tuple[KernelTime, ...]:
    """A row for each kernel of each layer, the slowest first.

    Times are sums within a run and medians over the runs, so that a run which something else
    disturbed does not count; shares are of the sum of these.
    """
    groups: dict[tuple[str, str, str, str], list[Call]] = defaultdict(list)
    for call in recording.calls:
        groups[call.layer, call.op, call.name, call.dtype].append(call)
    found = [(calls, _median_s(calls, len(recording.runs))) for calls in groups.values()]
    whole = sum(seconds for _, seconds in found)
    rows = [
        _kernel_time(calls, classify(calls[0]), seconds, whole, len(recording.runs))
        for calls, seconds in found
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _median_s(calls: Sequence[Call], runs: int) -> float:
    """The sum of a run, median over the runs; one without any call counts as 0."""
    sums = [0.0] * runs
    for call in calls:
        sums[call.run] += call.seconds
    return statistics.median(sums)


def _kernel_time(
    calls: Sequence[Call], kind: KernelKind, seconds: float, whole: float, runs: int
) -> KernelTime:
    first = calls[0]
    blocks = [call.blocks_per_sm for call in calls if call.blocks_per_sm is not None]
    return KernelTime(
        name=first.name,
        layer=first.layer,
        op=first.op,
        unit=kind.unit,
        confidence=kind.confidence,
        dtype=str(kind.dtype),
        work=kind.work,
        family=kind.family,
        why=kind.why,
        calls=len(calls) / runs,
        seconds=seconds,
        share=min(1.0, seconds / whole) if whole > 0.0 else 0.0,
        blocks_per_sm=min(blocks, default=None),
    )


#: Work that a layer's precision is read from, before all other.
_PRODUCTS = frozenset({Work.CONVOLUTION, Work.MATMUL, Work.ATTENTION})


def layer_times(
    recording: Recording, kernels: Sequence[KernelTime], words: dict[str, str]
) -> tuple[LayerTime, ...]:
    """A row for each layer, in the order in which they run; kernels of no layer are left out.

    Args:
        recording: tells the order.
        kernels: of ``kernel_times``, the slowest first.
        words: quantkit's word for a type that a kernel has another for.
    """
    order = dict.fromkeys(call.layer for call in recording.calls if call.layer)
    groups: dict[str, list[KernelTime]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.layer].append(kernel)
    return tuple(_layer_time(name, groups[name], words) for name in order)


def _layer_time(name: str, kernels: Sequence[KernelTime], words: dict[str, str]) -> LayerTime:
    products = [kernel for kernel in kernels if kernel.work in _PRODUCTS]
    told = [k.dtype for k in (*products, *kernels) if k.dtype != "unknown"]
    precision = next(iter(told), "")
    spent: Counter[str] = Counter()
    for kernel in kernels:
        spent[kernel.unit] += kernel.seconds  # type: ignore[assignment]  # a Counter adds floats
    unit = max(kernels, key=lambda kernel: spent[kernel.unit]).unit
    ops = dict.fromkeys(kernel.op or kernel.name for kernel in kernels)
    return LayerTime(
        name=name,
        op=", ".join(ops),
        precision=words.get(precision, precision),
        unit=unit,
        kernels=len(kernels),
        seconds=sum(kernel.seconds for kernel in kernels),
        share=min(1.0, sum(kernel.share for kernel in kernels)),
    )
