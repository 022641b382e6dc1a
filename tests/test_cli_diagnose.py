"""``quantkit diagnose``: what it prints, writes, and refuses."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit import cli
from quantkit.analysis.diagnosis import Diagnosis
from quantkit.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    net[0].weight.data[5] *= 40.0
    return net
"""
BAD = """
scheme:
  weights: {per: tensor}
  activations: {per: tensor}
"""

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has a large channel, a recipe that minds, and data."""
    folder = tmp_path_factory.mktemp("diagnose")
    (folder / "uneven.py").write_text(NET)
    (folder / "bad.yaml").write_text(BAD)
    rows = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    np.savez(folder / "rows.npz", input=rows)
    spec = {"source": "rows.npz", "inputs": {"input": {}}, "batch_size": 16}
    (folder / "calib.yaml").write_text(json.dumps(spec))
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("uneven", None)

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_fault_is_named_and_the_recipe_that_repairs_it_makes_a_model(
    made: Path, run: Run
) -> None:
    code, out, _ = run(
        "diagnose uneven:make --data calib.yaml --recipe bad.yaml -o layers.json "
        "--recipe-out better.yaml"
    )
    assert code == 0
    assert "Outlier channels of the weight of 0: 5 (" in out
    assert "warning[uneven-channels] 0: " in out
    assert "Together: " in out
    assert "Wrote better.yaml" in out
    head = next(line for line in out.splitlines() if line.startswith("SQNR"))
    assert head.split()[-1] == "layer"
    text = (made / "layers.json").read_text()
    data = json.loads(text)
    assert Diagnosis.from_json(text).layers[0].name == "0"
    helpful = [trial for trial in data["advice"]["trials"] if trial["verdict"] == "helps"]
    assert len(helpful) == len(data["advice"]["findings"]) > 0
    better = read_recipe(made / "better.yaml")
    assert better.model_dump(mode="json", exclude={"name"}) == {
        key: value for key, value in data["advice"]["recipe"].items() if key != "name"
    }
    assert better != read_recipe(made / "bad.yaml")
    command = "quantize uneven:make --recipe better.yaml --data calib.yaml -o better.onnx"
    assert run(command)[0] == 0
    assert (made / "better.onnx").is_file()


def test_without_advice_only_the_diagnosis_is_made(run: Run) -> None:
    code, out, _ = run("diagnose uneven:make --data calib.yaml --no-advise --samples 8 --json")
    assert code == 0
    data = json.loads(out)
    assert data["advice"] is None
    assert data["samples"] == 8
    assert [layer["name"] for layer in data["layers"]] == ["0", "2"]


def test_of_few_samples_there_is_a_diagnosis_and_the_reason_why_no_advice(run: Run) -> None:
    code, out, _ = run("diagnose uneven:make --data calib.yaml --samples 16")
    assert code == 0
    assert "No advice: it is judged by samples apart, and takes 32 of them, not 16" in out
    assert "Tried" not in out


def test_what_the_limit_of_trials_leaves_out_is_told(run: Run) -> None:
    code, out, _ = run("diagnose uneven:make --data calib.yaml --recipe bad.yaml --trials 1")
    assert code == 0
    assert "Not tried, --trials 1: " in out


def test_a_recipe_that_centers_and_rounds_by_learning_is_diagnosed(made: Path, run: Run) -> None:
    (made / "learned.yaml").write_text(
        "scheme:\n  weights: {per: channel, bits: 4}\n  activations: {symmetric: false}\n"
        "rounding: gptq\npasses: [fold_batchnorm, center]\n"
    )
    code, out, _ = run(
        "diagnose uneven:make --data calib.yaml --recipe learned.yaml --no-advise --json"
    )
    assert code == 0
    for layer in json.loads(out)["layers"]:
        assert 0.0 < layer["weights_noise"] < 0.1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("net.onnx --data calib.yaml", "net.onnx is ONNX, and a diagnosis is of PyTorch models"),
        ("uneven:make --data calib.yaml --no-advise --recipe-out r.yaml", "leave --no-advise out"),
        ("uneven:make --data calib.yaml -o nowhere/out.json", "cannot be written"),
        ("uneven:make --data calib.yaml --samples 16 --recipe-out r.yaml", "at least 32 samples"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(run: Run, options: str, why: str) -> None:
    code, out, err = run(f"diagnose {options}")
    assert code != 0
    assert out == ""
    assert len(err.splitlines()) == 1
    assert why in err
