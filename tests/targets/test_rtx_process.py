"""The child process that builds TensorRT-RTX engines: absent SDK, crashes, Ctrl-C, progress."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import qdq_models as nets
from qdq_models import save

from quantkit.errors import MissingDependencyError
from quantkit.targets import _engine_process
from quantkit.targets.tensorrt_rtx import TensorRTRTX

needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


def test_a_missing_sdk_is_explained_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)

    with pytest.raises(MissingDependencyError, match=r'pip install "quantkit\[rtx\]"'):
        TensorRTRTX().inspect(tmp_path / "model.onnx")


@needs_sdk
def test_an_sdk_that_does_not_load_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text('raise ImportError("libtensorrt_rtx.so.1 is gone")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(MissingDependencyError, match=r"libtensorrt_rtx\.so\.1 is gone.*install"):
        TensorRTRTX().inspect(save(nets.matmul(), tmp_path))


@needs_sdk
def test_a_child_that_dies_is_a_finding_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = "import sys; sys.stderr.write('out of luck'); sys.stderr.flush(); sys.exit(7)"
    (tmp_path / "tensorrt_rtx.py").write_text(dying)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    (finding,) = TensorRTRTX().inspect(save(nets.matmul(), tmp_path)).findings

    assert finding.code == "builder-crash"
    assert "exit code 7" in finding.why
    assert "out of luck" in finding.why


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    started: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def record(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(original(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return started


@needs_sdk
def test_an_interrupt_kills_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[str]]
) -> None:
    def interrupt(self: object, event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_engine_process._Bar, "update", interrupt)

    with pytest.raises(KeyboardInterrupt):
        TensorRTRTX().inspect(save(nets.attention(), tmp_path))

    (child,) = children
    assert child.returncode is not None
    assert child.returncode != 0


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@needs_sdk
@pytest.mark.parametrize("wanted", [True, False])
def test_a_slow_build_shows_its_progress_where_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setattr(_engine_process, "QUIET_SECONDS", 0.0)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    TensorRTRTX(progress=wanted).inspect(save(nets.matmul(), tmp_path))

    assert ("TensorRT-RTX SM86" in terminal.getvalue()) == wanted
