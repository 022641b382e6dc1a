"""``quantkit finetune``: what it writes and prints, how it resumes, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import re
import shlex
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from quantkit import cli
from quantkit.errors import (
    DataError,
    ExportError,
    MissingDependencyError,
    ModelFileError,
    RecipeError,
    TrainingError,
)
from quantkit.graph.plan import Placement
from quantkit.qat import snapshots

pytestmark = pytest.mark.usefixtures("one_thread")

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 64)
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(x)))


class Twice(Net):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = super().forward(x)
        return y, 2 * y


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def twice() -> Net:
    torch.manual_seed(0)
    return Twice()


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)
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
    spec: dict[str, object] = {"source": f"{name}.npz", "inputs": {"x": {}}, "batch_size": 32}
    if labels is not None:
        spec["label"] = "y"
    (folder / f"{name}.yaml").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the labels that it gives itself, and data that do not fit it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    names: dict[str, Any] = {"__name__": "net"}
    exec(NET, names)
    net = names["make"]().eval()
    rows = np.random.default_rng(0).standard_normal((448, 32), dtype=np.float32)
    with torch.no_grad():
        labels = net(torch.from_numpy(rows)).argmax(dim=1).numpy()
    write_data(folder, "calib", rows[:64])
    write_data(folder, "train", rows[:320], labels[:320])
    write_data(folder, "eval", rows[320:], labels[320:])
    write_data(folder, "plain", rows[320:])
    write_data(folder, "wide", np.tile(rows[:32], 2), labels[:32])
    write_data(folder, "scores", rows[:32], labels[:32].astype(np.float32))
    write_data(folder, "classes", rows[:32], labels[:32] + 16)
    late = labels[:320].copy()
    late[300] = 99
    write_data(folder, "late", rows[:320], late)
    write_data(folder, "empty", rows[:0], labels[:0])
    (folder / "malformed.yaml").write_text("source: [unclosed\n")
    (folder / "lost.yaml").write_text('{"source": "lost.npz", "inputs": {"x": {}}}')
    (folder / "steep.yaml").write_text(
        "scheme: {weights: {per: channel}}\ntraining: {optimizer: sgd, learning_rate: 1.0e+30}\n"
    )
    (folder / "bare.yaml").write_text("scheme: {}\n")
    torch.save(torch.zeros(3), folder / "tensor.pth")
    torch.save(net.state_dict(), folder / "net.pth")
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(net, (torch.zeros(2, 32),), dynamic_shapes=batch)
    torch.export.save(program, folder / "net.pt2")
    return folder


@pytest.fixture
def work(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    monkeypatch.setenv("COLUMNS", "100")
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


TUNE = (
    "finetune net:make --recipe w4a8_qat --data calib.yaml --train train.yaml --epochs 3 "
    "--learning-rate 1e-3"
)


# What it writes


def test_the_file_computes_what_training_has_made_better(work: Path, run: Run) -> None:
    told = run(f"{TUNE} --epochs 6 --evaluate plain.yaml -o better.onnx --json").json["training"]
    assert told["metric"] == "SQNR, dB"
    assert told["best"]["metric"] > told["before"] + 1.0
    x, y = (np.load(work / "eval.npz")[name] for name in ("x", "y"))
    session = onnxruntime.InferenceSession(work / "better.onnx")
    (logits,) = session.run(None, {"x": x})
    with torch.no_grad():
        import net

        wanted = net.make()(torch.from_numpy(x)).numpy()
    noise = np.square(logits - wanted).sum() / np.square(wanted).sum()
    assert -10 * math.log10(noise) == pytest.approx(told["best"]["metric"], abs=0.1)
    assert (logits.argmax(1) == y).mean() > 0.9
    assert run("check better.onnx --target onnxruntime").code == 0


def test_each_epoch_is_a_line_and_the_end_tells_what_was_written(run: Run) -> None:
    ran = run(f"{TUNE} --evaluate eval.yaml --weights net.pth -o lines.onnx")
    assert ran.code == 0, ran.err
    head, before, *trained = ran.out.splitlines()[:5]
    assert head.split() == ["epoch", "loss", "top-1", "accuracy", "%", "seconds"]
    assert re.fullmatch(r"0 +- +\d+\.\d\d\* +\d+\.\d", before)
    assert [line.split()[0] for line in trained] == ["1", "2", "3"]
    assert re.search(r"Fine-tuned in \d+ s: top-1 accuracy \d+\.\d\d % before, ", ran.out)
    assert "(float model: 100.00 %)" in ran.out
    assert "3 of 3 layers quantized" in ran.out
    assert "Wrote lines.onnx" in ran.out
    assert ran.err == ""


def test_the_json_is_one_object_with_every_epoch(work: Path, run: Run) -> None:
    ran = run(f"{TUNE} --labels --evaluate eval.yaml -o told.onnx --json")
    told = ran.json
    assert told["bytes"] == (work / "told.onnx").stat().st_size
    assert (told["recipe"], told["form"], told["warnings"]) == ("w4a8_qat", "tensorrt", [])
    training = told["training"]
    assert [epoch["number"] for epoch in training["epochs"]] == [0, 1, 2, 3]
    assert training["epochs"][0]["loss"] is None
    metrics = [epoch["metric"] for epoch in training["epochs"]]
    assert training["before"] == metrics[0]
    assert training["best"]["metric"] == max(metrics)
    assert training["float"] == 100.0
    assert training["metric"] == "top-1 accuracy, %"


def test_without_held_out_data_the_last_epoch_is_taken_and_saved(work: Path, run: Run) -> None:
    options = "--save-plan plan.json --save state.safetensors"
    ran = run(f"{TUNE} {options} -o last.onnx")
    assert ran.out.splitlines()[0].split() == ["epoch", "loss", "seconds"]
    assert re.search(r"Fine-tuned in \d+ s: loss [\d.e-]+ at epoch 3", ran.out)
    assert "With --evaluate EVAL.yaml the best epoch is kept" in ran.out
    assert len(Placement.from_json((work / "plan.json").read_text()).quantized) == 3
    state = load_file(work / "state.safetensors")
    untrained = torch.load(work / "net.pth", weights_only=True)
    assert not torch.equal(state["graph.body.weight"], untrained["body.weight"])


def test_a_run_that_makes_nothing_better_says_so(work: Path, run: Run) -> None:
    worse = "--learning-rate 0.5 --grids fixed --evaluate plain.yaml"
    ran = run(f"{TUNE} --epochs 1 {worse} -o worse.onnx")
    assert ran.code == 0, ran.err
    assert "no epoch was better" in ran.out
    assert "another --learning-rate" in ran.out


@pytest.mark.parametrize(
    "options",
    [
        "net:make --recipe int8_qat --data calib.yaml --grids follow",
        "net.pt2 --recipe w4a8_qat --data calib.yaml --grids fixed",
        "net:make --recipe int8_weight_only",
        "net:make --recipe int8_weight_only --input-shape 2,32 --target onnxruntime",
        "net:twice --recipe w4a8_qat --data calib.yaml --feature body --feature 'st*'",
        "net:make --recipe w4a8_qat --data calib.yaml --labels --no-teacher",
    ],
)
def test_other_models_recipes_and_teachers_train_alike(options: str, work: Path, run: Run) -> None:
    data = "--train train.yaml --evaluate plain.yaml --epochs 1 -o other.onnx --json"
    told = run(f"finetune {options} {data}").json["training"]
    assert len(told["epochs"]) == 2
    assert told["best"]["metric"] >= told["before"]
    assert onnx.load(work / "other.onnx").graph.node


def test_another_seed_makes_another_run(run: Run) -> None:
    losses = [
        run(f"{TUNE} --epochs 1 --seed {seed} -o seed.onnx --json").json["training"]["best"]["loss"]
        for seed in (0, 1)
    ]
    assert losses[0] != losses[1]


# Ended and resumed


def test_a_run_that_was_ended_goes_on_to_the_same_file_and_another_run_does_not(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = f"{TUNE} --labels --evaluate plain.yaml"
    whole = run(f"{tune} -o whole.onnx --json").json["training"]

    def ended(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    save = snapshots.save
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save", ended)
        assert run(f"{tune} --checkpoint run.ckpt -o parts.onnx").code == 130
    assert not (work / "parts.onnx").exists()
    again = run(f"{tune} --checkpoint run.ckpt --resume -o parts.onnx --json").json["training"]
    assert (work / "parts.onnx").read_bytes() == (work / "whole.onnx").read_bytes()
    for one, other in zip(whole["epochs"], again["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    ran = run(f"{tune} --epochs 4 --checkpoint run.ckpt --resume -o refused.onnx")
    assert (ran.code, ran.out) == (ModelFileError.exit_code, "")
    assert "run.ckpt: of a run with another choice" in ran.err
    assert ran.err.count("\n") == 1


# What it refuses

CALIB = "--data calib.yaml"
GOOD = f"{CALIB} --train train.yaml"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (CALIB, 2, "Missing option '--train'"),
        ("--train train.yaml", DataError.exit_code, "needs calibration data; give --data"),
        (f"{CALIB} --train absent.yaml", DataError.exit_code, "absent.yaml"),
        (f"{CALIB} --train malformed.yaml", DataError.exit_code, "malformed.yaml: while parsing"),
        (f"{CALIB} --train lost.yaml", DataError.exit_code, "lost.npz: no such file"),
        (f"{CALIB} --train empty.yaml", DataError.exit_code, "empty.npz has no row"),
        (f"{CALIB} --train wide.yaml", DataError.exit_code,
         "wide.yaml: batch 0, input 'x': got float32 (32, 64), expected float32 (any, 32)"),
        (f"{CALIB} --train plain.yaml --labels", DataError.exit_code,
         "plain.yaml: names no column of labels, and --labels learns from them; set label"),
        (f"{CALIB} --train scores.yaml --labels", DataError.exit_code,
         "scores.yaml: batch 0: labels are torch.float32, not whole numbers"),
        (f"{CALIB} --train classes.yaml --labels", DataError.exit_code,
         "and the model has 16 classes, from 0"),
        (f"{CALIB} --train late.yaml --labels", DataError.exit_code, "there is a label 99"),
        (f"{GOOD} --evaluate absent.yaml", DataError.exit_code, "absent.yaml"),
        (f"{GOOD} --evaluate wide.yaml", DataError.exit_code, "wide.yaml: batch 0, input 'x'"),
        (f"{GOOD} --evaluate scores.yaml", DataError.exit_code, "scores.yaml: batch 0: labels"),
        (f"{GOOD} --evaluate late.yaml", DataError.exit_code, "late.yaml: batch 9: there is a"),
        (f"{GOOD} --no-teacher", 2, "give --labels too"),
        (f"{GOOD} --labels --no-teacher --feature body", 2, "leave --no-teacher out"),
        (f"{GOOD} --resume", 2, "--resume goes on from the file of --checkpoint"),
        (f"{GOOD} --epochs 0", 2, "'--epochs'"),
        (f"{GOOD} --learning-rate 0", 2, "0 is not over 0 and up to 1000"),
        (f"{GOOD} --learning-rate nan", 2, "nan is not over 0 and up to 1000"),
        (f"{GOOD} --grids move", 2, "'move' is not one of 'follow'"),
        (f"{GOOD} --feature no*", RecipeError.exit_code, "no module 'no*'"),
        (f"{GOOD} --recipe w4a8_qat --grids follow", RecipeError.exit_code,
         "searches a histogram, which cannot be done at each step"),
        (f"{GOOD} --recipe int8_qta", RecipeError.exit_code, "did you mean 'int8_qat'?"),
        (f"{GOOD} --recipe bare.yaml", RecipeError.exit_code, "quantizes nothing of this model"),
        (f"{GOOD} --recipe int8_asymmetric --form tensorrt", RecipeError.exit_code,
         "use --recipe int8_ptq, or --form onnxruntime"),
        (f"{GOOD} --gpu A40", 2, "give --target as well"),
        (f"{GOOD} --weights tensor.pth", ModelFileError.exit_code, "tensor.pth: holds"),
        (f"{GOOD} --checkpoint tensor.pth --resume", ModelFileError.exit_code,
         "tensor.pth: no checkpoint of finetune"),
        (f"{GOOD} --checkpoint net.pth --resume", ModelFileError.exit_code,
         "net.pth: no checkpoint of finetune"),
        (f"{GOOD} --checkpoint net.py --resume", ModelFileError.exit_code,
         "net.py: no checkpoint of finetune"),
        (f"{GOOD} --checkpoint no/run.ckpt", ExportError.exit_code, "run.ckpt: cannot be written"),
        (f"{GOOD} --save no/state", ExportError.exit_code, "no/state: cannot be written"),
        (f"{GOOD} --recipe steep.yaml", TrainingError.exit_code,
         "lower the learning rate"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    options: str, code: int, words: str, work: Path, run: Run
) -> None:
    ran = run(f"finetune net:make {options} -o refused.onnx")
    lines = [line for line in ran.err.splitlines() if not line.startswith("warning[")]
    assert len(lines) == 1
    assert words in lines[0]
    assert lines[0].startswith("error: ")
    assert ran.code == code
    assert not list(work.glob("*refused*"))
    # No epoch was begun, but where the data or the loss turn bad in one.
    assert bool(ran.out) == (code == TrainingError.exit_code and "epoch" in ran.out)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("net.onnx", 2, "net.onnx is ONNX, and fine-tuning needs the PyTorch model"),
        ("net:Nothing", RecipeError.exit_code, "quantizes nothing of this model"),
        ("net:mak", ModelFileError.exit_code, "no 'mak' there"),
        ("net:twice --labels", DataError.exit_code, "labels need one output of logits"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(
    model: str, code: int, words: str, run: Run
) -> None:
    ran = run(f"finetune {model} {GOOD} -o refused.onnx")
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_an_output_that_cannot_be_written_is_told_first(run: Run) -> None:
    ran = run("finetune net:make --data absent.yaml --train absent.yaml -o no/net.onnx")
    assert (ran.code, ran.err.count("\n")) == (ExportError.exit_code, 1)


# What shows while it trains


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="TensorBoard is installed")
def test_tensorboard_that_is_missing_is_told_before_any_work(work: Path, run: Run) -> None:
    ran = run(f"{TUNE} --tensorboard events -o refused.onnx")
    assert ran.code == MissingDependencyError.exit_code
    assert "pip install tensorboard" in ran.err
    assert not (work / "events").exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_events_are_written_for_tensorboard(work: Path, run: Run) -> None:
    assert run(f"{TUNE} --tensorboard events -o events.onnx").code == 0
    assert list((work / "events").glob("events.out.*"))
    ran = run(f"{TUNE} --tensorboard net.py -o refused.onnx")
    assert (ran.code, ran.err.count("\n")) == (ExportError.exit_code, 1)


def test_on_a_terminal_the_bar_wipes_out_no_line(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    leader, follower = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(leader, 4096):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(follower, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            assert cli.main(shlex.split(f"{TUNE} -o pty.onnx")) == 0
    finally:
        reader.join(timeout=30)
        os.close(leader)
    text = b"".join(seen).decode()
    assert "epoch 1 of 3" in text
    # A line of an epoch stands on a line that the bar has left.
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", text)]
    for number in (1, 2, 3):
        assert any(re.fullmatch(rf"{number} +[\d.e-]+ +\d+\.\d", line.rstrip()) for line in lines)
