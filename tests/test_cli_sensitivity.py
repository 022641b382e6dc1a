"""``quantkit sensitivity`` and ``quantkit mix``: what they print, write, and refuse."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantkit import cli
from quantkit._cli_mix import fraction_or_bytes
from quantkit.analysis.losses import Sensitivity
from quantkit.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                         nn.Linear(64, 16))


def score(outputs, labels):
    return float(outputs.abs().mean())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, and the sensitivities of the model."""
    folder = tmp_path_factory.mktemp("sensitivity")
    (folder / "linears.py").write_text(NET)
    rows = np.random.default_rng(0).standard_normal((40, 32), dtype=np.float32)
    labels = np.arange(40) % 16
    np.savez(folder / "rows.npz", input=rows, y=labels)
    spec = {"source": "rows.npz", "inputs": {"input": {}}, "batch_size": 16}
    (folder / "calib.yaml").write_text(json.dumps(spec))
    (folder / "eval.yaml").write_text(json.dumps(spec | {"label": "y"}))
    return folder


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("linears", None)
    return made


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def layers(work: Path, run: Run) -> Path:
    """The sensitivities, measured once."""
    path = work / "layers.json"
    if not path.exists():
        command = "sensitivity linears:make --data calib.yaml --format w4a8 -o layers.json"
        assert run(command)[0] == 0
    return path


def test_sensitivity_prints_the_worst_first_and_what_it_cost(run: Run, layers: Path) -> None:
    code, out, _ = run("sensitivity linears:make --data calib.yaml --format w4a8")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].split() == ["int8_ptq", "w4a8", "layer"]
    figures = [float(line.split()[0]) for line in lines[2:5]]
    assert figures == sorted(figures)
    assert "All together, predicted: int8_ptq " in out
    assert "40 samples" in out


def test_sensitivity_prints_json_and_nothing_else(run: Run, layers: Path) -> None:
    code, out, _ = run("sensitivity linears:make --data calib.yaml --format w4a8 --json")
    assert code == 0
    assert Sensitivity.from_json(out) == Sensitivity.from_json(layers.read_text())


def test_a_metric_of_labels_or_of_ones_own_is_told(run: Run) -> None:
    data = "sensitivity linears:make --data calib.yaml --samples 8 --evaluate"
    code, out, _ = run(f"{data} eval.yaml")
    assert code == 0
    assert "The float model's metric:" in out
    assert "int8_ptq metric" in out
    code, out, _ = run(f"{data} calib.yaml --json")
    assert (code, json.loads(out)["float_metric"]) == (0, 100.0)  # it agrees with itself
    code, out, _ = run(f"{data} eval.yaml --metric linears:score --json")
    assert code == 0
    told = json.loads(out)
    assert 0.0 < told["parts"][0]["losses"][0]["metric"] != told["float_metric"]


def test_the_bars_are_drawn(work: Path, run: Run) -> None:
    for name, begin in (("bars.png", b"\x89PNG"), ("bars.svg", b"<?xml")):
        command = f"sensitivity linears:make --data calib.yaml --samples 8 --plot {name}"
        assert run(command)[0] == 0
        assert (work / name).read_bytes().startswith(begin)


def test_mix_writes_a_recipe_that_quantize_takes(work: Path, run: Run, layers: Path) -> None:
    code, out, _ = run("mix layers.json --size 80% -o mixed.yaml --json")
    assert code == 0
    told = json.loads(out)
    assert told["size"] <= 0.8
    fewer = {name for name, format in told["chosen"].items() if format == "w4a8"}
    recipe = read_recipe(work / "mixed.yaml")
    assert {override.module for override in recipe.overrides} == fewer
    command = "quantize linears:make --recipe mixed.yaml --data calib.yaml -o mixed.onnx --json"
    code, out, err = run(command)
    assert code == 0
    bits = {t["grid"]: t["spec"]["bits"] for t in json.loads(out)["plan"]["tensors"]}
    assert {name for name in told["chosen"] if bits[f"{name}.weight"] == 4} == fewer
    assert "warning" not in err


def test_mix_tells_what_it_chose(run: Run, layers: Path) -> None:
    code, out, _ = run("mix layers.json --float-layers 1 -o one.yaml")
    assert code == 0
    worst = Sensitivity.from_json(layers.read_text()).ranked()[0].name
    assert any(line.split() == ["1", "float", worst] for line in out.splitlines())
    assert "Wrote one.yaml: 1 layer not as in int8_ptq" in out


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("sensitivity float.onnx --data calib.yaml", 2, "sensitivities are of PyTorch models"),
        ("sensitivity linears:make", 2, "Missing option '--data'"),
        ("sensitivity linears:make --data no.yaml", 4, "No such file"),
        ("sensitivity linears:make --data calib.yaml --format w4b8", 3, "no format 'w4b8'"),
        ("sensitivity linears:make --data calib.yaml --metric mse", 2, "--metric needs --evaluate"),
        ("sensitivity linears:make --data calib.yaml --plot a.jpg", 7, "PNG or SVG"),
        (
            "sensitivity linears:make --data calib.yaml --evaluate calib.yaml --metric accuracy",
            4, "names no column of labels",
        ),
        ("mix no.json --size 60% -o a.yaml", 6, "no such file"),
        ("mix calib.yaml --size 60% -o a.yaml", 6, "calib.yaml: no sensitivities"),
        ("mix layers.json -o a.yaml", 2, "no budget: give --size"),
        ("mix layers.json --size 6O% -o a.yaml", 2, "is no size: write 60%"),
        ("mix layers.json --bit-operations 3MB -o a.yaml", 2, "is no fraction: write 50%"),
        ("mix layers.json --size 10% -o a.yaml", 3, "cannot be kept: the least"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(
    command: str, code: int, words: str, run: Run, layers: Path, work: Path
) -> None:
    got, _, err = run(command)
    assert got == code, err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (work / "a.yaml").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("60%", 0.6), ("1", 1.0), ("150%", 1.5), (".5", 0.5), ("2kB", 2000), ("70", 70)],
)
def test_sizes_are_fractions_or_bytes(text: str, value: float) -> None:
    found = fraction_or_bytes(text)
    assert found == value
    assert isinstance(found, type(value))
