"""Counters of Nsight Compute, from CSV as ``ncu --csv --metrics`` writes it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.profiling.kinds import Confidence, Unit
from quantkit.profiling.ncu import METRICS, read_ncu, wrap

HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"'
)
TIME, CYCLES, INSTRUCTIONS, DRAM, READ, WRITTEN = METRICS


def row(number: int, kernel: str, metric: str, unit: str, value: str) -> str:
    """One figure."""
    return (
        f'"{number}","9","python","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(64, 1, 1)","0",'
        f'"8.6","Command line profiler metrics","{metric}","{unit}","{value}"'
    )


CSV = "\n".join(
    [
        "==PROF== Connected to process 9 (python)",
        "what the program itself prints",
        '"and a line of it in quotes"',
        HEAD,
        row(0, "imma_gemm", TIME, "ns", "10,196,000"),
        row(0, "imma_gemm", CYCLES, "%", "45.42"),
        row(0, "imma_gemm", INSTRUCTIONS, "inst", "1,048,576"),
        row(0, "imma_gemm", DRAM, "%", "31.74"),
        row(0, "imma_gemm", READ, "byte", "53,261,312"),
        row(0, "imma_gemm", WRITTEN, "Kbyte", "3,377.92"),
        row(1, "add", TIME, "usecond", "4.5"),
        row(1, "add", CYCLES, "%", "0"),
        row(1, "add", INSTRUCTIONS, "inst", "0"),
        row(2, "old", TIME, "ns", "7"),
        row(2, "old", CYCLES, "%", "n/a"),
        row(2, "old", INSTRUCTIONS, "inst", "n/a"),
        "==PROF== Disconnected from process 9",
    ]
)


def test_counters_tell_the_unit_of_each_kernel(tmp_path: Path) -> None:
    path = tmp_path / "ncu.csv"
    path.write_text(CSV)
    product, add, old = read_ncu(path)
    assert [k.name for k in (product, add, old)] == ["imma_gemm", "add", "old"]
    assert (product.unit, product.confidence) == (Unit.TENSOR_CORES, Confidence.COUNTERS)
    assert (add.unit, add.confidence) == (Unit.CUDA_CORES, Confidence.COUNTERS)
    assert (old.unit, old.confidence) == (Unit.UNKNOWN, Confidence.UNKNOWN)
    assert product.seconds == pytest.approx(0.010196)
    assert product.tensor == pytest.approx(0.4542)
    assert product.dram == pytest.approx(0.3174)
    assert product.dram_bytes == pytest.approx(53_261_312 + 3_377_920)
    assert add.seconds == pytest.approx(4.5e-6)
    assert (add.dram_bytes, old.tensor) == (None, None)


def test_two_runs_of_one_kernel_are_two_rows(tmp_path: Path) -> None:
    path = tmp_path / "ncu.csv"
    lines = [HEAD, row(0, "k", TIME, "ns", "5"), row(1, "k", TIME, "ns", "7")]
    path.write_text("\n".join(lines))
    assert [kernel.seconds for kernel in read_ncu(path)] == [5e-9, 7e-9]


def test_a_file_without_the_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"ID","Name"\n"0","k"\n')
    with pytest.raises(ModelFileError, match="has not the columns"):
        read_ncu(tmp_path / "a.csv")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_ncu(tmp_path / "none.csv")


def test_a_command_is_run_under_ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match="ncu is not on the PATH"):
            wrap(["true"], tmp_path / "log.csv")
    program, kept = tmp_path / "ncu", tmp_path / "kept.csv"
    kept.write_text(CSV)
    program.write_text(f'#!/bin/sh\n[ "$LC_ALL" = C ] && cp {kept} {tmp_path}/log.csv\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert len(wrap(["python"], tmp_path / "log.csv")) == 3
    program.write_text("#!/bin/sh\nexit 5\n")
    with pytest.raises(TargetError, match="ncu ended with 5"):
        wrap(["python"], tmp_path / "log.csv")
