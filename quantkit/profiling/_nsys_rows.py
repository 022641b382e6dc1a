"""Rows of the SQLite file that Nsight Systems exports, as far as a version of it has them.

Source: NVIDIA, Nsight Systems, SQLite Export Schema Reference,
https://docs.nvidia.com/nsight-systems/2021.5/nsys-exporter/exported_data.html. Tables are made only
for what was recorded, and columns have come and gone, so each is looked up first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

KERNELS: Final = "CUPTI_ACTIVITY_KIND_KERNEL"
COPIES: Final = "CUPTI_ACTIVITY_KIND_MEMCPY"
CALLS: Final = "CUPTI_ACTIVITY_KIND_RUNTIME"
RANGES: Final = "NVTX_EVENTS"
STRINGS: Final = "StringIds"
GPUS: Final = "TARGET_INFO_GPU"

#: ``NVTX_EVENTS.eventType`` of ranges that are pushed and popped, and of those begun and ended.
_RANGE_TYPES: Final = (59, 60)
#: Bits of a global identifier that tell the process: those above the thread's 24.
_PROCESS: Final = 0x1000000


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel; times in nanoseconds."""

    name: str
    start: int
    end: int
    device: int
    launch: tuple[int, int]


@dataclass(frozen=True)
class Copy:
    """One copy; ``kind`` is the number that CUPTI gives it."""

    kind: int
    bytes: int
    start: int
    end: int


@dataclass(frozen=True)
class Launch:
    """The call that put a kernel or copy into a queue."""

    key: tuple[int, int]
    thread: int
    start: int


@dataclass(frozen=True)
class Range:
    """A range of NVTX."""

    name: str
    thread: int
    start: int
    end: int


@dataclass
class Export:
    """An open export, and what it was found to lack."""

    connection: sqlite3.Connection
    missing: list[str] = field(default_factory=list)

    def kernels(self) -> list[Kernel]:
        """All runs of kernels, by their start."""
        names = self._strings()
        found = self._select(
            KERNELS, ("start", "end", "deviceId", "demangledName", "shortName", "correlationId",
                      "globalPid"), needed=2,
        )  # fmt: skip
        return sorted(
            (
                Kernel(_named(names, full, short), start, end, device or 0, _key(pid, number))
                for start, end, device, full, short, number, pid in found
            ),
            key=lambda kernel: kernel.start,
        )

    def copies(self) -> list[Copy]:
        """All copies."""
        found = self._select(COPIES, ("start", "end", "bytes", "copyKind"), needed=2)
        return [Copy(kind or 0, size or 0, start, end) for start, end, size, kind in found]

    def launches(self) -> list[Launch]:
        """All calls of the CUDA runtime and driver."""
        found = self._select(CALLS, ("start", "correlationId", "globalTid"), needed=3)
        return [Launch(_key(thread, number), thread, start) for start, number, thread in found]

    def ranges(self) -> list[Range]:
        """All ranges that ended."""
        names = self._strings()
        found = self._select(
            RANGES, ("start", "end", "text", "textId", "globalTid", "eventType"), needed=2
        )
        return [
            Range(text or names.get(number, "without a name"), thread or 0, start, end)
            for start, end, text, number, thread, kind in found
            if end is not None and (kind is None or kind in _RANGE_TYPES)
        ]

    def gpus(self) -> dict[int, str]:
        """The names of devices, by number."""
        found = self._select(GPUS, ("id", "name"), needed=2)
        return {number: str(name) for number, name in found}

    def _strings(self) -> dict[int, str]:
        return {number: str(text) for number, text in self._select(STRINGS, ("id", "value"), 2)}

    def _select(self, table: str, columns: Sequence[str], needed: int) -> Iterator[tuple[Any, ...]]:
        """Rows with the columns asked for, ``None`` for those that are not there.

        Without one of the first ``needed`` columns there are no rows.
        """
        there = {row[1] for row in self.connection.execute(f"PRAGMA table_info({table})")}
        if not there:
            self._lacks(f"table {table}")
            return
        absent = [name for name in columns if name not in there]
        for name in absent:
            self._lacks(f"column {table}.{name}")
        if any(name in absent for name in columns[:needed]):
            return
        asked = ", ".join("NULL" if name in absent else f'"{name}"' for name in columns)
        yield from self.connection.execute(f"SELECT {asked} FROM {table}")  # names are ours

    def _lacks(self, what: str) -> None:
        if what not in self.missing:
            self.missing.append(what)


def _named(names: dict[int, str], full: object, short: object) -> str:
    """The full name, else the short one; older exports hold the text itself."""
    for found in (full, short):
        if isinstance(found, str):
            return found
        if isinstance(found, int) and found in names:
            return names[found]
    return "without a name"


def _key(identifier: int | None, number: int | None) -> tuple[int, int]:
    """The process and its number for a call: numbers are unique in a process only."""
    process = 0 if identifier is None else identifier // _PROCESS % _PROCESS
    return process, -1 if number is None else number
