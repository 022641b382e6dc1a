"""``quantkit quantize --checkpoint``: ended, gone on with, and refused."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantkit import cli
from quantkit.errors import ExportError, ModelFileError, RecipeError
from quantkit.reconstruction.stream import Stream
from quantkit.rounding.gptq import Gptq

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 32))


def other() -> nn.Module:
    return make(1)
"""
QUANTIZE = "quantize steps:make --recipe learned.yaml --data calib.yaml -o net.onnx"

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data and a recipe, as the working directory."""
    (tmp_path / "steps.py").write_text(NET)
    rows = np.random.default_rng(0).standard_normal((32, 32), dtype=np.float32)
    np.savez(tmp_path / "calib.npz", input=rows)
    spec = {"source": "calib.npz", "inputs": {"input": {}}, "batch_size": 8}
    (tmp_path / "calib.yaml").write_text(json.dumps(spec))
    (tmp_path / "learned.yaml").write_text(
        "{scheme: {weights: {per: channel}, activations: {}}, placement: {small: true},"
        " rounding: gptq}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("steps", None)
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_same_command_goes_on_and_writes_the_same_file(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(QUANTIZE)[0] == 0
    whole = (work / "net.onnx").read_bytes()
    move, learn, rounded, learned = Stream.move, Gptq.round, work / "net.rounded", []

    def ended(stream: Stream, stop: int, floating: Any) -> None:
        if rounded.stat().st_size > 5000:  # of a second layer
            raise KeyboardInterrupt
        move(stream, stop, floating)

    def noted(rounding: Gptq, problem: Any) -> Any:
        learned.append(problem.name)
        return learn(rounding, problem)

    monkeypatch.setattr(Gptq, "round", noted)
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "move", ended)
        code, out, err = run(f"{QUANTIZE} --checkpoint net.rounded")
    assert (code, out) == (130, "")
    assert err.startswith("error: interrupted")
    assert (work / "net.onnx").read_bytes() == whole
    (work / "net.onnx").unlink()
    assert run(f"{QUANTIZE} --checkpoint net.rounded")[0] == 0
    assert (work / "net.onnx").read_bytes() == whole
    assert learned == ["0", "2", "4"]
    assert rounded.exists()


def test_a_checkpoint_of_another_model_is_refused_and_no_file_is_lost(work: Path, run: Run) -> None:
    assert run(f"{QUANTIZE} --checkpoint net.rounded")[0] == 0
    before = {path: path.read_bytes() for path in work.glob("net.*")}
    command = QUANTIZE.replace("steps:make", "steps:other")
    code, out, err = run(f"{command} --checkpoint net.rounded")
    assert (code, out, err.count("\n")) == (ModelFileError.exit_code, "", 1)
    assert "net.rounded: of a run with other float weights; give the same, or remove" in err
    assert {path: path.read_bytes() for path in work.glob("net.*")} == before


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [
        (
            "quantize steps:make --data absent.yaml -o a.onnx --checkpoint a",
            RecipeError.exit_code,
            "recipe int8_ptq: its rounding, nearest, learns nothing, so nothing is lost",
        ),
        (f"{QUANTIZE} --checkpoint absent/a", ExportError.exit_code, "choose a folder that exists"),
        (f"{QUANTIZE} --checkpoint a --resume", 2, "goes on if its file is there: leave --resume"),
        ("quantize a.onnx -o b.onnx --checkpoint a", 2, "leave --checkpoint out"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_with_is_told_before_any_work(
    command: str, exit_code: int, words: str, work: Path, run: Run
) -> None:
    code, out, err = run(command)
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (work / "a").exists()
