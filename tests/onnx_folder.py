"""A folder with a float ONNX file and its data, for tests of the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_models import saved, small_net

from quantkit import cli

#: A command line; returns its exit code, standard output and standard error.
Run = Callable[[str], tuple[int, str, str]]


def fill(folder: Path) -> None:
    """``float.onnx``, and data: ``calib.yaml`` with its input ``image``, others without."""
    saved(small_net(), folder / "float.onnx")
    (folder / "junk.onnx").write_text("junk")
    images = np.random.default_rng(0).standard_normal((32, 16, 8, 8), dtype=np.float32)
    np.savez(folder / "calib.npz", image=images)
    for name, inputs in {
        "calib": {"image": {}},
        "renamed": {"x": {"column": "image"}},
        "twice": {"image": {}, "mask": {"column": "image"}},
    }.items():
        spec = {"source": "calib.npz", "inputs": inputs, "batch_size": 8}
        (folder / f"{name}.yaml").write_text(json.dumps(spec))  # JSON is YAML


def runner(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs command lines in this process, in ``folder``."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        return code, out, err

    return run
