"""The check for a machine with a GPU: what of it can be tried without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_page
from quantkit.errors import TargetError

ROOT = Path(__file__).parents[1]
ROW = {
    "target": "tensorrt", "precision": "int8_ptq", "batch": 1, "error": None, "reference": False,
    "ratio": {"median": 2.5, "low": 2.4, "high": 2.6}, "median_ms": 0.5, "p95_ms": 0.6,
    "samples_per_s": 2000.0, "memory_bytes": 3e7, "quality": {"sqnr": 31.25},
}  # fmt: skip
FAILED = {**ROW, "target": "inductor", "error": "it crashed"}
BENCH = {
    "method": {"text": "In turns."},
    "rows": [ROW, FAILED],
    "left_out": [{"target": "tensorrt_rtx", "precision": None, "reason": "no SM90"}],
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, so nothing is refused")
def test_without_a_gpu_it_says_so_before_any_work() -> None:
    with pytest.raises(TargetError, match="sees no CUDA device"):
        gpu.require_gpu()


def test_a_section_that_fails_or_has_no_time_is_told_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        program = "raise SystemExit('no such kernel')"
        if command[-1] == "device":
            program = "print('noise'); print('result: {\"gpu\": 1}')"
        return real([sys.executable, "-c", program], **options)  # type: ignore[call-overload]

    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    gpu.run_all(["device", "probe"], tmp_path / "gpu.json", 60.0)
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["device"]["found"] == {"gpu": 1}
    assert sections["probe"]["error"] == "ended with 1: no such kernel"
    assert "time was used up" in gpu.run_section("probe", 0.0)["error"]


def test_the_page_shows_what_was_found_and_what_was_not() -> None:
    sections = {
        "probe": {"error": "stopped after 9 s", "seconds": 9.0},
        "bench_bert_base": {"found": BENCH, "seconds": 80.0},
    }
    page = gpu_page.render({"date": "2026-11-25", "sections": sections})
    assert "Measured on 2026-11-25." in page
    assert "Not measured: stopped after 9 s." in page
    assert "| tensorrt | int8_ptq | 1 | 0.500 | 0.600 | 2.50 | 2,000 | 30 | 31.2 |" in page
    assert "failed: it crashed" in page
    assert "- Left out: tensorrt_rtx: no SM90" in page


def test_the_page_in_the_docs_is_what_the_results_make_of_it() -> None:
    found = json.loads(gpu_page.RESULTS.read_text()) if gpu_page.RESULTS.is_file() else None
    assert (ROOT / "docs" / "gpu.md").read_text() == gpu_page.render(found)


def test_the_script_takes_no_step_that_bash_does_not() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)
