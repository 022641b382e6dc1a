"""What a bench found: a row for each runtime, precision and batch size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import quantkit
from quantkit.benching import timing
from quantkit.benching.memory import Memory
from quantkit.benching.quality import Quality
from quantkit.benching.runner import Device
from quantkit.benching.timing import Ratio, Turns
from quantkit.hardware import Machine


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the rows are timed.

    Attributes:
        turns: how many turns each row gets, where the time suffices.
        turn_ms: how long a turn is to take, in milliseconds; it is one run at least.
        most_runs: in one turn.
        least_turns: that each row gets however long they take.
        seconds: how much time each row may take, on average, for its turns.
        warm_runs: how often a row runs before any time counts, at least.
        warm_ms: and for how long, at least.
        timeout_s: how long a worker may take to load, or for one turn.

    Example:
        >>> Method(turns=0)
        Traceback (most recent call last):
        ValueError: turns must be over 0, got 0
    """

    turns: int = 20
    turn_ms: float = 100.0
    most_runs: int = 100
    least_turns: int = 3
    seconds: float = 10.0
    warm_runs: int = 3
    warm_ms: float = 300.0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be over 0, got {value}")

    def __str__(self) -> str:
        """In two sentences, for people."""
        return (
            f"Each row is a process of its own; after a warm-up they take turns of about "
            f"{self.turn_ms:g} ms in rotating order, each turn begun by a run that does not count, "
            "while the others wait. Times are of single runs, from call to outputs; speed-up is "
            "reference time / row time, median over the turns, ± half of what lies between the "
            "quartiles; memory is the peak from loading the model on, less what the runtime alone "
            "takes."
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime at one batch size.

    Attributes:
        target: the runtime.
        device: where it ran.
        precision: ``float``, the recipe, or the file.
        batch: samples a run.
        error: why there is no result; ``None`` where there is one.
        turns: milliseconds of each run, by turn.
        reference: whether the other rows of this batch size and device are compared with it.
        ratio: how many times as fast as the reference; ``None`` where there is none.
        build_s: seconds to build what is deployed; ``None`` where that is the file.
        load_s: seconds from there to the outputs of the first run, compiling just in time included.
        memory: ``None`` where the row failed.
        file_bytes: of the file, or of the engine that was built of it.
        quality: of its outputs, on the data; measured at the largest batch size.
    """

    target: str
    device: Device
    precision: str
    batch: int
    error: str | None = None
    turns: Turns = ()
    reference: bool = False
    ratio: Ratio | None = None
    build_s: float | None = None
    load_s: float | None = None
    memory: Memory | None = None
    file_bytes: int | None = None
    quality: Quality | None = None

    @property
    def median_ms(self) -> float | None:
        """Of all runs; ``None`` where the row failed."""
        return timing.median(self.turns) if self.turns else None

    @property
    def p95_ms(self) -> float | None:
        """What 95 % of all runs do not exceed."""
        return timing.p95(self.turns) if self.turns else None

    @property
    def samples_per_s(self) -> float | None:
        """At the median run."""
        return timing.throughput(self.turns, self.batch) if self.turns else None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A runtime, or a precision in it, that was not compared, and why.

    Attributes:
        target: the runtime.
        device: where it would run.
        precision: ``None`` where none was.
        reason: why.
    """

    target: str
    device: Device
    precision: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All rows, what they were measured on and how, and what is not there.

    Attributes:
        rows: by device, batch size and precision.
        left_out: what has no row, and why.
        machine: the processor, GPUs and runtimes.
        threads: how many of the processor's each row might use.
        method: how it was measured.
        data: what quality is of, and how many samples; empty where it was not measured.
    """

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    machine: Machine
    threads: int
    method: Method = field(default_factory=Method)
    data: str = ""

    @property
    def ok(self) -> bool:
        """Whether any row has a result."""
        return any(row.error is None for row in self.rows)

    def to_json(self) -> str:
        """Every field, and what follows from the times; ``null`` where a figure is not finite."""
        rows = [
            {**asdict(row), "median_ms": row.median_ms, "p95_ms": row.p95_ms,
             "samples_per_s": row.samples_per_s,
             "memory_bytes": None if row.memory is None else row.memory.model}
            for row in self.rows
        ]  # fmt: skip
        machine = asdict(self.machine)
        if self.machine.cpu is not None:  # a set has no order, and JSON no sets
            machine["cpu"]["features"] = sorted(self.machine.cpu.features)
        return json.dumps(
            _plain(
                {"quantkit": quantkit.__version__, "ok": self.ok, "rows": rows,
                 "left_out": [asdict(x) for x in self.left_out], "threads": self.threads,
                 "data": self.data, "method": {**asdict(self.method), "text": str(self.method)},
                 "machine": machine}
            )
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all.

        Raises:
            ExportError: it cannot be written.
        """
        from quantkit.files import replacing

        with replacing(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    def __str__(self) -> str:
        """The tables as text, 120 columns wide."""
        from quantkit.benching.table import as_text

        return as_text(self, width=120)


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value
