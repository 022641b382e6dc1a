"""Exports of Nsight Systems, made here by the schema that NVIDIA documents."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.profiling.kinds import Dtype, Unit
from quantkit.profiling.nsys import read_nsys, wrap

_SCHEMA = """
CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE TARGET_INFO_GPU (name TEXT, id INT, smCount INT, memoryBandwidth INT);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL, contextId INT, streamId INT,
    correlationId INT, globalPid INT, demangledName INT NOT NULL, shortName INT NOT NULL,
    gridX INT, gridY INT, gridZ INT);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (
    start INT NOT NULL, end INT NOT NULL, deviceId INT, streamId INT, correlationId INT,
    globalPid INT, bytes INT NOT NULL, copyKind INT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INT NOT NULL, end INT NOT NULL, eventClass INT, globalTid INT, correlationId INT,
    nameId INT, returnValue INT);
CREATE TABLE NVTX_EVENTS (
    start INT NOT NULL, end INT, eventType INT NOT NULL, rangeId INT, text TEXT, globalTid INT,
    textId INT, domainId INT);
"""
IMMA = "ampere_int8_i16832gemm_int8_128x128_ldg16_relu_stages_64x3_tn"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float>>(int)"
PROCESS = 77 * 0x1000000
THREAD = PROCESS + 5


def export(path: Path, statements: Sequence[str] = (), schema: str = _SCHEMA) -> Path:
    """Two products and an add on one GPU: 40 + 40 + 10 us, with a gap of 20 and one of 100."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(schema)
        db.executemany("INSERT INTO StringIds VALUES (?, ?)", [(1, IMMA), (2, ADD), (3, "add"),
                                                               (4, "layer1 (Conv2d)")])  # fmt: skip
        db.execute("INSERT INTO TARGET_INFO_GPU VALUES ('NVIDIA A40', 0, 84, 696)")
        kernels = [(0, 40, 1, 11), (60, 100, 1, 12), (200, 210, 2, 13)]
        db.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, 0, 1, 7, ?, ?, ?, 3, 1, 1, 1)",
            [(1000 * a, 1000 * b, number, PROCESS, name) for a, b, name, number in kernels],
        )
        # They are queued in the first 9 microseconds, long before the last one runs.
        db.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, ?, ?, 1, 0)",
            [(1000 * at, 1000 * at + 500, THREAD, number) for at, number in
             ((1, 11), (4, 12), (8, 13))],
        )  # fmt: skip
        db.executemany(
            "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, 0, 7, ?, ?, ?, ?)",
            [(0, 3000, 21, PROCESS, 4096, 1), (3000, 4000, 22, PROCESS, 1024, 1),
             (9000, 9500, 23, PROCESS, 64, 2)],
        )  # fmt: skip
        db.executemany(
            "INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, 0, ?, ?, ?, 0)",
            [
                (0, 10_000, 59, "quantkit: calibrate", THREAD, None),
                (2_000, 7_000, 59, None, THREAD, 4),
                (0, 10_000, 59, "another thread", THREAD + 1, None),
                (5_000, None, 34, "a mark", THREAD, None),
            ],
        )
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path


def test_kernels_are_summed_by_name_with_what_their_names_tell(tmp_path: Path) -> None:
    found = read_nsys(export(tmp_path / "a.sqlite"))
    first, second = found.kernels
    assert (first.name, first.count) == (IMMA, 2)
    assert first.seconds == pytest.approx(80e-6)
    assert first.median == pytest.approx(40e-6)
    assert (first.kind.unit, first.kind.dtype) == (Unit.TENSOR_CORES, Dtype.INT8)
    assert second.kind.unit is Unit.CUDA_CORES
    assert found.share(Unit.TENSOR_CORES) == pytest.approx(80 / 90)
    assert found.missing == ()


def test_gaps_between_kernels_are_found(tmp_path: Path) -> None:
    (device,) = read_nsys(export(tmp_path / "a.sqlite")).devices
    assert device.name == "NVIDIA A40"
    assert device.span == pytest.approx(210e-6)
    assert device.busy == pytest.approx(90e-6)
    assert device.idle == pytest.approx(120 / 210)
    assert device.gap == pytest.approx(100e-6)
    assert device.before_gap == IMMA


