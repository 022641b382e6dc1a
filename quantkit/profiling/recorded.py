"""What a runtime recorded of its runs, and how runs are timed beside that."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.files import replacing
from quantkit.profiling.recording import Recording
from quantkit.profiling.steps import Step


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Some runs of a model in one runtime.

    Attributes:
        recording: with its profiler; ``None`` where nothing could run.
        walls: seconds of runs without a profiler, by batch size; the first is that of the
            recording.
        runtime: its name and version.
        steps: what it made of the model; empty where it does not tell.
        notes: what it cannot tell, and why.
    """

    recording: Recording | None
    walls: Mapping[int, Sequence[float]]
    runtime: str
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = field(default=())


def leave(trace: bytes, path: Path) -> None:
    """Write a trace, whole or not at all; compressed where the file's name ends in ``.gz``.

    Raises:
        ExportError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(trace) if path.suffix == ".gz" else trace)


def timed(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of some runs."""
    found: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def around(
    run: Callable[[], object], profiled: Callable[[], object], *, runs: int, warm: int
) -> list[float]:
    """Time runs before and after a profile, so that both saw the same machine.

    Args:
        run: the model, without a profiler.
        profiled: all the runs with it.
        runs: how many without it, in all.
        warm: how many before do not count.

    Returns:
        Seconds of each run without a profiler.
    """
    timed(run, warm)
    before = timed(run, (runs + 1) // 2)
    profiled()
    timed(run, 1)
    return [*before, *timed(run, (runs + 1) // 2)]
