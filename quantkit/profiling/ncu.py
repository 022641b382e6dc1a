"""Nsight Compute: hardware counters of each kernel, which tell what its name can only suggest."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.profiling.kinds import Confidence, Unit

_TIME: Final = "gpu__time_duration.sum"
_TENSOR_CYCLES: Final = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
_TENSOR_INSTRUCTIONS: Final = "sm__inst_executed_pipe_tensor.sum"
_DRAM: Final = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
_DRAM_BYTES: Final = ("dram__bytes_read.sum", "dram__bytes_write.sum")

#: What is counted; one that a GPU has not comes back as ``n/a``.
METRICS: Final = (_TIME, _TENSOR_CYCLES, _TENSOR_INSTRUCTIONS, _DRAM, *_DRAM_BYTES)

#: What a command prints goes there: on standard output is what quantkit tells of it.
_STANDARD_ERROR: Final = 2

_COLUMNS: Final = ("ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value")
#: Factors to seconds, bytes and shares.
_UNITS: Final[Mapping[str, float]] = {
    "": 1.0, "inst": 1.0, "%": 0.01, "byte": 1.0, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9,
    "second": 1.0, "s": 1.0, "msecond": 1e-3, "ms": 1e-3, "usecond": 1e-6, "us": 1e-6,
    "nsecond": 1e-9, "ns": 1e-9,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NcuKernel:
    """What the counters tell of one run of a kernel; ``None`` where one was not counted.

    Attributes:
        name: of the kernel.
        unit: tensor cores where they executed anything, else CUDA cores.
        confidence: ``counters``, or ``unknown`` where no counter of tensor cores is there.
        seconds: of the run, at the clock that Nsight Compute sets.
        tensor: share of active cycles in which the tensor pipe was busy; 0 to 1.
        dram: share of the memory's peak throughput; 0 to 1.
        dram_bytes: bytes that were read from and written to the memory.
    """

    name: str
    unit: Unit
    confidence: Confidence
    seconds: float | None
    tensor: float | None
    dram: float | None
    dram_bytes: float | None


def command(argv: Sequence[str], log: Path) -> list[str]:
    """The command line that counts all kernels of ``argv``, and writes CSV to ``log``.

    Example:
        >>> command(["python", "run.py"], Path("out.csv"))[:3]
        ['ncu', '--csv', '--print-units=base']
    """
    return [
        "ncu", "--csv", "--print-units=base", "--target-processes=all",
        f"--metrics={','.join(METRICS)}", f"--log-file={log}", *argv,
    ]  # fmt: skip


def wrap(argv: Sequence[str], log: Path) -> tuple[NcuKernel, ...]:
    """Run a command under Nsight Compute, and tell what its kernels did.

    Each kernel is run again for each group of counters, so the command takes many times as long.

    Args:
        argv: the command.
        log: the CSV file to write.

    Raises:
        MissingDependencyError: ``ncu`` is not installed.
        TargetError: it, or the command, failed: often the driver keeps counters to administrators.
        ModelFileError: it wrote no counters.
    """
    if shutil.which("ncu") is None:
        raise MissingDependencyError(
            "ncu is not on the PATH; install NVIDIA Nsight Compute "
            "(https://developer.nvidia.com/nsight-compute), or profile without --ncu"
        )
    # Figures are printed as the locale has them.
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command(argv, log), check=False, env=environment, stdout=_STANDARD_ERROR)
    if done.returncode != 0:
        raise TargetError(
            f"ncu ended with {done.returncode}; its own output above tells why (for "
            "ERR_NVGPUCTRPERM see https://developer.nvidia.com/ERR_NVGPUCTRPERM)"
        )
    return read_ncu(log)


def read_ncu(path: Path | str) -> tuple[NcuKernel, ...]:
    """The kernels of a CSV file that ``ncu --csv --metrics`` wrote, in the order that they ran.

    Args:
        path: of the file; lines before the head, which are the program's own, are passed over.

    Raises:
        ModelFileError: it is missing, or has not the columns of such a file.
    """
    place = Path(path)
    try:
        text = place.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ModelFileError(
            f"{place}: cannot be read ({error.strerror}); name a file of ncu"
        ) from error
    runs: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(_from_head(place, text)):
        if row["Kernel Name"] and row["Metric Name"]:
            found = runs.setdefault((row["ID"], row["Kernel Name"]), {})
            value = _value(row["Metric Value"], row["Metric Unit"])
            if value is not None:
                found[row["Metric Name"]] = value
    return tuple(_kernel(name, counted) for (_, name), counted in runs.items())


def _from_head(path: Path, text: str) -> list[str]:
    """The lines from the head on."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    for at, line in enumerate(lines):
        names = next(csv.reader([line]))
        if all(column in names for column in _COLUMNS):
            return lines[at:]
    raise ModelFileError(
        f"{path}: has not the columns {', '.join(_COLUMNS)}; write it with ncu --csv --metrics, or "
        "export a report with ncu --import REPORT --csv --page details"
    )


def _value(text: str | None, unit: str | None) -> float | None:
    """A figure in seconds, bytes or as a share; ``None`` where it was not counted.

    Example:
        >>> _value("10,196,000", "ns"), _value("97.5", "%"), _value("n/a", "%")
        (0.010196, 0.975, None)
    """
    factor = _UNITS.get((unit or "").lower())
    try:
        return None if factor is None else round(float((text or "").replace(",", "")) * factor, 15)
    except ValueError:
        return None


def _kernel(name: str, counted: Mapping[str, float]) -> NcuKernel:
    told = [counted[key] for key in (_TENSOR_INSTRUCTIONS, _TENSOR_CYCLES) if key in counted]
    unit = Unit.UNKNOWN
    if told:
        unit = Unit.TENSOR_CORES if any(value > 0 for value in told) else Unit.CUDA_CORES
    moved = [counted[key] for key in _DRAM_BYTES if key in counted]
    return NcuKernel(
        name=name, unit=unit, confidence=Confidence.COUNTERS if told else Confidence.UNKNOWN,
        seconds=counted.get(_TIME), tensor=counted.get(_TENSOR_CYCLES), dram=counted.get(_DRAM),
        dram_bytes=sum(moved) if len(moved) == len(_DRAM_BYTES) else None,
    )  # fmt: skip
