"""Workers: what they answer, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import model_of, saved

from quantkit.benching import arrays
from quantkit.benching.process import RowError, Worker
from quantkit.benching.serving import Order


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Of a small file in ONNX Runtime."""
    node = helper.make_node("Relu", ["x"], ["y"])
    file = saved(model_of([node], {"x": ["N", 3]}, {"y": ["N", 3]}), tmp_path / "relu.onnx")
    arrays.write(tmp_path / "x.npz", {"x": np.array([[-1.0, 0.0, 2.0]], np.float32)})
    return Order(
        runner="onnxruntime", device="cpu", file=file, inputs=tmp_path / "x.npz", folder=tmp_path,
        threads=1, half=False, warm_runs=2, warm_ms=0.0,
    )  # fmt: skip


@contextmanager
def loaded(order: Order) -> Iterator[Worker]:
    with Worker(order) as worker:
        worker.ready(60.0)
        yield worker


def test_a_worker_loads_runs_tells_its_memory_and_its_outputs(order: Order, tmp_path: Path) -> None:
    with loaded(order) as worker:
        told = worker.ask("load", "loaded", 60.0)
        assert len(told["warm_ms"]) >= 2
        times = worker.ask("run", "ran", 60.0, count=5)["ms"]
        assert len(times) == 5
        assert all(ms > 0 for ms in times)
        memory = worker.ask("memory", "memory", 60.0)
        assert memory["peak"] >= memory["before"] > 0
        assert memory["gpu_used"] is None
        (tmp_path / "out").mkdir()
        worker.ask(
            "evaluate", "evaluated", 60.0, inputs=[str(order.inputs)], folder=str(tmp_path / "out")
        )
    (found,) = arrays.read(tmp_path / "out" / "x.npz").values()
    assert found.tolist() == [[0.0, 0.0, 2.0]]


def test_what_a_runtime_raises_is_the_rows_error(order: Order, tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    file = saved(model_of([node], {"x": [1, 3]}, {"y": [1, 3]}), tmp_path / "unknown.onnx")
    with loaded(replace(order, file=file)) as worker:
        with pytest.raises(RowError, match="NoSuchOperator") as caught:
            worker.ask("load", "loaded", 60.0)
        assert "\n" not in str(caught.value)


def test_what_is_asked_too_early_is_an_error(order: Order) -> None:
    with loaded(order) as worker, pytest.raises(RowError, match="not loaded yet"):
        worker.ask("run", "ran", 60.0, count=1)


def test_a_crash_is_told_with_its_signal(order: Order) -> None:
    with loaded(order) as worker:
        os.kill(worker._child.pid, signal.SIGSEGV)
        with pytest.raises(RowError, match="its process ended with SIGSEGV"):
            worker.ask("load", "loaded", 60.0)


def test_a_worker_that_does_not_answer_in_time_is_ended(order: Order) -> None:
    with loaded(replace(order, warm_runs=10**9)) as worker:
        with pytest.raises(RowError, match=r"no answer to `load` in 0.3 s: stopped"):
            worker.ask("load", "loaded", 0.3)
        child = worker._child
    assert child.poll() is not None


def test_a_worker_ends_with_the_process_that_started_it(order: Order) -> None:
    with loaded(order) as worker:
        child = worker._child
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30.0) == 0


def test_a_worker_of_onnx_runtime_imports_no_pytorch() -> None:
    code = (
        "import sys\n"
        "import quantkit.benching.serving\n"
        "from quantkit.benching.runners.onnxruntime import OnnxRuntimeRunner\n"
        "OnnxRuntimeRunner().load_sdk()\n"
        "print([m for m in ('torch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
