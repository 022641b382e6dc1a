"""``quantkit check --state``: a gate for CI that names the layer where a file leaves its model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quantkit import cli

NET = """
import torch
from torch import nn


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 32))
"""
CHECK = "check net.onnx --target onnxruntime --model gate:make --data calib.yaml --state net.qk"

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, the quantized file and its state."""
    made = tmp_path_factory.mktemp("gate")
    (made / "gate.py").write_text(NET)
    rows = np.random.default_rng(0).standard_normal((96, 32), dtype=np.float32)
    np.savez(made / "calib.npz", input=rows)
    spec = {"source": "calib.npz", "inputs": {"input": {}}, "batch_size": 8}
    (made / "calib.yaml").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.syspath_prepend(str(made))
        sys.modules.pop("gate", None)
        line = (
            "quantize gate:make --recipe int8_accurate --data calib.yaml -o net.onnx --save net.qk"
        )
        assert cli.main(shlex.split(line)) == 0
    return made


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in that folder: exit code, standard output and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("gate", None)

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def plant(folder: Path) -> str:
    """A wrong scale in one Q and DQ; returns its tensor."""
    proto = onnx.load(folder / "net.onnx")
    nodes = [n for n in proto.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    names = [p.value for n in nodes for p in n.metadata_props if p.key == "quantkit.tensor"]
    tensor = next(name for name in names if "relu" in name)
    mine = [n for n in nodes if any(p.value == tensor for p in n.metadata_props)]
    old = next(t for t in proto.graph.initializer if t.name == mine[0].input[1])
    new = numpy_helper.from_array(numpy_helper.to_array(old) * np.float32(1.1), "planted")
    proto.graph.initializer.append(new)
    for node in mine:
        node.input[1] = "planted"
    onnx.save(proto, folder / "faulty.onnx")
    return tensor


def test_a_sound_file_passes_and_every_layer_is_told(run: Run) -> None:
    code, out, err = run(f"{CHECK} --layers")
    assert (code, err) == (0, "")
    assert "Layer by layer, over 64 samples" in out
    for column in ("simulated / float", "deployed / simulated", "by itself"):
        assert column in out
    assert "ok: net.onnx has no errors" in out


def test_the_json_holds_every_comparison(run: Run) -> None:
    code, out, _ = run(f"{CHECK} --json --samples 16")
    found = json.loads(out)["layer_parity"]
    assert code == 0
    assert found["samples"] == 16
    assert found["departs"] is None
    layers = [t for t in found["tensors"] if t["kind"] == "layer"]
    assert [t["name"] for t in layers] == ["0", "2", "4"]
    for tensor in layers:
        assert set(tensor["simulated"]) == {"sqnr", "cosine", "largest", "agreement"}
        assert 20 < tensor["simulated"]["sqnr"] < 60


def test_a_planted_fault_is_named_and_fails_the_gate(run: Run, folder: Path) -> None:
    tensor = plant(folder)
    code, out, _ = run(CHECK.replace("net.onnx", "faulty.onnx"))
    assert code == 1
    assert f"error[departs-from-simulation] {tensor}" in out
    assert f"error[wrong-scale] {tensor}" in out


def test_the_threshold_is_an_option(run: Run, folder: Path) -> None:
    tensor = plant(folder)
    faulty = CHECK.replace("net.onnx", "faulty.onnx") + " --json"
    for least, departs in ((50, tensor), (5, None)):
        found = json.loads(run(f"{faulty} --min-layer-sqnr {least}")[1])
        assert found["layer_parity"]["departs"] == departs


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("check net.onnx --target onnxruntime --state net.qk", "--state needs --model"),
        (
            CHECK.replace("--state net.qk", "--state lost.qk"),
            "lost.qk: no such file; give what quantize --save wrote",
        ),
        (CHECK.replace("--state net.qk", "--state calib.npz"), "not a safetensors file"),
        (CHECK.replace("gate:make", "net.onnx"), "--state is of a PyTorch model"),
        (CHECK + " --min-layer-sqnr nan", "min_layer_sqnr"),
    ],
)
def test_what_cannot_be_is_one_line(command: str, words: str, run: Run) -> None:
    code, out, err = run(command)
    assert code != 0
    assert out == ""
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_file_that_another_tool_rewrote_tells_no_recipe(run: Run, folder: Path) -> None:
    proto = onnx.load(folder / "net.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, folder / "bare.onnx")
    code, _, err = run(CHECK.replace("net.onnx", "bare.onnx"))
    assert code != 0
    assert "tells no recipe" in err
