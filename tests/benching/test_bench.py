"""``bench``: its rows, what it leaves out, and what it makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from onnx_models import model_of, saved
from torch import nn

import quantkit
from quantkit.benching.bench import bench
from quantkit.benching.memory import Memory
from quantkit.benching.plot import save_plot
from quantkit.benching.quality import Quality
from quantkit.benching.report import BenchReport, LeftOut, Method, Row
from quantkit.benching.table import as_text
from quantkit.benching.timing import Ratio
from quantkit.data import DataSpec
from quantkit.errors import DataError, ExportError, ModelFileError, TargetError
from quantkit.hardware import Cpu, Gpus, Machine

QUICK = Method(turns=2, turn_ms=1.0, warm_ms=1.0)
ORT = ["onnxruntime"]


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in float as ONNX, labelled data that it gets all right, and a file that fails."""
    found = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((32, 64), dtype=np.float32),
        "b": rng.standard_normal((64, 16), dtype=np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
    ]
    model = model_of(nodes, {"input": ["N", 32]}, {"y": ["N", 16]}, weights)
    saved(model, found / "float.onnx")
    x = rng.standard_normal((20, 32), dtype=np.float32)
    labels = (np.maximum(x @ weights["a"], 0.0) @ weights["b"]).argmax(1)
    np.savez(found / "data.npz", input=x, label=labels)
    node = helper.make_node("NoSuchOperator", ["input"], ["y"])
    saved(model_of([node], {"input": ["N", 32]}, {"y": ["N", 16]}), found / "broken.onnx")
    return found


@pytest.fixture(scope="module")
def spec(folder: Path) -> DataSpec:
    source = str(folder / "data.npz")
    inputs = {"input": {"dtype": "float32"}}
    return DataSpec(source=source, inputs=inputs, label="label", batch_size=7)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(folder: Path, spec: DataSpec) -> BenchReport:
    """Two recipes of an ONNX file in ONNX Runtime, judged with labels."""
    return bench(
        folder / "float.onnx", ["int8_cpu"], data=spec, evaluation=spec, batches=[8],
        method=QUICK, devices=["cpu"],
    )  # fmt: skip


def test_each_precision_has_a_row_and_the_first_is_the_reference(report: BenchReport) -> None:
    found = [(row.target, row.precision, row.batch, row.reference) for row in report.rows]
    assert found == [
        ("onnxruntime", "float", 8, True),
        ("onnxruntime", "int8_cpu", 8, False),
    ]
    assert report.ok
    for row in report.rows:
        assert row.error is None
        assert len(row.turns) == 2
        assert row.median_ms is not None
        assert row.p95_ms is not None
        assert row.ratio is not None
        assert row.memory is not None
        assert row.file_bytes is not None
    assert report.rows[0].ratio == Ratio(median=1.0, low=1.0, high=1.0)


def test_outputs_are_judged_over_each_sample_once(report: BenchReport) -> None:
    reference, int8 = (row.quality for row in report.rows)
    assert reference == Quality(samples=20, accuracy=1.0)
    assert int8 is not None
    assert int8.sqnr is not None
    assert 20.0 < int8.sqnr < 80.0
    assert int8.accuracy == int8.agreement
    assert report.data == "20 samples of the evaluation data"


def test_runtimes_that_read_programs_are_left_out_of_an_onnx_file(report: BenchReport) -> None:
    left = {(item.target, item.precision): item.reason for item in report.left_out}
    assert left["eager", "float"] == "reads .pt2 files, and there is none"
    assert {target for target, _ in left} == {"eager", "inductor", "torch_compile"}


def test_the_json_holds_every_time_and_what_follows_from_them(
    report: BenchReport, tmp_path: Path
) -> None:
    report.save(tmp_path / "bench.json")
    told = json.loads((tmp_path / "bench.json").read_text())
    assert set(told) == {
        *("quantkit", "ok", "rows", "left_out", "threads", "data", "method", "machine"),
    }
    row = told["rows"][1]
    assert set(row) == {
        *("target", "device", "precision", "batch", "error", "turns", "reference", "ratio"),
        *("build_s", "load_s", "memory", "file_bytes", "quality"),
        *("median_ms", "p95_ms", "samples_per_s", "memory_bytes"),
    }
    times = [ms for turn in row["turns"] for ms in turn]
    assert min(times) <= row["median_ms"] <= row["p95_ms"] == max(times) or len(times) >= 20
    assert row["quality"]["sqnr"] == report.rows[1].quality.sqnr  # type: ignore[union-attr]
    assert told["machine"]["runtimes"]["onnxruntime"].startswith("onnxruntime")
    assert told["method"]["turns"] == 2


