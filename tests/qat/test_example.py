"""The example of a training loop of one's own runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples import qat_cifar10


@pytest.mark.slow
def test_the_example_on_cifar10_runs_and_its_file_is_ok(
    assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert assets.is_dir()
    arguments = ["--recipe", "w4a4_qat", "--epochs", "1", "--images", "128", "--test-images", "50"]
    monkeypatch.setattr(sys, "argv", ["qat_cifar10", *arguments, "--out", str(tmp_path)])
    qat_cifar10.main()
    printed = capsys.readouterr().out
    assert "epoch  1" in printed
    assert "onnxruntime" in printed
    assert ": ok" in printed
    assert (tmp_path / "resnet20.w4a4_qat.onnx").exists()
