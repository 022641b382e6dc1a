"""The peak of memory in each phase of quantkit: resident, and allocated on the GPU."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from quantkit import nvtx
from quantkit.benching import memory

#: Seconds between two samples, where the system does not keep peaks that can be set back.
_EVERY: Final = 0.005


@dataclass(frozen=True, kw_only=True)
class PhasePeak:
    """The memory of one phase, in bytes.

    Attributes:
        name: of the phase, such as ``calibrate``.
        depth: how many phases it ran inside of.
        seconds: how long it took.
        before: resident when it began.
        peak: the most resident while it ran.
        after: resident when it ended.
        gpu_peak: the most that PyTorch had allocated on the current GPU; ``None`` without one.
        how: ``kernel``: the system kept the peak; ``sampled``: it was looked at every 5 ms, so that
            a shorter peak is missed.
    """

    name: str
    depth: int
    seconds: float
    before: int
    peak: int
    after: int
    gpu_peak: int | None
    how: Literal["kernel", "sampled"]

    @property
    def added(self) -> int:
        """The most that the phase took beside what was resident when it began."""
        return self.peak - self.before


@dataclass
class Phases:
    """The phases that have ended, in the order that they began."""

    peaks: list[PhasePeak] = field(default_factory=list)

    def table(self) -> str:
        """A line for each phase."""
        lines = [f"{'phase':<16}{'seconds':>9}{'before MB':>11}{'peak MB':>9}{'added MB':>10}"]
        gpu = any(peak.gpu_peak is not None for peak in self.peaks)
        lines[0] += f"{'GPU MB':>9}" if gpu else ""
        for p in self.peaks:
            on_gpu = "-" if p.gpu_peak is None else f"{p.gpu_peak / 1e6:.1f}"
            lines.append(
                f"{'  ' * p.depth + p.name:<16}{p.seconds:9.2f}{p.before / 1e6:11.1f}"
                f"{p.peak / 1e6:9.1f}{p.added / 1e6:10.1f}" + (f"{on_gpu:>9}" if gpu else "")
            )
        return "\n".join(lines)


@contextmanager
def record() -> Iterator[Phases]:
    """Measure each phase that this thread goes through, until the block ends.

    Phases are those that `nvtx.phase` announces. The process's peak is set back at the begin and
    the end of each, so two recordings in one process would disturb each other.

    Example:
        >>> import numpy as np
        >>> with record() as phases:
        ...     with nvtx.phase("calibrate"):
        ...         block = np.ones(8_000_000)  # 64 MB
        >>> [peak.name for peak in phases.peaks], phases.peaks[0].added > 30_000_000
        (['calibrate'], True)
    """
    meter = _Meter()
    with meter.sampling(), nvtx.listening(meter.measured):
        yield meter.phases


@dataclass
class _Open:
    """A phase that has not ended."""

    name: str
    depth: int
    place: int
    before: int
    peak: int
    gpu_peak: int | None
    began: float


class _Meter:
    """Keeps the peak of each open phase, also across the phases inside it."""

    def __init__(self) -> None:
        self.phases = Phases()
        self._open: list[_Open] = []
        self._begun = 0
        self._kept: dict[int, PhasePeak] = {}
        self._by_kernel = memory.forget_peak()
        self._sampled = 0
        self._lock = threading.Lock()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Look at what is resident now and then, where the system keeps no peak."""
        if self._by_kernel:
            yield
            return
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure one phase."""
        self._fold()
        now = memory.resident()
        entry = _Open(
            name=name, depth=len(self._open), place=self._begun, before=now, peak=now,
            gpu_peak=_gpu_now(), began=time.perf_counter(),
        )  # fmt: skip
        self._begun += 1
        self._open.append(entry)
        try:
            yield
        finally:
            self._fold()
            self._open.pop()
            self._keep(entry)

    def _fold(self) -> None:
        """Add the peak since the last time to all phases that are open, and begin a new one."""
        resident = memory.resident()
        with self._lock:
            peak = memory.peak_resident() if self._by_kernel else self._sampled
            self._sampled = resident
        gpu_peak = _gpu_peak()
        for entry in self._open:
            entry.peak = max(entry.peak, peak, resident)
            if gpu_peak is not None:
                entry.gpu_peak = max(entry.gpu_peak or 0, gpu_peak)
        if self._by_kernel:
            memory.forget_peak()

    def _keep(self, entry: _Open) -> None:
        self._kept[entry.place] = PhasePeak(
            name=entry.name, depth=entry.depth, seconds=time.perf_counter() - entry.began,
            before=entry.before, peak=entry.peak, after=memory.resident(),
            gpu_peak=entry.gpu_peak, how="kernel" if self._by_kernel else "sampled",
        )  # fmt: skip
        # In the order that they began: a phase stands before those inside it.
        self.phases.peaks[:] = [self._kept[place] for place in sorted(self._kept)]

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_EVERY):
            resident = memory.resident()
            with self._lock:
                self._sampled = max(self._sampled, resident)


def _gpu() -> Any:
    """PyTorch, where it is loaded and has begun to use a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _gpu_now() -> int | None:
    torch = _gpu()
    return None if torch is None else int(torch.cuda.memory_allocated())


def _gpu_peak() -> int | None:
    """The most allocated since the last time; it begins anew."""
    torch = _gpu()
    if torch is None:
        return None
    peak = int(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return peak
