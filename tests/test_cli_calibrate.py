"""``quantkit calibrate``, and statistics for ``quantize``: written, printed and refused."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from quantkit import cli, plugins
from quantkit.errors import DataError, ExportError, ModelFileError, RecipeError
from quantkit.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.head = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            x = torch.relu(layer(x) + x)
        return self.head(x)


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def deep() -> Net:
    torch.manual_seed(0)
    return Net(48)


def other() -> Net:
    torch.manual_seed(1)
    return Net()
"""

SMALL = "placement: {small: true}\n"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


Run = Callable[[str], Ran]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NET)
    rows = np.random.default_rng(0).standard_normal((72, 32), dtype=np.float32)
    rows *= np.exp(np.random.default_rng(1).standard_normal((72, 1), dtype=np.float32))
    broken = rows.copy()
    broken[40] = np.nan
    for name, part in {
        "calib": rows, "first": rows[:24], "second": rows[24:40], "third": rows[40:],
        "broken": broken, "many": np.tile(rows, (60, 1)),
    }.items():  # fmt: skip
        np.savez(folder / f"{name}.npz", x=part)
        spec = {"source": f"{name}.npz", "inputs": {"x": {}}, "batch_size": 8}
        (folder / f"{name}.yaml").write_text(json.dumps(spec))
    grids = "scheme: {weights: {per: channel}, activations: {}}\n"
    (folder / "small.yaml").write_text(f"{grids}{SMALL}")
    (folder / "small_best.yaml").write_text(f"{grids}{SMALL}calibrator: best\n")
    (folder / "small_mse.yaml").write_text(f"{grids}{SMALL}calibrator: mse\n")
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


def started(command: str, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    """A command line in a process of its own."""
    launch = launcher or (sys.executable, "-P")
    path = os.pathsep.join([str(ROOT), str(folder)])
    return subprocess.Popen(
        [*launch, "-m", "quantkit", *shlex.split(command)], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "100"},
    )  # fmt: skip


def same_grids(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    grids = [key for key in a if key.endswith(("scale", "zero_point"))]
    return bool(grids) and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in grids)


SAVE = "calibrate net:make --recipe small.yaml"


# What it writes


def test_statistics_are_written_and_what_was_seen_is_told(work: Path, run: Run) -> None:
    ran = run(f"{SAVE} --data calib.yaml -o told.safetensors")
    assert ran.code == 0, ran.err
    assert "Saw 3 tensors in 72 samples" in ran.out
    assert "--statistics told.safetensors" in ran.out
    told = run(f"{SAVE} --data calib.yaml -o again.safetensors --json").json
    assert (told["tensors"], told["samples"], told["output"]) == (3, 72, "again.safetensors")
    assert (work / "told.safetensors").read_bytes() == (work / "again.safetensors").read_bytes()


def test_quantizing_from_statistics_gives_the_file_that_data_give(work: Path, run: Run) -> None:
    run(f"{SAVE} --data calib.yaml -o q.safetensors")
    quantize = "quantize net:make --recipe small_mse.yaml"
    assert run(f"{quantize} --data calib.yaml -o data.onnx").code == 0
    ran = run(f"{quantize} --statistics q.safetensors --input-shape 8,32 -o statistics.onnx")
    assert ran.code == 0, ran.err
    assert (work / "data.onnx").read_bytes() == (work / "statistics.onnx").read_bytes()


def test_quantize_saves_statistics_that_serve_other_calibrators(work: Path, run: Run) -> None:
    ran = run("quantize net:make --recipe small.yaml --data calib.yaml -o s.onnx "
              "--save-statistics saved.safetensors --every 2")  # fmt: skip
    assert ran.code == 0, ran.err
    run(f"{SAVE} --data calib.yaml -o own.safetensors")
    assert (work / "saved.safetensors").read_bytes() == (work / "own.safetensors").read_bytes()


def test_merging_and_writing_is_one_command(work: Path, run: Run) -> None:
    for name in ("first", "second", "third"):
        assert run(f"{SAVE} --data {name}.yaml -o {name}.safetensors").code == 0
    parts = "--statistics first.safetensors --statistics second.safetensors"
    shape = "--input-shape 8,32"
    told = run(f"{SAVE} {parts} --statistics third.safetensors {shape} -o m.safetensors --json")
    assert told.json["samples"] == 72
    run(f"{SAVE} --data calib.yaml -o calib.safetensors")
    # Means are of the same numbers in another order: equal as grids, not always to the bit.
    for name in ("m", "calib"):
        save = f"--save {name}.grids -o x.onnx {shape}"
        options = f"--statistics {name}.safetensors {save}"
        assert run(f"quantize net:make --recipe small.yaml {options}").code == 0
    assert same_grids(work / "m.grids", work / "calib.grids")
    half = run(f"{SAVE} {parts} {shape} --compare --json").json
    assert half["samples"] == 40


