"""``quantkit build --calibrator``, with a TensorRT of plain Python."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import qdq_models
import torch
from fake_tensorrt import batches_of, facts_of
from onnx_folder import Run, fill, runner

from quantkit.targets import _tensorrt_gpu
from quantkit.tensorrt.cache import read_cache

ENTROPY = "build float.onnx -o net.engine --calibrator tensorrt_entropy2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(folder, monkeypatch, capsys)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = "10.13.3.9") -> Any:
    return fake_tensorrt.install(monkeypatch, folder / "sdk", version)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    return install(monkeypatch, folder)


def test_a_float_file_is_calibrated_by_tensorrt_itself(trt: Any, run: Run, folder: Path) -> None:
    code, out, err = run(f"{ENTROPY} --data calib.yaml --cache float.cache")
    assert (code, err) == (0, "")
    assert "Runs on tensorrt 10.13.3" in out
    engine = folder / "net.engine"
    assert [b["image"].shape for b in batches_of(engine)] == [(8, 16, 8, 8)] * 4
    assert read_cache(folder / "float.cache").algorithm == "EntropyCalibration2"
    assert facts_of(engine)["buffers"] == ["torch"]


def test_the_cache_serves_the_next_build_without_data(trt: Any, run: Run, folder: Path) -> None:
    assert run(f"{ENTROPY} --data calib.yaml --cache float.cache")[0] == 0
    assert len(batches_of(folder / "net.engine")) == 4
    assert run(f"{ENTROPY} --cache float.cache")[0] == 0
    assert batches_of(folder / "net.engine") == []


def test_a_cache_of_ours_serves_a_build_without_trust(trt: Any, run: Run, folder: Path) -> None:
    assert run("calibrate float.onnx --data calib.yaml --cache ours.cache")[0] == 0
    code, out, _ = run(f"{ENTROPY} --cache ours.cache --json")
    assert code == 0
    assert json.loads(out)["findings"] == []
    facts = facts_of(folder / "net.engine")
    assert (facts["batches"], facts["cache"]) == ([], (folder / "ours.cache").read_text())


def test_a_cache_without_a_record_needs_trust(trt: Any, run: Run, folder: Path) -> None:
    (folder / "old.cache").write_text("TRT-101303-EntropyCalibration2\nimage: 3c010204\n")
    code, _, err = run(f"{ENTROPY} --cache old.cache")
    assert code == 6
    assert "nothing tells its model" in err
    assert "--trust-cache" in err
    assert run(f"{ENTROPY} --cache old.cache --trust-cache")[0] == 0


def test_the_min_max_calibrator_and_pycuda_can_be_chosen(trt: Any, run: Run, folder: Path) -> None:
    command = "build float.onnx -o net.engine --calibrator tensorrt_minmax --data calib.yaml"
    assert run(f"{command} --cache float.cache --buffers pycuda --target tensorrt")[0] == 0
    assert read_cache(folder / "float.cache").algorithm == "MinMaxCalibration"
    assert facts_of(folder / "net.engine")["buffers"] == ["pycuda"]


def test_a_qdq_file_takes_no_calibrator(trt: Any, run: Run, folder: Path) -> None:
    assert run("quantize float.onnx --data calib.yaml -o net.onnx")[0] == 0
    code, _, err = run(
        "build net.onnx -o net.engine --calibrator tensorrt_entropy2 --data calib.yaml"
    )
    assert code == 8
    assert "holds Q/DQ, and TensorRT ignores a calibrator" in err
    assert not (folder / "net.engine").exists()


@pytest.mark.parametrize("target", ["tensorrt_rtx", "onnxruntime"])
def test_targets_without_calibrators_name_the_qdq_way(target: str, run: Run, folder: Path) -> None:
    code, out, err = run(f"{ENTROPY} --data calib.yaml --target {target}")
    assert (code, out, err.count("\n")) == (8, "", 1)
    assert f"the target {target} has no IInt8EntropyCalibrator2" in err
    assert "`quantkit quantize`" in err
    assert "`quantkit migrate`" in err


def test_tensorrt_11_names_the_qdq_way(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, folder, "11.4.0.1")
    code, _, err = run(f"{ENTROPY} --data calib.yaml")
    assert code == 8
    assert "tensorrt 11.4.0 has no IInt8EntropyCalibrator2" in err
    assert not (folder / "net.engine").exists()


def test_without_tensorrt_the_install_command_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, _, err = run(f"{ENTROPY} --data calib.yaml")
    assert code == 9
    assert 'pip install "tensorrt<11"' in err


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ("--calibrator tensorrt_entropy2", 2, "needs --data DATA.yaml, or the --cache"),
        ("--data calib.yaml", 2, "--data needs --calibrator as well"),
        ("--cache float.cache", 2, "--cache needs --calibrator as well"),
        ("--buffers torch", 2, "--buffers needs --calibrator as well"),
        ("--trust-cache", 2, "--trust-cache needs --calibrator as well"),
        (
            "--calibrator tensorrt_minmax --data calib.yaml --trust-cache", 2,
            "--trust-cache needs --cache as well",
        ),
        ("--calibrator tensorrt_minmax --data calib.yaml --buffers numpy", 2, "not one of 'torch'"),
        ("--calibrator entropy --data calib.yaml", 3, "serves no engine builder"),
        ("--calibrator tensorrt_entropy --data calib.yaml", 3, "did you mean 'tensorrt_entropy2'"),
        ("--calibrator tensorrt_minmax --data renamed.yaml", 4, "has no input 'x'"),
        ("--calibrator tensorrt_minmax --data absent.yaml", 4, "No such file"),
        ("--calibrator tensorrt_minmax --cache absent.cache", 4, "is not there, and no data"),
        (
            "--calibrator tensorrt_minmax --data calib.yaml --cache absent/some.cache", 7,
            "cannot be written",
        ),
        ("--calibrator tensorrt_minmax --data calib.yaml --gpu nine", 3, "nine"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(
    options: str, exit_code: int, words: str, trt: Any, run: Run, folder: Path
) -> None:
    code, out, err = run(f"build float.onnx -o net.engine {options}")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (folder / "net.engine").exists()


# The options of the build itself


def test_a_qdq_file_is_built_with_what_was_asked_for(trt: Any, run: Run, folder: Path) -> None:
    assert run("quantize float.onnx --data calib.yaml -o net.onnx")[0] == 0
    code, out, err = run(
        "build net.onnx -o net.engine --target tensorrt --workspace 2GiB --timing-cache t.cache "
        "--shape image=1,16,8,8:2,16,8,8:4,16,8,8 --layers"
    )
    assert (code, err) == (0, "")
    facts = facts_of(folder / "net.engine")
    assert facts["pools"] == {"WORKSPACE": 2 << 30}
    assert [size[0] for size in facts["profiles"][0]["image"]] == [1, 2, 4]
    assert (folder / "t.cache").is_file()
    assert "int8" in out
    assert json.loads((folder / "net.engine.json").read_text())["built_by"] == "tensorrt 10.13.3"


def test_an_engine_comes_from_the_cache(
    trt: Any, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tensorrt_gpu, "this_gpu", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A40")
    assert run("quantize float.onnx --data calib.yaml -o net.onnx")[0] == 0
    command = "build net.onnx -o net.engine --target tensorrt --engine-cache engines --json"
    found = [[f["code"] for f in json.loads(run(command)[1])["findings"]] for _ in range(2)]
    assert ["engine-from-cache" in codes for codes in found] == [False, True]
    monkeypatch.setenv("QUANTKIT_STATE", str(folder / "another"))
    trusted = json.loads(run(f"{command} --trust-engine")[1])
    assert "engine-from-cache" in [f["code"] for f in trusted["findings"]]


@pytest.mark.parametrize(
    ("options", "exit_code", "words"),
    [
        ("--workspace 1GiB", 2, "the target tensorrt_rtx takes no --workspace"),
        ("--timing-cache t --target onnxruntime", 2, "onnxruntime takes no --timing-cache"),
        ("--target tensorrt --workspace much", 2, "'much' is no size: write 512MiB"),
        ("--target tensorrt --workspace 0", 2, "'0' is no size"),
        ("--shape image", 2, "is no NAME=MIN:BEST:MAX"),
        ("--shape image=1:2", 2, "is no NAME=MIN:BEST:MAX"),
        ("--shape image=3:2:1", 8, "must grow from the smallest"),
        ("--trust-engine", 2, "--trust-engine needs --engine-cache as well"),
        ("--target tensorrt --timing-cache absent/t", 7, "cannot be written"),
    ],
)
def test_options_of_a_build_that_mean_nothing_are_refused(
    options: str, exit_code: int, words: str, run: Run, folder: Path
) -> None:
    code, out, err = run(f"build float.onnx -o net.engine {options}")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (folder / "net.engine").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
def test_the_float_part_is_built_in_half_on_request(folder: Path, run: Run) -> None:
    qdq_models.save(qdq_models.conv_relu_conv(), folder).rename(folder / "qdq.onnx")
    code, out, _ = run("build qdq.onnx -o net.engine --gpu 8.6 --precision float16 --json")
    report = json.loads(out)
    assert code == 0
    assert report["covered"] == report["planned"] == 2
    assert "ranges-not-seen" in {finding["code"] for finding in report["findings"]}


def test_only_an_onnx_file_is_put_in_half(run: Run, folder: Path) -> None:
    (folder / "net.pt2").write_bytes(b"PK")
    code, _, err = run("build net.pt2 -o a --target inductor --precision float16")
    assert code != 0
    assert "only ONNX files are put in float16" in err