def test_kernels_that_overlap_are_busy_once(tmp_path: Path) -> None:
    also = (
        "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES "
        f"(10000, 130000, 0, 1, 8, 14, {PROCESS}, 2, 3, 1, 1, 1)"
    )
    (device,) = read_nsys(export(tmp_path / "a.sqlite", [also])).devices
    assert device.busy == pytest.approx(140e-6)
    assert device.gap == pytest.approx(70e-6)
    assert device.before_gap == ADD


def test_copies_are_summed_by_kind(tmp_path: Path) -> None:
    copies = {copy.kind: copy for copy in read_nsys(export(tmp_path / "a.sqlite")).copies}
    assert (copies["HtoD"].count, copies["HtoD"].bytes) == (2, 5120)
    assert copies["DtoH"].seconds == pytest.approx(0.5e-6)


def test_a_range_has_the_kernels_that_its_thread_launched_inside(tmp_path: Path) -> None:
    ranges = {item.name: item for item in read_nsys(export(tmp_path / "a.sqlite")).ranges}
    assert set(ranges) == {"quantkit: calibrate", "layer1 (Conv2d)", "another thread"}
    whole, layer = ranges["quantkit: calibrate"], ranges["layer1 (Conv2d)"]
    assert (whole.kernels, layer.kernels, ranges["another thread"].kernels) == (3, 1, 0)
    assert whole.kernel_seconds == pytest.approx(90e-6)
    assert layer.kernel_seconds == pytest.approx(40e-6)
    assert whole.seconds == pytest.approx(10e-6)


def test_the_same_number_of_another_process_is_another_launch(tmp_path: Path) -> None:
    other = 78 * 0x1000000
    also = [
        f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (300000, 400000, 0, 1, 7, 12, {other}, 2, "
        "3, 1, 1, 1)"
    ]
    ranges = {r.name: r for r in read_nsys(export(tmp_path / "a.sqlite", also)).ranges}
    assert ranges["quantkit: calibrate"].kernels == 3


def test_what_an_older_export_lacks_is_told(tmp_path: Path) -> None:
    older = [
        "DROP TABLE TARGET_INFO_GPU",
        "DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY",
        "ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN globalPid",
        "ALTER TABLE NVTX_EVENTS DROP COLUMN textId",
    ]
    found = read_nsys(export(tmp_path / "a.sqlite", older))
    assert set(found.missing) == {
        "table TARGET_INFO_GPU",
        "table CUPTI_ACTIVITY_KIND_MEMCPY",
        "column CUPTI_ACTIVITY_KIND_KERNEL.globalPid",
        "column NVTX_EVENTS.textId",
    }
    assert len(found.kernels) == 2
    assert found.copies == ()
    assert "the export has no table TARGET_INFO_GPU" in found.table()


def test_an_export_of_a_run_without_a_gpu_is_empty_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
        db.commit()
    found = read_nsys(path)
    assert (found.kernels, found.devices, found.ranges) == ((), (), ())
    assert "table CUPTI_ACTIVITY_KIND_KERNEL" in found.missing
    assert found.share(Unit.TENSOR_CORES) == 0.0


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("no database, but long enough to be taken for one " * 40)
    with pytest.raises(ModelFileError, match="no SQLite export"):
        read_nsys(tmp_path / "a.sqlite")
    with pytest.raises(ModelFileError, match="no such file"):
        read_nsys(tmp_path / "none.sqlite")


def installed(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of that name, and nothing else, on the PATH."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_a_command_is_run_under_nsys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "arguments"
    script = f'echo told; echo "$@" > {log}\n: > {tmp_path}/report.sqlite'
    installed(tmp_path, "nsys", script, monkeypatch)
    assert wrap(["python", "run.py"], tmp_path / "report") == tmp_path / "report.sqlite"
    words = log.read_text().split()
    assert words[:2] == ["profile", "--trace=cuda,nvtx,osrt"]
    assert words[-2:] == ["python", "run.py"]
    assert "--export=sqlite" in words
    # On standard output there may be JSON of quantkit's own.
    assert capfd.readouterr() == ("", "told\n")


def test_where_nsys_fails_or_is_not_there_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="nsys is not on the PATH"):
        wrap(["true"], tmp_path / "report")
    installed(tmp_path, "nsys", "exit 3", monkeypatch)
    with pytest.raises(TargetError, match="nsys ended with 3"):
        wrap(["true"], tmp_path / "report")
