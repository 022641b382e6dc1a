"""``quantkit recover``: what it prints, writes and refuses, and what its file makes again."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from quantkit import cli
from quantkit.errors import DataError, ExportError, ModelFileError, RecipeError
from quantkit.recipe import read_recipe
from quantkit.recovering.ladder import LADDER

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(32, 64), nn.Linear(64, 16)
        with torch.no_grad():
            spread = torch.logspace(-2, 2, 64)
            self.stem.weight *= spread[:, None]
            self.stem.bias *= spread
            self.head.weight /= spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)))


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def closeness(outputs, labels):
    return -float((outputs - labels).square().mean())
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Run = Callable[[str], Ran]


def write_data(folder: Path, name: str, x: np.ndarray, labels: np.ndarray | None = None) -> None:
    columns = {"x": x} if labels is None else {"x": x, "y": labels}
    np.savez(folder / f"{name}.npz", **columns)
    spec: dict[str, object] = {"source": f"{name}.npz", "inputs": {"x": {}}, "batch_size": 16}
    if labels is not None:
        spec["label"] = "y"
    (folder / f"{name}.yaml").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    names: dict[str, Any] = {"__name__": "net"}
    exec(NET, names)
    net = names["make"]().eval()
    rows = np.random.default_rng(0).standard_normal((160, 32), dtype=np.float32)
    with torch.no_grad():
        logits = net(torch.from_numpy(rows)).numpy()
    labels = logits.argmax(axis=1)
    write_data(folder, "both", rows, labels)
    write_data(folder, "calib", rows[:64])
    write_data(folder, "hold", rows[64:], labels[64:])
    write_data(folder, "logits", rows[64:], logits[64:])
    write_data(folder, "plain", rows[64:])
    write_data(folder, "shared", rows[60:], labels[60:])
    write_data(folder, "one", rows[:1], labels[:1])
    (folder / "poor.yaml").write_text("scheme: {weights: {}, activations: {}}\n")
    (folder / "trains.yaml").write_text(
        "scheme: {weights: {}, activations: {}}\ntraining: {epochs: 2, learning_rate: 1.0e-3}\n"
    )
    torch.save(net.state_dict(), folder / "net.pth")
    return folder


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    sys.modules.pop("net", None)
    return made


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str) -> Ran:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


def only(*steps: str) -> str:
    others = (step.name for step in LADDER if step.name not in steps)
    return " ".join(f"--skip {shlex.quote(name)}" for name in others)


QUICK = only("equalization")
RECOVER = "recover net:make --recipe poor.yaml --data calib.yaml --holdout hold.yaml"


def labelled(path: Path, rows: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of a file in ONNX Runtime, in percent."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options)
    (logits,) = session.run(None, {"x": rows})
    return 100.0 * float((logits.argmax(1) == labels).mean())


def graph(path: Path) -> Any:
    """All that a file computes; the recipe's description stands beside it."""
    return onnx.load(path).graph


