"""Memory of layers by analysis, beside what a run allocates; memory of phases."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import small_models as sm
from quantkit import nvtx
from quantkit.benching import memory as process
from quantkit.graph.abstract import Graph, Kind, Op, Value
from quantkit.graph.aten import describe
from quantkit.graph.capture import capture
from quantkit.graph.placement import place
from quantkit.profiling import phases
from quantkit.profiling.layer_memory import MemoryReport, liveness, memory
from quantkit.profiling.measured_memory import measure
from quantkit.profiling.sizes import sizes_of
from quantkit.profiling.work import Size
from quantkit.workflow import resolve_recipe


class Skip(nn.Module):
    """A long skip: the first result lives until the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 512), nn.Linear(512, 1024), nn.Linear(1024, 512)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 64)`` to ``(N, 512)``."""
        first = self.a(x)
        return first + torch.tanh(self.c(torch.tanh(self.b(first))))


def report(model: nn.Module, args: tuple[Tensor, ...], batch: int) -> MemoryReport:
    found = describe(capture(model, args).module)
    plan = place(found.graph, resolve_recipe("int8_ptq"))
    return memory(found.graph, sizes_of(found, batch=batch), batch=batch, plan=plan)


@pytest.mark.parametrize("batch", [2, 32])
def test_the_analysis_agrees_with_what_a_run_allocates(batch: int) -> None:
    model = Skip().eval()
    plan = report(model, (torch.zeros(2, 64),), batch).plan("float")
    measured = measure(model, (torch.zeros(batch, 64),))
    # The input is the caller's. At its peak: the skip, the second layer's result, and its tanh.
    assert measured.peak == plan.peak - plan.inputs == 4 * batch * (512 + 1024 + 1024)
    assert plan.highest is not None
    assert plan.highest.name == "tanh"


def test_each_module_s_peak_is_measured_too() -> None:
    measured = measure(Skip().eval(), (torch.zeros(8, 64),))
    assert measured.by_module["a"] == 4 * 8 * 512
    assert measured.by_module["b"] == 4 * 8 * (512 + 1024)
    assert measured.by_module[""] == measured.peak


def test_a_module_that_allocates_nothing_has_what_lives_while_it_runs() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Flatten()).eval()
    measured = measure(net, (torch.zeros(8, 64),))
    assert measured.by_module["1"] == 4 * 8 * 512


def test_a_chain_in_place_lives_in_one_tensor() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(inplace=True), nn.Flatten()).eval()
    plan = report(model, (torch.zeros(2, 64),), 4).plan("float")
    assert plan.peak - plan.inputs == 4 * 4 * 256
    assert measure(model, (torch.zeros(4, 64),)).peak == 4 * 4 * 256


def test_int8_holds_activations_in_a_byte_and_fusion_drops_what_lies_between() -> None:
    model = sm.ResNet().eval()
    found = report(model, model.example_inputs, 8)
    whole, narrow = found.plan("float"), found.plan("int8 fused")
    one = 8 * 16 * 16 * 16  # values of the stem's result
    # Block one in int8: its input for the skip, the first convolution's result, and the second's;
    # the model's input is there as the caller's floats, and as bytes.
    assert narrow.inputs == whole.inputs * 5 / 4
    assert narrow.peak == 3 * one + narrow.inputs
    assert whole.peak == 4 * 3 * one + whole.inputs
    assert 0 < found.saved("fused") < found.saved("int8 fused") < whole.total
    assert narrow.weights < whole.weights / 3


def test_a_report_is_told_as_a_table_and_as_json() -> None:
    model = sm.ResNet().eval()
    found = report(model, model.example_inputs, 2)
    assert [line.split("  ")[0] for line in found.table().splitlines()[1:]] == [
        "float", "fused", "int8", "int8 fused",
    ]  # fmt: skip
    told = json.loads(found.to_json())["plans"]
    assert told[0]["peak"] == found.plans[0].peak
    with pytest.raises(LookupError, match="no variant 'int4'"):
        found.plan("int4")


@given(widths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_in_a_chain_two_neighbours_and_the_input_live_at_once(widths: list[int]) -> None:
    names = [f"t{i}" for i in range(len(widths) + 1)]
    ops = tuple(
        Op(name=f"op{i}", kind=Kind.OTHER, inputs=(a,), output=b)
        for i, (a, b) in enumerate(pairwise(names))
    )
    sizes = {name: Size((n,)) for name, n in zip(names, [5, *widths], strict=True)}
    graph = Graph(ops, {n: Value(name=n) for n in names}, (names[-1],))
    rows, held = liveness(graph, sizes, lambda name: None)
    assert held == 20
    read = [0, *widths]  # the first reads the input, which is held anyway
    expected = [20 + 4 * (made + before) for made, before in zip(widths, read, strict=False)]
    assert [row.live for row in rows] == expected


def test_an_outer_phase_s_peak_has_that_of_the_phases_inside() -> None:
    with phases.record() as recorded, nvtx.phase("outer"):
        with nvtx.phase("inner"):
            block = np.ones(8_000_000)
            del block
        with nvtx.phase("idle"):
            pass
    peaks = {peak.name: peak for peak in recorded.peaks}
    assert [peak.name for peak in recorded.peaks] == ["outer", "inner", "idle"]
    assert peaks["inner"].added > 50_000_000
    assert peaks["outer"].peak >= peaks["inner"].peak
    assert peaks["idle"].added < 30_000_000
    assert peaks["inner"].depth == 1
    assert "  inner" in recorded.table()


def test_where_the_system_keeps_no_peak_it_is_sampled_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time

    monkeypatch.setattr(process, "forget_peak", lambda: False)
    with phases.record() as recorded, nvtx.phase("calibrate"):
        block = np.ones(8_000_000)
        time.sleep(0.05)
        del block
    assert recorded.peaks[0].how == "sampled"
    assert recorded.peaks[0].added > 50_000_000


@pytest.mark.gpu
def test_on_a_gpu_the_analysis_agrees_with_what_a_run_allocates() -> None:
    model = Skip().eval()
    plan = report(model, (torch.zeros(2, 64),), 32).plan("float")
    measured = measure(model.cuda(), (torch.zeros(32, 64, device="cuda"),))
    assert measured.device == "cuda"
    # CUDA's allocator rounds up to 512 bytes; cuBLAS may take a workspace.
    assert plan.peak - plan.inputs <= measured.peak <= 1.2 * (plan.peak - plan.inputs) + 2**25
