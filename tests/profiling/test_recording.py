"""From calls to kernels, layers and totals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.profiling.cpu_kinds import WORDS, cpu_kind
from quantkit.profiling.kernels import classify
from quantkit.profiling.kinds import KernelKind, Work
from quantkit.profiling.recording import (
    Call,
    Recording,
    kernel_times,
    layer_times,
    totals,
    union,
)
from quantkit.profiling.report import ProfileReport, Totals


def kind(call: Call) -> KernelKind:
    return cpu_kind(call, None, "PyTorch")


def call(run: int, seconds: float, layer: str = "a", name: str = "aten::conv2d") -> Call:
    return Call(
        name=name, op=name, layer=layer, run=run, start=float(run), seconds=seconds, dtype="float"
    )


def test_times_are_medians_over_the_runs_of_sums_within_each() -> None:
    calls = [call(0, 1.0), call(0, 1.0), call(1, 0.5), call(1, 0.5), call(2, 40.0), call(2, 2.0)]
    recording = Recording(device="cpu", calls=tuple(calls), runs=((0, 9), (1, 9), (2, 99)))
    (row,) = kernel_times(recording, kind)
    assert (row.seconds, row.calls, row.share) == (2.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("aten::linear", Work.MATMUL), ("onednn::qlinear_pointwise", Work.MATMUL),
        ("QLinearMatMul", Work.MATMUL), ("QLinearGlobalAveragePool", Work.POOLING),
        ("QLinearConcat", Work.COPY), ("QLinearMul", Work.ELEMENTWISE),
        ("aten::upsample_bilinear2d", Work.UNKNOWN),
    ],
)  # fmt: skip
def test_an_operator_with_linear_in_its_name_may_be_no_product(name: str, work: Work) -> None:
    told = Call(name=name, op=name, layer="", run=0, start=0.0, seconds=1.0)
    assert cpu_kind(told, None, "").work is work


def test_the_first_run_can_be_left_out() -> None:
    recording = Recording(
        device="cpu", calls=(call(0, 9.0), call(1, 1.0)), runs=((0.0, 9.0), (1.0, 2.0))
    )
    assert [c.seconds for c in recording.without_first().calls] == [1.0]
    only = replace(recording, calls=(call(0, 9.0),), runs=((0.0, 9.0),))
    assert only.without_first() is only


def test_layers_come_in_the_order_in_which_they_run_with_the_precision_of_their_product() -> None:
    calls = (
        replace(call(0, 0.1, "b", "aten::relu"), dtype="unsigned char"),
        call(0, 0.2, "b"),
        call(0, 5.0, "a", "aten::addmm"),
        call(0, 1.0, ""),
    )
    recording = Recording(device="cpu", calls=calls, runs=((0.0, 9.0),))
    layers = layer_times(recording, kernel_times(recording, kind), WORDS)
    assert [layer.name for layer in layers] == ["b", "a"]
    assert [layer.precision for layer in layers] == ["float32", "float32"]
    assert layers[0].kernels == 2
    assert layers[0].op == "aten::conv2d, aten::relu"


def test_kernels_that_overlap_on_a_gpu_count_once() -> None:
    calls = (replace(call(0, 2.0), start=0.0), replace(call(0, 2.0), start=1.0))
    gpu = Recording(device="cuda", calls=calls, runs=((0.0, 4.0),), launches=(0.5,))
    found = totals(gpu)
    assert (found.busy_s, found.busy_share, found.gaps_s) == (3.0, 0.75, 1.0)
    assert found.launch_s == 0.5
    assert found.overhead is None


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=8))
def test_a_union_is_at_least_the_longest_and_at_most_the_sum(
    drawn: list[tuple[float, float]],
) -> None:
    spans = [(start, start + length) for start, length in drawn]
    lengths = [end - start for start, end in spans]
    assert max(lengths, default=0.0) <= union(spans) * (1 + 1e-9) + 1e-9
    assert union(spans) <= sum(lengths) * (1 + 1e-9) + 1e-9


def test_a_recording_without_runs_or_with_calls_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="one run or more"):
        Recording(device="cpu", calls=(), runs=())
    with pytest.raises(ValueError, match="one of the 1 runs"):
        Recording(device="cpu", calls=(call(1, 1.0),), runs=((0.0, 1.0),))


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="1 run or more"):
        Totals(runs=0, wall_s=None, profiled_s=1.0, busy_s=0.0, quickest_s=1.0, least_busy_s=0.0)
    row = kernel_times(
        Recording(device="cpu", calls=(call(0, 1.0),), runs=((0.0, 1.0),)), kind
    )[0]  # fmt: skip
    with pytest.raises(ValueError, match="a share of 0 to 1"):
        replace(row, share=1.5)


def test_one_kernel_of_many_layers_is_one_row_of_the_kernel_table() -> None:
    calls = (call(0, 1.0, "a"), call(0, 2.0, "b"))
    recording = Recording(device="cpu", calls=calls, runs=((0.0, 4.0),))
    kernels = kernel_times(recording, kind)
    report = ProfileReport(
        subject="m", runtime="r", device="d", batch=1, kernels=kernels,
        layers=layer_times(recording, kernels, WORDS), totals=totals(recording),
    )  # fmt: skip
    assert len(report.kernels) == 2
    _, rows = report.kernel_table()
    assert [(row[0], row[1], row[2]) for row in rows] == [("3000", "100.0 %", "2")]
    _, layers = report.table(1)
    assert [row[-1] for row in layers] == ["b"]


def test_a_gpu_kernel_keeps_what_its_name_tells() -> None:
    name = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32"
    gpu = Recording(device="cuda", calls=(call(0, 1.0, "a", name),), runs=((0.0, 1.0),))
    (row,) = kernel_times(gpu, lambda c: classify(c.name))
    assert (str(row.unit), row.dtype) == ("tensor-cores", "int8")
