"""The demo tells the truth: it fails where a check fails, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import demo
import pytest
from rich.console import Console

from quantkit.interfaces import Inspection, LayerCoverage

IMAGES = 100


@pytest.fixture
def version(tmp_path: Path) -> demo.Version:
    """A version of the model with which nothing is wrong."""
    file = tmp_path / "digits.onnx"
    file.write_bytes(b"x" * 1000)
    return demo.Version(file=file, simulated=99.0, deployed=99.0, same=IMAGES)


def inspection(*precisions: str) -> Inspection:
    """Layers that are all planned in INT8, and run in these precisions."""
    layers = tuple(
        LayerCoverage(
            node=f"conv{i}", op_type="Conv", quantized=True, precision=p, kernel="", reason=""
        )
        for i, p in enumerate(precisions)
    )
    return Inspection(target="somewhere", layers=layers)


def test_nothing_fails_where_all_is_well(version: demo.Version) -> None:
    good = replace(version, coverage={"there": inspection("int8", "int8")})
    assert demo.failed_checks((version, good, good), IMAGES) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"simulated": 96.9}, "accuracy in PyTorch is 96.90 %"),
        ({"deployed": 10.0}, "accuracy in ONNX Runtime is 10.00 %"),
        ({"same": 98}, "agreement with PyTorch is 98.00 %"),
        ({"coverage": {"there": inspection("int8", "float32")}}, "there: only 1 of 2 layers"),
        ({"coverage": {"there": inspection()}}, "there: only 0 of 0 layers"),
    ],
)
def test_each_check_can_fail(version: demo.Version, change: dict[str, object], told: str) -> None:
    bad = replace(version, **change)  # type: ignore[arg-type]
    [failure] = demo.failed_checks((version, version, bad), IMAGES)
    assert told in failure


def test_a_missing_builder_is_told_with_its_install_command(
    version: demo.Version,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = demo.build_engines(version, tmp_path)
    demo.explain(version, found)
    assert 'pip install "quantkit[rtx]"' in " ".join(capsys.readouterr().out.split())
    assert demo.failed_checks((version, version, found), IMAGES) == []
    assert "not installed" in rendered(version, version, found)


def test_the_readme_shows_the_table_as_it_is(version: demo.Version, root: Path) -> None:
    cpu = replace(version, coverage={"ONNX Runtime": inspection("int8")})
    gpu = replace(version, coverage={name: inspection("int8") for name in demo.GPUS.values()})
    shown = (root / "README.md").read_text(encoding="utf-8")
    for line in rendered(version, cpu, gpu).splitlines():
        label = line[:28].strip().strip("─")
        assert label in shown


def rendered(original: demo.Version, cpu: demo.Version, gpu: demo.Version) -> str:
    """The demo's table as text of 80 columns, none of it cut off."""
    console = Console(width=80)
    milliseconds = {batch: {"float": 1.234, "int8": 0.567} for batch in demo.BATCHES}
    with console.capture() as capture:
        console.print(demo.table((original, cpu, gpu), milliseconds, IMAGES))
    text = capture.get()
    assert "…" not in text
    return text


@pytest.mark.slow
def test_the_demo_runs_and_leaves_its_files(root: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(root / "examples" / "demo.py"), "--out", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every check holds" in done.stdout
    assert done.stderr == ""
    for name in ("digits.float.onnx", "digits.int8_cpu.onnx", "digits.int8_ptq.onnx", "digits.pt2"):
        assert (tmp_path / name).stat().st_size > 0
