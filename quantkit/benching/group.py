"""Runs the rows of one batch size on one device: workers that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.benching import timing
from quantkit.benching.memory import Memory
from quantkit.benching.planning import Cell
from quantkit.benching.process import RowError, Worker
from quantkit.benching.report import Method, Row
from quantkit.benching.serving import Order
from quantkit.progress import track


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the rows of a group have in common.

    Attributes:
        batch: samples a run.
        inputs: the file with those of one run.
        threads: of the processor's, for each row.
        method: how they are timed.
        folder: for what is built; each cell has one of its own in it, whatever the batch.
        title: of the progress bars.
    """

    batch: int
    inputs: Path
    threads: int
    method: Method
    folder: Path
    title: str


def measure(
    cells: Sequence[Cell], task: Task, evaluate: Callable[[Cell, Worker], None] | None
) -> list[Row]:
    """A row for each cell, in their order.

    Args:
        cells: of one device.
        task: the rest.
        evaluate: what to do with each worker once all is timed.
    """
    group = _Group(cells, task)
    for index in track([i for i, cell in enumerate(cells) if cell.builds], f"{task.title}: builds"):
        group.attempt(index, group.build)
    with ExitStack() as stack:
        # All at once: what they import, they import beside one another.
        for index in group.left:
            group.workers[index] = stack.enter_context(Worker(group.orders[index]))
        for index in track(group.left, f"{task.title}: loads"):
            group.attempt(index, group.load)
        group.take_turns()
        for index in group.left:
            group.attempt(index, group.finish)
        if evaluate is not None:
            for index in track(group.left, f"{task.title}: outputs"):
                evaluate(cells[index], group.workers[index])
    return list(_compared(group.rows, group.errors))


class _Group:
    """The orders and workers of all rows, and what is known of each."""

    def __init__(self, cells: Sequence[Cell], task: Task) -> None:
        self.task, self.method = task, task.method
        self.orders = [_order(cell, task, index) for index, cell in enumerate(cells)]
        self.workers: dict[int, Worker] = {}
        self.errors: dict[int, str] = {}
        self.turns: dict[int, list[list[float]]] = {i: [] for i in range(len(cells))}
        self.counts: dict[int, int] = {}
        self.rows = [
            Row(
                target=cell.target, device=cell.device, precision=cell.precision, batch=task.batch,
                reference=cell.reference, file_bytes=cell.file_bytes,
            )
            for cell in cells
        ]  # fmt: skip

    @property
    def left(self) -> list[int]:
        """The rows in which nothing went wrong yet."""
        return [index for index in range(len(self.rows)) if index not in self.errors]

    def attempt(self, index: int, step: Callable[[int], None]) -> None:
        """Do something for one row; what goes wrong is its result."""
        try:
            step(index)
        except RowError as error:
            self.errors[index] = str(error)
            if index in self.workers:
                self.workers.pop(index).close()

    def build(self, index: int) -> None:
        """Have what is deployed built, by a process whose memory is not that of the row."""
        with Worker(self.orders[index]) as worker:
            worker.ready(self.method.timeout_s)
            told = worker.ask("build", "built", self.method.timeout_s)
        file = Path(told["file"])
        self.orders[index] = replace(self.orders[index], file=file)
        self.rows[index] = replace(
            self.rows[index], build_s=told["seconds"], file_bytes=file.stat().st_size
        )

    def load(self, index: int) -> None:
        """Load and warm up, and from that tell how many runs a turn is to have."""
        worker = self.workers[index]
        worker.ready(self.method.timeout_s)
        told = worker.ask("load", "loaded", self.method.timeout_s)
        warm = statistics.median(told["warm_ms"])
        self.counts[index] = timing.runs_a_turn(warm, self.method.turn_ms, self.method.most_runs)
        self.rows[index] = replace(self.rows[index], load_s=told["seconds"])

    def turn(self, index: int) -> None:
        """One turn of one worker; the others wait for their next request."""
        worker = self.workers[index]
        told = worker.ask("run", "ran", self.method.timeout_s, count=self.counts[index])
        self.turns[index].append(told["ms"])

    def take_turns(self) -> None:
        """As many rounds as are wanted, or as the time allows."""
        end = time.monotonic() + self.method.seconds * len(self.left)
        for number in track(range(self.method.turns), f"{self.task.title}: timing"):
            if time.monotonic() > end and number >= self.method.least_turns:
                break
            for index in timing.rotated(self.left, number):
                self.attempt(index, self.turn)

    def finish(self, index: int) -> None:
        """The times and the memory of a row."""
        told = self.workers[index].ask("memory", "memory", self.method.timeout_s)
        fields = {name: told[name] for name in Memory.__dataclass_fields__}
        turns = tuple(tuple(turn) for turn in self.turns[index])
        self.rows[index] = replace(self.rows[index], turns=turns, memory=Memory(**fields))


def _compared(rows: Sequence[Row], errors: Mapping[int, str]) -> Iterator[Row]:
    """With errors and ratios; the reference is the first row of the first precision that ran."""
    told = [
        Row(
            target=row.target, device=row.device, precision=row.precision, batch=row.batch,
            error=errors[index],
        )
        if index in errors
        else row
        for index, row in enumerate(rows)
    ]  # fmt: skip
    reference = next((row for row in told if row.reference and row.error is None), None)
    for row in told:
        ratio = None
        if reference is not None and row.error is None:
            ratio = timing.ratio(reference.turns, row.turns)
        yield replace(row, reference=row is reference, ratio=ratio)


def _order(cell: Cell, task: Task, index: int) -> Order:
    folder = task.folder / f"{cell.device}-{index}"
    folder.mkdir(exist_ok=True)
    return Order(
        runner=cell.target, device=cell.device, file=cell.file.resolve(), inputs=task.inputs,
        folder=folder, threads=task.threads, half=cell.half, warm_runs=task.method.warm_runs,
        warm_ms=task.method.warm_ms,
    )  # fmt: skip
