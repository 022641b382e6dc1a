"""``quantkit report``: what it writes, prints, and refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit import cli
from quantkit.reporting import analysed

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
"""

#: All that takes long.
MOST = "outputs,accuracy,latency,profile,layer_parity,coverage"

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a folder with a model and data."""
    (tmp_path / "small.py").write_text(NET)
    rows = np.random.default_rng(0).standard_normal((24, 32), dtype=np.float32)
    np.savez(tmp_path / "rows.npz", input=rows, y=np.arange(24) % 16)
    spec = {"source": "rows.npz", "inputs": {"input": {}}, "batch_size": 8}
    (tmp_path / "calib.yaml").write_text(json.dumps(spec))
    (tmp_path / "eval.yaml").write_text(json.dumps(spec | {"label": "y"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("small", None)

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_page_and_the_same_as_json_are_written(run: Run, tmp_path: Path) -> None:
    command = "report small:make --data calib.yaml -o r.html --json-out r.json --samples 16"
    code, out, err = run(f"{command} --without {MOST}")
    assert (code, err) == (0, "")
    assert "2 of 2 layers quantized" in out
    assert "Wrote r.html" in out
    assert "Wrote r.json" in out
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["model"], told["recipe"], told["calibrated"]) == ("small:make", "int8_ptq", 24)
    assert told["sections"]["sensitivity"]["data"]["samples"] == 16
    assert told["sections"]["latency"]["state"] == "left out"
    page = (tmp_path / "r.html").read_text()
    assert all(f">{row['layer']}</th>" in page for row in told["layers"])


def test_json_is_all_that_is_printed_where_it_is_asked_for(run: Run) -> None:
    code, out, _ = run(
        "report small:make --data calib.yaml -o r.html --json "
        f"--without {MOST},sensitivity,diagnosis"
    )
    assert code == 0
    assert json.loads(out)["schema"] == 1


def test_labels_give_accuracy_of_float_simulated_and_deployed(run: Run, tmp_path: Path) -> None:
    others = MOST.replace("accuracy,", "")
    code, _, _ = run(
        "report small:make --data calib.yaml --evaluate eval.yaml -o r.html --json-out r.json "
        f"--without {others},sensitivity,diagnosis"
    )
    assert code == 0
    data = json.loads((tmp_path / "r.json").read_text())["sections"]["accuracy"]["data"]
    assert (data["metric"], data["samples"]) == ("accuracy", 24)
    assert [row["model"] for row in data["rows"]] == ["float", "simulated", "deployed"]


def test_a_section_that_fails_is_a_warning_and_the_page_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(analysed, "diagnose", fails)
    command = f"report small:make --data calib.yaml -o r.html --without {MOST},sensitivity"
    code, _, err = run(command)
    assert code == 0
    assert err == "warning: section diagnosis failed: RuntimeError: no memory\n"
    assert "Failed: RuntimeError: no memory" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("-o r.html --without speed", 3, "no section 'speed' to leave out; there are: outputs"),
        ("-o none/r.html", 7, "choose a folder that exists"),
        ("-o r.html --json-out none/r.json", 7, "choose a folder that exists"),
        ("-o r.json", 2, "give a name that ends in .html, and --json-out for JSON"),
        ("-o r.html --recipe int9", 3, "int9"),
        ("-o r.html --target nowhere", 3, "nowhere"),
        ("-o r.html --target onnxruntime --gpu A40", 2, "uses no GPU"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    run: Run, tmp_path: Path, options: str, code: int, message: str
) -> None:
    found, _, err = run(f"report small:make --data calib.yaml {options}")
    assert found == code
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("r.*"))


def test_weights_of_an_onnx_file_are_refused(run: Run) -> None:
    command = "report net.onnx --weights w.safetensors --data calib.yaml -o r.html"
    code, _, err = run(command)
    assert code == 2
    assert "leave --weights out" in err
