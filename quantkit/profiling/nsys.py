"""Nsight Systems: run a command under it, and tell what is in the SQLite file that it exports."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.profiling._nsys_rows import Copy, Export, Kernel, Launch, Range
from quantkit.profiling.kernels import classify
from quantkit.profiling.nsys_summary import NsysCopy as NsysCopy
from quantkit.profiling.nsys_summary import NsysDevice as NsysDevice
from quantkit.profiling.nsys_summary import NsysKernel as NsysKernel
from quantkit.profiling.nsys_summary import NsysRange as NsysRange
from quantkit.profiling.nsys_summary import NsysSummary as NsysSummary

#: ``CUpti_ActivityMemcpyKind`` of CUPTI's documentation.
_COPY_KINDS: Final = {
    1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD",
    9: "HtoH", 10: "PtoP",
}  # fmt: skip
_NANO: Final = 1e-9
#: What a command prints goes there: on standard output is what quantkit tells of it.
_STANDARD_ERROR: Final = 2


def command(argv: Sequence[str], report: Path) -> list[str]:
    """The command line that runs ``argv`` under Nsight Systems, and exports SQLite.

    Example:
        >>> command(["python", "run.py"], Path("out"))[:3]
        ['nsys', 'profile', '--trace=cuda,nvtx,osrt']
    """
    return [
        "nsys", "profile", "--trace=cuda,nvtx,osrt", "--export=sqlite", "--force-overwrite=true",
        f"--output={report}", *argv,
    ]  # fmt: skip


def wrap(argv: Sequence[str], report: Path) -> Path:
    """Run a command under Nsight Systems, and return the SQLite file.

    Args:
        argv: the command.
        report: where to write, without a suffix: ``<report>.nsys-rep`` and ``<report>.sqlite``.

    Raises:
        MissingDependencyError: ``nsys`` is not installed.
        TargetError: it, or the command, failed.
    """
    if shutil.which("nsys") is None:
        raise MissingDependencyError(
            "nsys is not on the PATH; install NVIDIA Nsight Systems "
            "(https://developer.nvidia.com/nsight-systems), or profile without --nsys"
        )
    done = subprocess.run(command(argv, report), check=False, stdout=_STANDARD_ERROR)
    exported = report.with_name(report.name + ".sqlite")
    if done.returncode != 0 or not exported.exists():
        raise TargetError(
            f"nsys ended with {done.returncode} and exported "
            f"{'a file' if exported.exists() else 'nothing'}; its own output above tells why"
        )
    return exported


def read_nsys(path: Path | str) -> NsysSummary:
    """What the SQLite export of a report tells.

    Args:
        path: of a file that ``nsys profile --export=sqlite`` or ``nsys export`` wrote.

    Raises:
        ModelFileError: it is missing, or no SQLite file.
    """
    place = Path(path)
    if not place.is_file():
        raise ModelFileError(f"{place}: no such file; export one with nsys export --type sqlite")
    try:
        with closing(sqlite3.connect(f"{place.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            export = Export(opened)
            kernels = export.kernels()
            ranges = ranges_of(export.ranges(), export.launches(), kernels)
            return NsysSummary(
                kernels=_by_name(kernels), copies=_by_kind(export.copies()),
                devices=tuple(_devices(kernels, export.gpus())), ranges=ranges,
                missing=tuple(export.missing),
            )  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise ModelFileError(
            f"{place}: is no SQLite export ({error}); export one with nsys export --type sqlite"
        ) from error


def _by_name(kernels: Iterable[Kernel]) -> tuple[NsysKernel, ...]:
    times: dict[str, list[int]] = defaultdict(list)
    for kernel in kernels:
        times[kernel.name].append(kernel.end - kernel.start)
    rows = [
        NsysKernel(
            name=name, kind=classify(name), count=len(taken), seconds=_NANO * sum(taken),
            median=_NANO * statistics.median(taken),
        )
        for name, taken in times.items()
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _by_kind(copies: Iterable[Copy]) -> tuple[NsysCopy, ...]:
    kinds: dict[str, list[Copy]] = defaultdict(list)
    for copy in copies:
        kinds[_COPY_KINDS.get(copy.kind, f"kind {copy.kind}")].append(copy)
    rows = [
        NsysCopy(
            kind=kind, count=len(found), bytes=sum(c.bytes for c in found),
            seconds=_NANO * sum(c.end - c.start for c in found),
        )
        for kind, found in kinds.items()
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _devices(kernels: Sequence[Kernel], names: Mapping[int, str]) -> Iterator[NsysDevice]:
    """How full each device was; ``kernels`` by their start."""
    for device in sorted({kernel.device for kernel in kernels}):
        own = [kernel for kernel in kernels if kernel.device == device]
        until, last, busy, gap, before = own[0].start, own[0].name, 0, 0, ""
        for kernel in own:
            if kernel.start - until > gap:
                gap, before = kernel.start - until, last
            busy += max(0, kernel.end - max(until, kernel.start))
            if kernel.end > until:
                until, last = kernel.end, kernel.name
        yield NsysDevice(
            device=device, name=names.get(device, ""), span=_NANO * (until - own[0].start),
            busy=_NANO * busy, gap=_NANO * gap, before_gap=before,
        )  # fmt: skip


def ranges_of(
    ranges: Sequence[Range], launches: Iterable[Launch], kernels: Iterable[Kernel]
) -> tuple[NsysRange, ...]:
    """Ranges by name, with the kernels that their thread launched while they were open.

    Kernels run later than they are launched, so it is the launch that tells whose they are. Inside
    several ranges a kernel counts for each.
    """
    taken: dict[tuple[int, int], list[int]] = defaultdict(list)
    for kernel in kernels:
        taken[kernel.launch].append(kernel.end - kernel.start)
    # Begins before launches before ends of one moment; each event is (time, order, what).
    events: dict[int, list[tuple[int, int, Range | Launch]]] = defaultdict(list)
    for item in ranges:
        events[item.thread] += [(item.start, 0, item), (item.end, 2, item)]
    for launch in launches:
        if launch.key in taken:
            events[launch.thread].append((launch.start, 1, launch))
    ran: dict[str, list[int]] = {item.name: [] for item in ranges}
    for of_thread in events.values():
        for name, times in _launched(of_thread, taken):
            ran[name] += times
    rows = [
        NsysRange(
            name=name, count=sum(r.name == name for r in ranges),
            seconds=_NANO * sum(r.end - r.start for r in ranges if r.name == name),
            kernels=len(times), kernel_seconds=_NANO * sum(times),
        )
        for name, times in ran.items()
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def _launched(
    events: list[tuple[int, int, Range | Launch]], taken: Mapping[tuple[int, int], list[int]]
) -> Iterator[tuple[str, list[int]]]:
    """For each launch of one thread, the names of the ranges that were open."""
    open_ranges: list[Range] = []
    for _, order, item in sorted(events, key=lambda event: event[:2]):
        if isinstance(item, Range):
            if order == 0:
                open_ranges.append(item)
            elif item in open_ranges:
                open_ranges.remove(item)
            continue
        for name in {found.name for found in open_ranges}:
            yield name, taken[item.key]
