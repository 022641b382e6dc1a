"""A float ONNX file as MODEL on the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
from onnx_folder import Run, fill, runner

from quantkit.graph.plan import Placement
from quantkit.onnx.facts import FileFacts
from quantkit.workflow_onnx import quantize_onnx

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("work")
    fill(made)
    return made


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(folder, monkeypatch, capsys)


def test_a_float_file_becomes_one_with_qdq_and_the_same_report(run: Run, folder: Path) -> None:
    code, out, err = run("quantize float.onnx --data calib.yaml -o net.onnx --save-plan p.json")
    assert (code, err) == (0, "")
    assert "3 of 3 layers quantized" in out
    assert "activations: int8 symmetric per tensor" in out
    assert "Next: quantkit check net.onnx --target tensorrt_rtx" in out
    plan = Placement.from_json((folder / "p.json").read_text())
    assert plan == FileFacts.of(folder / "net.onnx").plan


def test_the_command_and_the_function_write_the_same_grids(run: Run, folder: Path) -> None:
    from quantkit.data import load_data_spec
    from quantkit.onnx.export import export_onnx

    assert run("quantize float.onnx --data calib.yaml -o command.onnx")[0] == 0
    data = load_data_spec(folder / "calib.yaml").open()
    export_onnx(quantize_onnx(folder / "float.onnx", calibration=data), folder / "function.onnx")
    ours, theirs = (onnx.load(folder / f"{name}.onnx") for name in ("command", "function"))
    assert ours.graph == theirs.graph


def test_the_json_has_the_keys_of_pytorch_models(run: Run, folder: Path) -> None:
    code, out, _ = run("quantize float.onnx --data calib.yaml -o net.onnx --json")
    told = json.loads(out)
    assert code == 0
    assert set(told) == {"output", "bytes", "float_bytes", "recipe", "form", "seconds", "warnings",
                         "plan"}  # fmt: skip
    constants = onnx.load(folder / "float.onnx").graph.initializer
    assert told["float_bytes"] == sum(onnx.numpy_helper.to_array(c).nbytes for c in constants)
    assert told["bytes"] == (folder / "net.onnx").stat().st_size


def test_weights_beside_the_file_are_counted(run: Run, folder: Path) -> None:
    model = onnx.load(folder / "float.onnx")
    onnx.save(
        model, folder / "beside.onnx", save_as_external_data=True, location="beside.bin",
        size_threshold=0,
    )  # fmt: skip
    sizes = {
        name: json.loads(run(f"quantize {name} --data calib.yaml -o net.onnx --json")[1])
        for name in ("float.onnx", "beside.onnx")
    }
    assert sizes["float.onnx"]["float_bytes"] == sizes["beside.onnx"]["float_bytes"] > 0


def test_weights_in_nodes_are_counted(run: Run, folder: Path) -> None:
    model = onnx.load(folder / "float.onnx")
    for tensor in model.graph.initializer:
        node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    onnx.save(model, folder / "inside.onnx")
    sizes = {
        name: json.loads(run(f"quantize {name} --data calib.yaml -o net.onnx --json")[1])
        for name in ("float.onnx", "inside.onnx")
    }
    assert sizes["float.onnx"]["float_bytes"] == sizes["inside.onnx"]["float_bytes"] > 0


def test_an_empty_file_is_told(run: Run, folder: Path) -> None:
    (folder / "empty.onnx").write_bytes(b"")
    code, _, err = run("quantize empty.onnx --data calib.yaml -o net.onnx")
    assert code != 0
    assert "empty.onnx: has no inputs, or is empty" in err


def test_target_form_and_recipe_are_those_of_pytorch_models(run: Run) -> None:
    command = "quantize float.onnx --data calib.yaml --json -o net.onnx"
    assert json.loads(run(f"{command} --target onnxruntime")[1])["form"] == "onnxruntime"
    assert json.loads(run(f"{command} --form onnxruntime")[1])["form"] == "onnxruntime"
    told = json.loads(run(f"{command} --recipe int8_cpu --cpu vnni")[1])
    assert (told["recipe"], told["form"]) == ("int8_cpu", "onnxruntime")


def test_weights_alone_need_no_data(run: Run) -> None:
    code, out, _ = run("quantize float.onnx --recipe int8_weight_only -o weights.onnx")
    assert code == 0
    assert "of 3 layers quantized" in out


def test_the_refused_recipe_is_refused_before_the_file_is_read(run: Run) -> None:
    code, _, err = run(
        "quantize junk.onnx --recipe int8_asymmetric --target tensorrt_rtx --data calib.yaml -o x"
    )
    assert code == 3
    assert "zero-point 0 only" in err


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ("float.onnx --data calib.yaml --weights w.pth", 2, "holds its own weights: leave --wei"),
        ("float.onnx --data calib.yaml --input-shape 1,3", 2, "what its inputs are: leave --input"),
        ("float.onnx --data calib.yaml --static", 2, "dimensions are fixed: leave --static out"),
        ("float.onnx --data calib.yaml --save s.safetensors", 2, "leave --save out"),
        ("float.onnx --data renamed.yaml", 4, "no input 'x'; name the inputs as it does: image"),
        ("float.onnx --data twice.yaml", 4, "no input 'mask'"),
        ("float.onnx", 4, "needs calibration data; give --data"),
        ("absent.onnx --data calib.yaml", 6, "no such file; give a float ONNX file"),
        ("junk.onnx --data calib.yaml", 6, "junk.onnx: not an ONNX file"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    options: str, exit_code: int, words: str, run: Run, folder: Path
) -> None:
    code, out, err = run(f"quantize {options} -o refused.onnx")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (folder / "refused.onnx").exists()


def test_a_quantized_file_is_refused_and_left_as_it_was(run: Run, folder: Path) -> None:
    assert run("quantize float.onnx --data calib.yaml -o done.onnx")[0] == 0
    before = (folder / "done.onnx").read_bytes()
    code, _, err = run("quantize done.onnx --data calib.yaml -o done.onnx")
    assert code == 6
    assert "is quantized already" in err
    assert (folder / "done.onnx").read_bytes() == before


@needs_rtx
def test_the_whole_journey_ends_beside_the_float_file(run: Run) -> None:
    assert run("quantize float.onnx --data calib.yaml -o net.onnx")[0] == 0
    code, out, _ = run(
        "check net.onnx --model float.onnx --data calib.yaml --json --min-sqnr 30 --target "
        "tensorrt_rtx --gpu A40"
    )
    report = json.loads(out)
    assert code == 0
    assert [layer["precision"] for layer in report["layers"]] == ["int8"] * 3
    (output,) = report["outputs"]
    assert output["name"] == "logits"
    assert output["sqnr"] > 30
    assert run("build net.onnx -o net.engine --gpu A40")[0] == 0


def test_check_names_the_inputs_of_the_float_file(run: Run) -> None:
    assert run("quantize float.onnx --data calib.yaml -o net.onnx")[0] == 0
    code, _, err = run("check net.onnx --target onnxruntime --model float.onnx --data renamed.yaml")
    assert code == 4
    assert "float.onnx has no input 'x'" in err
