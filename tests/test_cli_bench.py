"""``quantkit bench``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import model_of, saved

from quantkit import cli

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
"""

Run = Callable[[str], tuple[int, str, str]]

#: Few and short turns: what is measured is not looked at.
QUICK = "--target onnxruntime --batch 2 --repeats 1 --device cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's files."""
    found = tmp_path_factory.mktemp("bench")
    (found / "bench_net.py").write_text(NET)
    x = np.random.default_rng(0).standard_normal((6, 32), dtype=np.float32)
    np.savez(found / "x.npz", input=x, other=x, label=np.arange(6) % 16)
    for name, given, label in (
        ("calib", "input", None),
        ("eval", "input", "label"),
        ("misnamed", "other", None),
    ):
        spec = {"source": "x.npz", "inputs": {given: {}}, "batch_size": 4, "label": label}
        (found / f"{name}.yaml").write_text(json.dumps(spec))
    weights = {"w": np.random.default_rng(1).standard_normal((32, 16), dtype=np.float32)}
    node = helper.make_node("MatMul", ["input", "w"], ["y"], name="fc")
    model = model_of([node], {"input": ["N", 32]}, {"y": ["N", 16]}, weights)
    saved(model, found / "float.onnx")
    return found


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, standard output and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COLUMNS", "120")
    sys.modules.pop("bench_net", None)

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_model_is_quantized_measured_judged_written_and_drawn(run: Run, folder: Path) -> None:
    code, out, err = run(
        f"bench float.onnx --recipe int8_cpu --data calib.yaml --evaluate eval.yaml {QUICK} "
        "-o bench.json --plot bench.png"
    )
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "Batch 2, 1 thread of the CPU" in lines
    assert any(line.startswith("onnxruntime float ") for line in lines)
    assert any(line.startswith("onnxruntime int8_cpu ") for line in lines)
    assert "over 6 samples of the evaluation data" in out
    told = json.loads((folder / "bench.json").read_text())
    assert [row["precision"] for row in told["rows"]] == ["float", "int8_cpu"]
    assert told["rows"][1]["quality"]["accuracy"] is not None
    assert (folder / "bench.png").read_bytes()[1:4] == b"PNG"


def test_files_are_compared_as_they_are_and_told_in_json_alone(run: Run, folder: Path) -> None:
    copy = folder / "copy.onnx"
    copy.write_bytes((folder / "float.onnx").read_bytes())
    code, out, _ = run(f"bench float.onnx copy.onnx {QUICK} --json")
    told = json.loads(out)
    assert code == 0
    assert [(row["precision"], row["reference"]) for row in told["rows"]] == [
        ("float", True),
        ("copy", False),
    ]
    assert told["data"] == ""


def test_nothing_that_runs_is_exit_code_1(run: Run, folder: Path) -> None:
    code, out, _ = run(f"bench float.onnx {QUICK} --input-shape 2,31")
    assert code == 1
    assert "failed" in out


REFUSED = [
    ("absent.onnx", 6, "no such file"),
    ("absent.onnx float.onnx", 6, "no such file"),
    ("bench_net:make", 4, "--input-shape 1,3,32,32"),
    ("bench_net:make --recipe int8_cpu", 4, "needs calibration data; give --data"),
    ("bench_net:make --recipe int8_cpuu --data calib.yaml", 3, "did you mean 'int8_cpu'?"),
    ("bench_net:make float.onnx", 2, "several models are compared as files"),
    ("float.onnx float.onnx --recipe int8_cpu --data calib.yaml", 2, "--recipe is for one MODEL"),
    ("float.onnx --weights w.pth", 2, "leave --weights out"),
    ("float.onnx --target onnxruntim", 3, "did you mean 'onnxruntime'?"),
    ("float.onnx --device gpu", 2, "give cpu or cuda"),
    ("float.onnx --batch 0", 2, "--batch"),
    ("float.onnx --plot a.jpeg", 7, "end in .png or .svg"),
    ("float.onnx -o absent/a.json", 7, "cannot be written"),
    ("float.onnx --data misnamed.yaml", 4, "has no input 'other'"),
    ("float.onnx --target eager --device cpu", 8, "no runtime can run any of it"),
]


@pytest.mark.parametrize(("options", "exit_code", "words"), REFUSED)
def test_what_cannot_be_compared_is_one_line(
    options: str, exit_code: int, words: str, run: Run
) -> None:
    code, out, err = run(f"bench {options}")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert err.startswith("error: ")
    assert words in err
