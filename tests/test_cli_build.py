"""``quantkit build --calibrator``, with a TensorRT of plain Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import torch
from onnx_folder import Run, fill, runner

from quantkit.targets import _tensorrt_calibration
from quantkit.tensorrt.cache import read_cache

ENTROPY = "build float.onnx -o net.engine --calibrator tensorrt_entropy2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(folder, monkeypatch, capsys)


def install(monkeypatch: pytest.MonkeyPatch, version: str = "10.13.3.9") -> Any:
    trt = fake_tensorrt.module(version)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return trt


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    trt = install(monkeypatch)
    trt.asked = []

    def opened(kind: str) -> fake_tensorrt.HostBuffers:
        trt.asked.append(kind)
        return fake_tensorrt.HostBuffers()

    monkeypatch.setattr(_tensorrt_calibration, "open_buffers", opened)
    return trt


def test_a_float_file_is_calibrated_by_tensorrt_itself(trt: Any, run: Run, folder: Path) -> None:
    code, out, err = run(f"{ENTROPY} --data calib.yaml --cache float.cache")
    assert (code, err) == (0, "")
    assert "Runs on tensorrt 10.13.3" in out
    (build,) = trt.Builder.seen
    assert [batch["image"].shape for batch in build.batches] == [(8, 16, 8, 8)] * 4
    assert (folder / "net.engine").read_bytes().startswith(b"engine 4 ")
    assert read_cache(folder / "float.cache").algorithm == "EntropyCalibration2"
    assert trt.asked == ["torch"]


def test_the_cache_serves_the_next_build_without_data(trt: Any, run: Run, folder: Path) -> None:
    assert run(f"{ENTROPY} --data calib.yaml --cache float.cache")[0] == 0
    assert run(f"{ENTROPY} --cache float.cache")[0] == 0
    assert [len(build.batches) for build in trt.Builder.seen] == [4, 0]


def test_a_cache_of_ours_serves_a_build_without_trust(trt: Any, run: Run, folder: Path) -> None:
    assert run("calibrate float.onnx --data calib.yaml --cache ours.cache")[0] == 0
    code, out, _ = run(f"{ENTROPY} --cache ours.cache --json")
    assert code == 0
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["coverage-unknown"]
    (build,) = trt.Builder.seen
    assert (build.batches, build.cache) == ([], (folder / "ours.cache").read_bytes())


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
    assert trt.asked == ["pycuda"]


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
    install(monkeypatch, "11.4.0.1")
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
