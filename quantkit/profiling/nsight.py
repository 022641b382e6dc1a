"""What NVIDIA's own profilers tell, as text and as plain values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.profiling import ncu as compute
from quantkit.profiling import nsys as systems
from quantkit.profiling.ncu import NcuKernel
from quantkit.profiling.nsys_summary import NsysSummary


def of_file(path: Path) -> tuple[str, Any]:
    """The export of Nsight Systems (``.sqlite``), or the counters of Nsight Compute (``.csv``).

    Raises:
        ModelFileError: it is neither.
    """
    if path.suffix == ".csv":
        return _counters(compute.read_ncu(path))
    return _summary(systems.read_nsys(path))


def of_run(argv: Sequence[str], *, ncu: bool) -> tuple[str, Any]:
    """Run a command under one of them.

    Raises:
        MissingDependencyError: it is not installed.
        TargetError: it, or the command, failed.
    """
    with tempfile.TemporaryDirectory(prefix="quantkit-nsight-") as folder:
        if ncu:
            return _counters(compute.wrap(argv, Path(folder) / "counters.csv"))
        return _summary(systems.read_nsys(systems.wrap(argv, Path(folder) / "report")))


def _summary(found: NsysSummary) -> tuple[str, Any]:
    return found.table(), json.loads(json.dumps(asdict(found), default=str))


def _counters(kernels: Sequence[NcuKernel]) -> tuple[str, Any]:
    lines = [f"{'us':>9} {'tensor':>7} {'memory':>7}  {'unit':<13}kernel"]
    lines += [
        f"{_figure(k.seconds, 1e6):>9} {_figure(k.tensor, 100.0):>7} {_figure(k.dram, 100.0):>7}  "
        f"{k.unit:<13}{k.name[:80]}"
        for k in kernels
    ]
    return "\n".join(lines), json.loads(json.dumps([asdict(k) for k in kernels], default=str))


def _figure(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{factor * value:.1f}"