def test_the_written_recipe_and_the_command_beside_it_make_the_same_model(
    work: Path, run: Run
) -> None:
    ran = run(f"{RECOVER} --max-drop 5 {QUICK} -o found.yaml --onnx found.onnx --json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["met"], told["metric"], told["float"]) == (True, "accuracy", 100.0)
    assert told["drop"] <= 5.0 < told["attempts"][0]["drop"]
    assert told["command"] in (work / "found.yaml").read_text()
    # As it stands in the file, to another name.
    again = run(told["command"].removeprefix("quantkit ").replace("-o found.onnx", "-o again.onnx"))
    assert again.code == 0, again.err
    with np.load(work / "hold.npz") as data:
        x, y = data["x"], data["y"]
    ours, theirs = (labelled(work / name, x, y) for name in ("found.onnx", "again.onnx"))
    assert ours == theirs == pytest.approx(told["attempts"][-1]["deployed"])
    assert graph(work / "found.onnx") == graph(work / "again.onnx")


def test_each_candidate_is_a_line_of_eighty_and_the_end_tells_what_was_written(run: Run) -> None:
    ran = run(f"{RECOVER} --max-drop 5 {QUICK} -o lines.yaml")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith("Float model: accuracy 100.00 %; at most 5 may be lost")
    head = next(line for line in lines if line.startswith("step"))
    assert head.split() == ["step", "change", "accuracy", "drop", "SQNR", "dB", "seconds"]
    assert re.search(
        r"^baseline +poor +\d+\.\d\d +\d+\.\d\d +-?\d+\.\d +\d+\.\d \*$", ran.out, re.M
    )
    assert re.search(r"^equalization +\+ equalize +\d", ran.out, re.M)
    assert "in ONNX Runtime the drop is" in ran.out
    assert re.search(r"^Recovered: accuracy \d+\.\d\d %", ran.out, re.M)
    assert "Wrote lines.yaml: " in ran.out
    assert all(len(line) <= 80 for line in lines if not line.startswith("Next: quantkit"))
    assert ran.err == ""


def test_a_goal_that_is_not_met_exits_with_1_and_still_writes_the_best(
    work: Path, run: Run
) -> None:
    logits = RECOVER.replace("hold.yaml", "logits.yaml")
    ran = run(f"{logits} --metric net:closeness --max-drop 0 {only()} -o unmet.yaml")
    assert ran.code == 1
    assert re.search(r"^NOT recovered: net:closeness", ran.out, re.M)
    assert "Way out: more --time-limit" in ran.out
    text = (work / "unmet.yaml").read_text()
    assert text.startswith("# NOT recovered: net:closeness")
    assert read_recipe(work / "unmet.yaml").scheme == read_recipe(work / "poor.yaml").scheme


def test_without_held_out_data_the_data_are_split_and_the_part_that_calibrates_is_written(
    work: Path, run: Run
) -> None:
    ran = run(f"recover net:make --recipe poor.yaml --data both.yaml --max-drop 5 {QUICK} --json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["output"], told["samples"]) == ("recovered.yaml", 80)
    spec = json.loads(json.dumps(_yaml(work / "recovered.calibration.yaml")))
    assert (spec["source"], spec["limit"], spec["seed"]) == ("both.npz", 80, 0)
    assert "--data recovered.calibration.yaml" in told["command"]
    command = told["command"].removeprefix("quantkit ")
    assert run(command).code == 0
    with np.load(work / "both.npz") as data:
        order = np.random.default_rng(0).permutation(160)[80:]
        found = labelled(work / "recovered.onnx", data["x"][order], data["y"][order])
    assert found == pytest.approx(told["attempts"][-1]["deployed"])


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def test_data_without_labels_are_judged_by_agreement(run: Run) -> None:
    plain = "recover net:make --recipe poor.yaml --data calib.yaml --holdout plain.yaml"
    told = run(f"{plain} --max-drop 90 {only()} -o plain-found.yaml --json").json
    assert (told["metric"], told["float"]) == ("agreement", 100.0)


def test_a_trained_model_is_made_again_by_the_command_that_is_told(work: Path, run: Run) -> None:
    options = f"--recipe trains.yaml --train calib.yaml --weights net.pth {only('training')}"
    ran = run(
        f"recover net:make --data calib.yaml --holdout logits.yaml --metric mse "
        f"--max-drop 0 {options} -o trained.yaml --onnx trained.onnx --json"
    )
    told = ran.json
    assert (ran.code, told["trained"], told["float"]) == (1, True, 0.0)
    assert told["command"].startswith("quantkit finetune net:make --recipe trained.yaml")
    command = told["command"].removeprefix("quantkit ").replace("-o trained.onnx", "-o t2.onnx")
    assert run(command).code == 0
    assert graph(work / "trained.onnx") == graph(work / "t2.onnx")


def test_a_run_that_resumes_says_what_it_has_taken_over(work: Path, run: Run) -> None:
    options = f"--max-drop 5 {QUICK} --checkpoint c.json --resume -o resumed.yaml"
    first, second = (run(f"{RECOVER} {options}") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert "of an earlier run" not in first.out
    measured = sum("*" in line or re.search(r"\d$", line) is not None for line in _rows(second.out))
    assert second.out.count("of an earlier run") == measured > 1
    ran = run(f"{RECOVER.replace('calib', 'plain')} {options}")
    assert ran.code == DataError.exit_code  # they calibrate and judge


def _rows(out: str) -> list[str]:
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("step"))
    return [line for line in lines[start + 1 :] if re.match(r"\w.* \d+\.\d( \*)?$", line)]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--data calib.yaml --holdout shared.yaml", DataError.exit_code, "calibrate as well"),
        ("--data one.yaml", DataError.exit_code, "too few to split"),
        ("--data lost.yaml", DataError.exit_code, "lost.yaml"),
        ("--data both.yaml --metric acuracy", DataError.exit_code, "no metric 'acuracy'"),
        ("--data both.yaml --skip training2", RecipeError.exit_code, "no step 'training2'"),
        ("--data both.yaml --allow everything", RecipeError.exit_code, "per_channel"),
        ("--data both.yaml --recipe none", RecipeError.exit_code, "no recipe 'none'"),
        ("--data both.yaml -o no/such.yaml", ExportError.exit_code, "cannot be written"),
        ("--data both.yaml --time-limit soon", 2, "30m"),
        ("--data both.yaml --max-drop -1", 2, "0 or more"),
        ("--data both.yaml --resume", 2, "--checkpoint"),
        ("--data both.yaml --labels", 2, "--train"),
        ("--data both.yaml --weights lost.pth", ModelFileError.exit_code, "lost.pth"),
        ("", 2, "--data"),
    ],
)
def test_what_means_nothing_is_one_line(run: Run, options: str, code: int, words: str) -> None:
    ran = run(f"recover net:make {options}")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert words in ran.err
    assert ran.err.count("\n") == 1