def test_a_float_onnx_file_has_statistics_as_well(work: Path, run: Run) -> None:
    import net

    torch.onnx.export(
        net.make().eval(), (torch.zeros(8, 32),), work / "float.onnx", input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), dynamo=True, verbose=False,
    )  # fmt: skip
    command = "calibrate float.onnx --recipe small.yaml --data calib.yaml"
    ran = run(f"{command} -o onnx.safetensors --compare --json")
    assert ran.code == 0, ran.err
    assert (ran.json["tensors"], ran.json["samples"]) == (3, 72)
    torch_way = run(f"{SAVE} --data calib.yaml --compare --json").json
    for ours, theirs in zip(ran.json["compared"], torch_way["compared"], strict=True):  # type: ignore[call-overload]
        assert ours["high"] == pytest.approx(theirs["high"], rel=1e-5)
    written = run("quantize float.onnx --recipe small_mse.yaml --statistics onnx.safetensors "
                  "-o from.onnx")  # fmt: skip
    assert written.code == 0, written.err
    assert onnx.load(work / "from.onnx").graph.node


# What it compares


def test_a_comparison_is_complete_as_json(run: Run) -> None:
    told = run(f"{SAVE} --data calib.yaml --compare --json").json
    names = [c["calibrator"] for c in told["calibrators"]]  # type: ignore[attr-defined]
    assert {"minmax", "entropy", "mse", "percentile"} <= set(names)
    assert sum(c["won"] for c in told["calibrators"]) == 3  # type: ignore[attr-defined]
    for tensor in told["compared"]:  # type: ignore[attr-defined]
        assert [r["calibrator"] for r in tensor["ranges"]] == names
        best = max(tensor["ranges"], key=lambda r: r["sqnr"])
        assert tensor["best"] == best["calibrator"]
        assert all(r["low"] <= r["high"] for r in tensor["ranges"])
    figures = [c["output_sqnr"] for c in told["calibrators"]]  # type: ignore[attr-defined]
    assert told["best"]["output_sqnr"] >= max(figures)  # type: ignore[index]


def test_fifty_tensors_fit_a_terminal_of_100_columns(run: Run) -> None:
    ran = run("calibrate net:deep --recipe small.yaml --data calib.yaml --compare")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if line.count(".") >= 5 and "*" in line]
    assert len(rows) == 50
    assert all(line.count("*") == 1 for line in rows)
    assert any(line.startswith("tensors won") for line in lines)
    assert any(line.startswith("at the outputs") for line in lines)
    assert any(line.startswith("Use ") for line in lines)


def test_a_terminal_of_80_columns_shows_no_ranges_and_breaks_no_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run(f"{SAVE} --data calib.yaml --compare")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == ["entropy", "minmax", "moving_average", "mse", "percentile"]
    assert lines[1].split() == ["tensor", *["dB"] * 5]
    assert lines[2].count(".") == 5
    assert "a wider window" in ran.out


def test_some_tensors_and_calibrators_can_be_asked_for(run: Run) -> None:
    command = f"{SAVE} --data calib.yaml --compare --json"
    told = run(f"{command} --tensor 'relu*' --calibrator mse --calibrator minmax").json
    assert len(told["compared"]) == 2  # type: ignore[arg-type]
    assert [c["calibrator"] for c in told["calibrators"]] == ["mse", "minmax"]  # type: ignore[attr-defined]
    assert sum(c["won"] for c in told["calibrators"]) == 3  # type: ignore[attr-defined]


def test_statistics_alone_do_not_tell_of_the_outputs(run: Run) -> None:
    run(f"{SAVE} --data calib.yaml -o alone.safetensors")
    command = f"{SAVE} --statistics alone.safetensors --compare"
    ran = run(f"{command} --input-shape 8,32")
    assert ran.code == 0, ran.err
    assert "at the outputs" not in ran.out
    assert "What reaches the outputs counts more: give --data" in ran.out
    assert "at the outputs" in run(f"{command} --data calib.yaml").out


def test_the_recipe_to_use_next_is_one_that_there_is(run: Run) -> None:
    told = run("calibrate net:make --data calib.yaml --compare --json").json["best"]
    assert told["how"].startswith("--recipe ")  # type: ignore[index]
    recipe = read_recipe(plugins.recipe_path(told["how"].split()[1].rstrip(",")))  # type: ignore[index]
    assert recipe.calibrator.name == told["use"]  # type: ignore[index]
    ran = run("calibrate net:deep --recipe small.yaml --data calib.yaml --compare --json")
    use = ran.json["best"]["use"]  # type: ignore[index]
    assert ran.json["best"]["how"] == f"`calibrator: {use}` in a copy of recipe small"  # type: ignore[index]


