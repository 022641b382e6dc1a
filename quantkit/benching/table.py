"""A bench as tables: one for each device and batch size, and below them what they mean."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from quantkit.benching.report import BenchReport, LeftOut, Row

#: From so many columns on all figures of a row stand in one line.
WIDE: Final = 108


@dataclass(frozen=True)
class _Column:
    """A figure of a row, as text; ``None`` where the row has none."""

    title: str
    text: Callable[[Row], str | None]


def shown(value: float | None) -> str | None:
    """Three digits that count, and no exponent.

    Example:
        >>> [shown(x) for x in (0.01234, 1.234, 12.34, 1234.5)]
        ['0.0123', '1.23', '12.3', '1,234']
    """
    if value is None:
        return None
    if value <= 0.0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{min(digits, 4)}f}"


def _megabytes(value: int | None) -> str | None:
    return None if value is None else shown(value / 1e6)


def _memory(row: Row) -> int | None:
    return None if row.memory is None else row.memory.model


def _speed_up(row: Row) -> str | None:
    if row.reference:
        return "reference"
    return None if row.ratio is None else f"{row.ratio.median:.2f} ±{row.ratio.spread:.2f}"


def _sqnr(row: Row) -> str | None:
    value = None if row.quality is None else row.quality.sqnr
    if value is None:
        return None
    return "equal" if value == math.inf else f"{value:.1f}"


def _top1(row: Row) -> str | None:
    share = None if row.quality is None else row.quality.accuracy
    return None if share is None else f"{100.0 * share:.2f}"


_SPEED: Final = (
    _Column("median ms", lambda row: shown(row.median_ms)),
    _Column("p95 ms", lambda row: shown(row.p95_ms)),
    _Column("speed-up", _speed_up),
    _Column("samples/s", lambda row: shown(row.samples_per_s)),
)
_MEMORY: Final = _Column("memory MB", lambda row: _megabytes(_memory(row)))
_WORTH: Final = (
    _Column("file MB", lambda row: _megabytes(row.file_bytes)),
    _Column("SQNR dB", _sqnr),
    _Column("top-1 %", _top1),
)


def render(report: BenchReport, width: int) -> RenderableType:
    """All that people are told, for a terminal of ``width`` columns."""
    wide = width >= WIDE
    parts: list[RenderableType] = []
    for (device, batch), rows in _groups(report.rows):
        parts.append(Text(_title(report, device, batch), style="bold"))
        worth = _WORTH if wide else ()
        parts.append(_table((*_SPEED, _MEMORY, *worth), rows))
        parts.append(Text())
    if not wide:
        parts += _worth(report)
    parts += [*_errors(report.rows), *_left_out(report), *_notes(report)]
    return Group(*parts)


def as_text(report: BenchReport, width: int) -> str:
    """The same without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(render(report, width))
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def _groups(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, int], list[Row]]]:
    for key, found in groupby(rows, key=lambda row: (row.device, row.batch)):
        yield key, list(found)


def _title(report: BenchReport, device: str, batch: int) -> str:
    place = "the GPU" if device == "cuda" else _threads(report.threads)
    return f"Batch {batch}, {place}"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'} of the CPU"


def _table(columns: Sequence[_Column], rows: Sequence[Row]) -> Table:
    """The rows, without the columns that none of them fills."""
    filled = [c for c in columns if any(c.text(row) is not None for row in rows)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    # Names are folded, never cut: people copy them from here.
    table.add_column("runtime", overflow="fold")
    table.add_column("precision", overflow="fold")
    for column in filled:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        figures = [column.text(row) or "-" for column in filled]
        if row.error is not None:
            figures = ["failed", *figures[1:]]
        style = "red" if row.error is not None else "dim" if row.reference else ""
        table.add_row(row.target, row.precision, *figures, style=style)
    return table


def _worth(report: BenchReport) -> Iterable[RenderableType]:
    """What does not depend on the batch size, once."""
    last: dict[tuple[str, str, str], Row] = {}
    for row in report.rows:
        if row.error is None:
            last[row.device, row.target, row.precision] = row
    if last:
        yield Text("Size and outputs", style="bold")
        yield _table(_WORTH, list(last.values()))
        yield Text()


def _errors(rows: Iterable[Row]) -> Iterator[RenderableType]:
    failed = [row for row in rows if row.error is not None]
    for row in failed:
        text = Text("failed ", style="bold red")
        text.append(
            f"{row.target} {row.precision}, batch {row.batch}: {row.error}",
            style="not bold default",
        )
        yield text
    if failed:
        yield Text()


def _left_out(report: BenchReport) -> Iterator[RenderableType]:
    """One line a reason."""
    if not report.left_out:
        return
    yield Text("Left out", style="bold")
    known: list[Row | LeftOut] = [*report.rows, *report.left_out]
    every = {(x.device, x.precision) for x in known if x.precision is not None}
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for item in report.left_out:
        names = reasons.setdefault((item.device, item.reason), {})
        names.setdefault(item.target, []).extend([item.precision] if item.precision else [])
    for (device, reason), targets in reasons.items():
        all_of_it = {precision for where, precision in every if where == device}
        named = ", ".join(
            target if not of or set(of) == all_of_it else f"{target} {' and '.join(of)}"
            for target, of in targets.items()
        )
        where = " on a GPU" if device == "cuda" else ""
        yield Text(f"  {named}{where}: {reason}")
    yield Text()


def _notes(report: BenchReport) -> Iterator[RenderableType]:
    """What it was measured on, and how."""
    machine = report.machine
    cpu = "an unknown processor" if machine.cpu is None else machine.cpu.name
    vnni = "" if machine.cpu is None else ", VNNI" if machine.cpu.has_vnni else ", no VNNI"
    gpus = ", ".join(device.gpu.name for device in machine.gpus.devices) or "no GPU"
    runtimes = ", ".join(found for found in machine.runtimes.values() if found)
    yield Text(f"On {cpu} ({_threads(report.threads)}{vnni}), {gpus}; {runtimes}.", style="dim")
    yield Text(str(report.method), style="dim")
    if report.data:
        yield Text(f"SQNR is beside the reference, over {report.data}.", style="dim")