def test_a_file_that_fails_costs_its_row_and_no_other(folder: Path) -> None:
    found = bench(
        [folder / "float.onnx", folder / "broken.onnx"], targets=ORT, batches=[1], method=QUICK
    )
    good, bad = found.rows
    assert good.error is None
    assert bad.precision == "broken"
    assert "NoSuchOperator" in str(bad.error)
    assert (bad.turns, bad.ratio, bad.median_ms, bad.memory) == ((), None, None, None)
    assert found.ok
    assert "failed onnxruntime broken, batch 1" in as_text(found, 100)


def test_where_the_reference_fails_the_others_have_times_and_no_ratio(folder: Path) -> None:
    found = bench(
        [folder / "broken.onnx", folder / "float.onnx"], targets=ORT, batches=[1], method=QUICK
    )
    assert [row.error is None for row in found.rows] == [False, True]
    assert found.rows[1].ratio is None
    assert found.rows[1].median_ms is not None


def test_a_pytorch_model_is_compared_beside_its_exports_and_does_not_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # in the workers: compiling takes a minute
    net = made().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = [torch.randn(4, 32, generator=torch.Generator().manual_seed(2)) for _ in range(3)]
    found = quantkit.bench(
        net, ["int8_ptq"], data=x, targets=["eager", "onnxruntime", "torch_compile"],
        batches=[4], method=QUICK, devices=["cpu"],
    )  # fmt: skip
    assert [(row.target, row.precision, row.error) for row in found.rows] == [
        ("eager", "float", None),
        ("onnxruntime", "float", None),
        ("torch_compile", "float", None),
        ("onnxruntime", "int8_ptq", None),
        ("torch_compile", "int8_ptq", None),
    ]
    sqnr = [row.quality.sqnr for row in found.rows if row.quality]
    assert sqnr[0] is None
    assert all(x is not None and x > 20.0 for x in sqnr[1:])
    assert [(item.target, item.precision) for item in found.left_out] == [("eager", "int8_ptq")]
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_model_of_one_batch_size_is_measured_at_that(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = saved(model_of([node], {"x": [3, 4]}, {"y": [3, 4]}), tmp_path / "fixed.onnx")
    found = bench(path, targets=ORT, method=QUICK, devices=["cpu"])
    assert [row.batch for row in found.rows] == [3]
    with pytest.raises(DataError, match="takes batches of 3 alone"):
        bench(path, targets=ORT, method=QUICK, batches=[1])


def test_what_cannot_be_compared_is_refused_before_any_work(folder: Path, spec: DataSpec) -> None:
    path = folder / "float.onnx"
    with pytest.raises(ModelFileError, match="there is no model"):
        bench([])
    with pytest.raises(ModelFileError, match="recipes quantize one model"):
        bench([path, path], ["int8_cpu"])
    with pytest.raises(ModelFileError, match="several models are compared as files"):
        bench([path, made()])
    with pytest.raises(DataError, match="given twice"):
        bench(path, ["int8_cpu", "int8_cpu"], data=spec)
    with pytest.raises(DataError, match="only once"):
        bench(path, data=iter([torch.zeros(2, 32)]))
    with pytest.raises(DataError, match="example inputs"):
        bench(made())
    with pytest.raises(DataError, match="1 thread or more"):
        bench(path, threads=0)
    with pytest.raises(DataError, match="1 sample or more"):
        bench(path, batches=[0])
    with pytest.raises(TargetError, match=r"no runtime can run any of it: eager: reads .pt2 files"):
        bench(path, targets=["eager"], devices=["cpu"])


def test_labels_that_are_no_classes_are_refused_before_anything_is_timed(folder: Path) -> None:
    pairs = [(torch.zeros(2, 32), torch.zeros(2))]
    with pytest.raises(DataError, match=r"labels are torch\.float32, not whole numbers"):
        bench(folder / "float.onnx", evaluation=pairs, targets=ORT, method=QUICK)


def test_outputs_that_fit_no_labels_leave_the_times(folder: Path) -> None:
    pairs = [(torch.zeros(2, 32), torch.full((2, 1), 3))]
    found = bench(
        folder / "float.onnx", evaluation=pairs, targets=ORT, batches=[1], method=QUICK,
        devices=["cpu"],
    )  # fmt: skip
    assert found.rows[0].median_ms is not None
    assert found.rows[0].quality is None
    (item,) = found.left_out
    assert item.reason.startswith("its outputs are not judged: labels have shape (1, 1)")


# What is shown, of rows that no machine had to measure


def row(target: str, precision: str, ms: float, **others: object) -> Row:
    plain = Row(
        target=target, device="cpu", precision=precision, batch=1, turns=((ms, ms), (ms, 2 * ms)),
        ratio=Ratio(median=10.0 / ms, low=9.0 / ms, high=11.0 / ms), file_bytes=12_345_678,
        memory=Memory(before=100, peak=45_000_100, settled=200),
        quality=Quality(samples=4, sqnr=31.25, accuracy=0.875),
    )  # fmt: skip
    return replace(plain, **others)  # type: ignore[arg-type]


@pytest.fixture
def shown() -> BenchReport:
    rows = (
        row("eager", "float", 10.0, reference=True, quality=Quality(samples=4, accuracy=1.0)),
        row("onnxruntime", "int8_cpu", 4.0),
        row("onnxruntime", "int8_ptq", 5.0, quality=Quality(samples=4, sqnr=math.inf)),
        Row(target="inductor", device="cpu", precision="int8_ptq", batch=1, error="it fell over"),
        row("eager", "float", 80.0, batch=32, reference=True),
    )
    left = (
        LeftOut(target="eager", device="cpu", precision="int8_cpu", reason="it is slow"),
        LeftOut(target="eager", device="cpu", precision="int8_ptq", reason="it is slow"),
        LeftOut(target="tensorrt", device="cuda", precision=None, reason="no GPU"),
    )
    machine = Machine(cpu=Cpu("EPYC", frozenset({"avx2"})), gpus=Gpus(why_none="no driver"))
    return BenchReport(rows=rows, left_out=left, machine=machine, threads=2, data="4 samples")


def test_a_wide_table_has_all_figures_of_a_row_in_one_line(shown: BenchReport) -> None:
    text = as_text(shown, 120)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "Batch 1, 2 threads of the CPU" in lines
    assert "onnxruntime int8_cpu 4.00 8.00 2.50 ±0.25 250 45.0 12.3 31.2 87.50" in lines
    assert "eager float 10.0 20.0 reference 100 45.0 12.3 - 100.00" in lines
    assert "Size and outputs" not in text
    assert str(shown) == text


def test_a_narrow_table_fits_and_tells_size_and_outputs_apart(shown: BenchReport) -> None:
    text = as_text(shown, 80)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 80
    assert "onnxruntime int8_cpu 4.00 8.00 2.50 ±0.25 250 45.0" in lines
    assert "onnxruntime int8_cpu 12.3 31.2 87.50" in lines
    assert "onnxruntime int8_ptq 12.3 equal -" in lines


def test_failures_what_is_left_out_and_the_method_stand_below(shown: BenchReport) -> None:
    text = " ".join(as_text(shown, 80).split())
    assert "inductor int8_ptq failed" in text
    assert "failed inductor int8_ptq, batch 1: it fell over" in text
    assert "eager int8_cpu and int8_ptq: it is slow" in text
    assert "tensorrt on a GPU: no GPU" in text
    assert "take turns of about 100 ms in rotating order" in text
    assert "On EPYC (2 threads of the CPU, no VNNI), no GPU" in text


def test_infinite_figures_are_null_in_json(shown: BenchReport) -> None:
    told = json.loads(shown.to_json())
    assert told["rows"][2]["quality"]["sqnr"] is None
    assert told["rows"][3]["median_ms"] is None
    assert told["rows"][1]["memory_bytes"] == 45_000_000


def test_the_picture_is_drawn_as_png_and_svg(shown: BenchReport, tmp_path: Path) -> None:
    save_plot(shown, tmp_path / "a.png")
    save_plot(shown, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_picture_of_nothing_or_of_no_known_kind_is_refused(
    shown: BenchReport, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="nothing to draw"):
        save_plot(replace(shown, rows=shown.rows[3:4]), tmp_path / "a.png")
    with pytest.raises(ExportError, match=r"end in \.png or \.svg"):
        save_plot(shown, tmp_path / "a.jpeg")


@pytest.mark.gpu
def test_on_a_gpu_rows_run_there_and_tell_its_memory() -> None:
    x = [torch.randn(4, 32) for _ in range(3)]
    found = bench(made(), data=x, targets=["eager"], devices=["cuda"], batches=[4], method=QUICK)
    assert [(r.precision, r.device, r.error) for r in found.rows] == [
        ("float", "cuda", None),
        ("float16", "cuda", None),
    ]
    assert found.rows[0].memory is not None
    assert found.rows[0].memory.model > 0