def test_pictures_are_drawn_of_the_tensors_asked_for(work: Path, run: Run) -> None:
    ran = run(f"{SAVE} --data calib.yaml --pictures drawn --tensor x --tensor relu")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (work / "drawn").iterdir()) == ["relu.png", "x.png"]
    for path in (work / "drawn").iterdir():
        assert Image.open(io.BytesIO(path.read_bytes())).format == "PNG"
    assert "Drew 2 pictures in drawn" in ran.out


# What it refuses


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--data calib.yaml", 2, "give -o FILE or --compare"),
        ("--data calib.yaml -o x --calibrator mse", 2, "--calibrator says what to show"),
        ("--compare --resume --data calib.yaml", 2, "--resume goes on from the file of -o"),
        ("--statistics s --resume -o x", 2, "give that, and no --statistics"),
        ("-o x", DataError.exit_code, "nothing to calibrate with"),
        ("--data calib.yaml -o no/x", ExportError.exit_code, "cannot be written"),
        ("--data calib.yaml -o x --recipe int8_weight_only", RecipeError.exit_code,
         "quantizes no activations"),
        ("--data calib.yaml --compare --calibrator best", RecipeError.exit_code, "chooses from"),
        ("--data calib.yaml --compare --tensor fc", DataError.exit_code, "there are: x, relu"),
        ("--statistics no --input-shape 8,32 --compare", ModelFileError.exit_code,
         "no such file"),
        ("--data broken.yaml -o x", DataError.exit_code, "batch 5, input 'x' holds NaN"),
        ("--data calib.yaml -o x --every 0", 2, "--every"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    options: str, code: int, words: str, work: Path, run: Run
) -> None:
    recipe = "" if "--recipe" in options else "--recipe small.yaml"
    ran = run(f"calibrate net:make {recipe} {options}")
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert not (work / "x").exists()


def test_bad_input_loses_no_good_file(work: Path, run: Run) -> None:
    run(f"{SAVE} --data calib.yaml -o good.safetensors")
    before = (work / "good.safetensors").read_bytes()
    assert run(f"{SAVE} --data broken.yaml -o good.safetensors --every 1").code != 0
    other = run("calibrate net:other --recipe small.yaml --data calib.yaml -o good.safetensors "
                "--resume")  # fmt: skip
    assert other.code == ModelFileError.exit_code
    assert (work / "good.safetensors").read_bytes() == before


# Ended and resumed


def test_a_run_that_was_killed_goes_on_where_it_was(work: Path, run: Run) -> None:
    whole, killed = work / "whole.safetensors", work / "killed.safetensors"
    assert run(f"{SAVE} --data many.yaml -o whole.safetensors").code == 0
    process = started(f"{SAVE} --data many.yaml -o killed.safetensors --every 1", work)
    begun = work / "killed.safetensors.0-of-1"
    until = time.monotonic() + 120
    while not begun.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert begun.exists()
    assert not killed.exists()
    again = run(f"{SAVE} --data many.yaml -o killed.safetensors --resume --json")
    assert again.code == 0, again.err
    assert again.json["samples"] == 72 * 60
    assert killed.read_bytes() == whole.read_bytes()
    assert not begun.exists()


# Several processes


def torchrun(command: str, folder: Path, processes: int) -> Ran:
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={processes}")  # fmt: skip
    process = started(command, folder, *launcher)
    out, err = process.communicate(timeout=300)
    return Ran(process.returncode, out, err)


@pytest.mark.slow
def test_torchrun_shares_the_data_and_one_process_prints(work: Path) -> None:
    command = "quantize net:make --recipe small_best.yaml --data calib.yaml"
    alone = started(f"{command} -o alone.onnx --save alone.grids", work)
    alone.communicate()
    ran = torchrun(f"{command} -o two.onnx --save two.grids --json", work, 2)
    assert ran.code == 0, ran.err
    assert ran.json["output"] == "two.onnx"  # one document, of one process
    assert (work / "two.onnx").read_bytes() == (work / "alone.onnx").read_bytes()
    assert same_grids(work / "two.grids", work / "alone.grids")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (f"{SAVE} --data broken.yaml -o t.safetensors", DataError.exit_code, "batch 5"),
    ],
)
def test_under_torchrun_an_error_is_told_once(
    command: str, code: int, words: str, work: Path
) -> None:
    ran = torchrun(command, work, 2)
    assert ran.code != 0
    assert ran.out == ""
    told = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert len(told) == 1, ran.err
    assert words in told[0]
    assert f"exitcode: {code}" in ran.err.replace("exitcode  :", "exitcode:")
    assert not (work / "t.safetensors").exists()


@pytest.mark.parametrize(("rank", "prints"), [("0", True), ("1", False)])
def test_of_several_processes_one_runs_a_command_that_they_cannot_share(
    rank: str, prints: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    ran = run("recipes int8_ptq")
    assert (ran.code, bool(ran.out), ran.err) == (0, prints, "")
