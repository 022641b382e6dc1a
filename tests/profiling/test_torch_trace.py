"""The Chrome trace of torch.profiler, made by hand in its documented structure, and a real one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import ModelFileError
from quantkit.profiling.profile import read_recording
from quantkit.profiling.torch_trace import LAYER, RUN, parse_trace
from quantkit.profiling.traces import read_any


def span(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 9, "tid": tid,
        "args": args,
    }  # fmt: skip


GEMM = "ampere_fp16_s16816gemm_fp16_64x64_sliced1x2_ldg8_relu_f2f_tn"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"


def gpu_run(at: float) -> list[dict[str, Any]]:
    """One run of two layers: the kernels run after the calls that queue them have returned."""
    n = int(at)
    return [
        span("user_annotation", RUN, at, 100),
        span("user_annotation", LAYER + "fc", at + 5, 30),
        span("cpu_op", "aten::linear", at + 6, 20),
        span("cpu_op", "aten::addmm", at + 8, 10),
        span("cuda_runtime", "cudaLaunchKernel", at + 9, 4, correlation=n + 1),
        span("user_annotation", LAYER + "add", at + 40, 20),
        span("cpu_op", "aten::add", at + 42, 10),
        span("cuda_runtime", "cudaLaunchKernel", at + 43, 6, correlation=n + 2),
        span("kernel", GEMM, at + 50, 40, tid=7, correlation=n + 1, stream=7,
             **{"blocks per SM": 0.5, "grid": [4, 1, 1]}),
        span("kernel", ADD, at + 92, 20, tid=7, correlation=n + 2, stream=7,
             **{"blocks per SM": 2.0}),
        span("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", at + 113, 2, tid=7, stream=7),
        {"ph": "s", "id": n, "cat": "ac2g", "name": "ac2g", "ts": at + 9, "pid": 9, "tid": 1},
    ]  # fmt: skip


TRACE = {"schemaVersion": 1, "traceEvents": [*gpu_run(0), *gpu_run(1000)]}


def test_kernels_are_of_the_layer_and_operator_that_queued_them() -> None:
    found = parse_trace(TRACE)
    assert found.device == "cuda"
    first = [(c.layer, c.op, c.name) for c in found.calls if c.run == 0]
    assert first[:2] == [("fc", "aten::linear", GEMM), ("add", "aten::add", ADD)]
    assert [c.blocks_per_sm for c in found.calls if c.run == 1][:2] == [0.5, 2.0]


def test_a_run_lasts_until_its_last_kernel_and_counts_what_queueing_took() -> None:
    found = parse_trace(TRACE)
    assert [round(1e6 * (end - start)) for start, end in found.runs] == [112, 112]
    assert [round(1e6 * launch) for launch in found.launches] == [10, 10]


def test_waiting_for_the_gpu_is_no_launch() -> None:
    wait = span("cuda_runtime", "cudaDeviceSynchronize", 60, 39, correlation=99)
    found = parse_trace({"traceEvents": [*gpu_run(0), wait]})
    assert [round(1e6 * launch) for launch in found.launches] == [10]


def test_the_report_of_such_a_trace_names_units_types_and_findings(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps(TRACE).encode()))
    report = read_recording(path)
    rows = {k.name: (str(k.unit), k.dtype, k.layer) for k in report.kernels}
    assert rows[GEMM] == ("tensor-cores", "fp16", "fc")
    assert rows[ADD][0] == "cuda-cores"
    assert [(layer.name, str(layer.unit)) for layer in report.layers] == [
        ("fc", "tensor-cores"),
        ("add", "cuda-cores"),
    ]
    assert "batch-too-small" in [f.code for f in report.findings]
    assert report.totals is not None
    assert report.totals.runs == 2
    assert json.loads(report.to_json())["totals"]["busy_share"] == pytest.approx(60 / 112)


def test_steps_of_a_schedule_are_runs_and_modules_are_layers() -> None:
    events = [
        span("user_annotation", "ProfilerStep#3", 0, 50),
        span("python_function", "nn.Module: Net_0", 1, 45),
        span("python_function", "nn.Module: Conv2d_1", 2, 40),
        span("python_function", "torch/nn/functional.py(12): pad", 2, 40),
        span("cpu_op", "aten::conv2d", 3, 30),
        span("cpu_op", "aten::empty", 60, 1),
    ]
    found = parse_trace({"traceEvents": events})
    assert [(c.layer, c.name, c.run) for c in found.calls] == [
        ("Net_0/Conv2d_1", "aten::conv2d", 0)
    ]


def test_an_operators_time_is_its_own_and_frames_of_compilers_are_none() -> None:
    events = [
        span("cpu_op", "Torch-Compiled Region: 0/0", 0, 100),
        span("cpu_op", "aten::conv2d", 10, 50, **{"Input type": ["float", "float"]}),
        span("cpu_op", "aten::convolution", 12, 40, **{"Input type": ["float"]}),
    ]
    found = parse_trace({"traceEvents": events})
    told = [(c.name, c.op, round(1e6 * c.seconds), c.dtype) for c in found.calls]
    assert told == [
        ("aten::conv2d", "aten::conv2d", 10, "float"),
        ("aten::convolution", "aten::conv2d", 40, "float"),
    ]


@pytest.mark.parametrize(
    "content", [b"not json", b"{}", b'{"traceEvents": []}', b"[]", b'[{"name": 1}]', b"3"]
)
def test_what_is_no_trace_is_an_error_on_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is no trace that can be used") as caught:
        read_any(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_any(tmp_path / "none.json")
