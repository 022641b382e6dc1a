"""What runs an engine: buffers, shapes and graphs, in the CPU's memory with a plain `tensorrt`.

What only a GPU can show (streams, real graphs) is in the tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fake_tensorrt
import fake_tensorrt_runtime as runtime
import numpy as np
import pytest
import torch

from quantkit.errors import TargetError
from quantkit.targets._engine_lane import CudaLane, Lane
from quantkit.targets._engine_run import KEPT_SHAPES, EngineRunner

ONE = (("x", "INPUT", "FLOAT"), ("y", "OUTPUT", "FLOAT"))
TWO = (
    ("a", "INPUT", "FLOAT"),
    ("b", "INPUT", "HALF"),
    ("u", "OUTPUT", "FLOAT"),
    ("v", "OUTPUT", "HALF"),
)


class HostLane(Lane):
    """The CPU, where everything is done at once; it keeps what was asked of it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.told: list[str] = []
        self.lent: list[torch.Tensor] = []
        self._refuses = refuses

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def handle(self) -> int:
        return 77

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.told.append("entered")
        yield
        self.told.append("left")

    def lend(self, tensor: torch.Tensor) -> None:
        self.lent.append(tensor)

    def hand_over(self, tensor: torch.Tensor) -> None:
        self.told.append("handed over")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.told.append("captured")
        if self._refuses:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        work()
        return work

    def synchronize(self) -> None:
        self.told.append("synchronized")


@pytest.fixture
def trt() -> Any:
    return fake_tensorrt.module()


def opened(
    trt: Any, *tensors: tuple[str, str, str], lane: HostLane | None = None, **options: Any
) -> EngineRunner:
    facts = {name: options.pop(name) for name in ("broken", "flags") if name in options}
    facts |= {name: options.pop(name, "") for name in ("host", "unknown")}
    engine = runtime.engine(*(tensors or ONE), **facts)
    return EngineRunner(trt, engine, "some.engine", lane=lane or HostLane(), **options)


def test_outputs_come_by_name_and_inputs_are_read_where_they_are(trt: Any) -> None:
    lane = HostLane()
    with opened(trt, *TWO, lane=lane) as runner:
        a, b = torch.randn(2, 3), torch.randn(2, 4, dtype=torch.float16)
        out = runner({"b": b, "a": a})
        assert list(out) == ["u", "v"] == list(runner.outputs)
        assert torch.equal(out["u"], 2 * a)
        assert torch.equal(out["v"], 2 * b)
        (engine,) = trt.Runtime.loaded
        (context,) = engine.contexts
        assert context.addresses["a"] == a.data_ptr()
        assert [t.data_ptr() for t in lane.lent] == [a.data_ptr(), b.data_ptr()]
        assert engine.handles == [77]
    assert lane.told == ["entered", "left", "handed over", "handed over", "synchronized"]


def test_inputs_of_another_type_or_layout_are_converted(trt: Any) -> None:
    with opened(trt) as runner:
        x = torch.randn(4, 3, dtype=torch.float64).t()
        out = runner({"x": x})["y"]
        assert torch.equal(out, 2 * x.float())
        assert out.is_contiguous()


def test_a_batch_that_needs_gradients_gives_outputs_that_have_none(trt: Any) -> None:
    for graph in (False, True):
        with opened(trt, cuda_graph=graph) as runner:
            runner({"x": torch.ones(2, 3, requires_grad=True)})
            assert not runner({"x": torch.ones(2, 3, requires_grad=True)})["y"].requires_grad


@pytest.mark.parametrize("graph", [False, True])
def test_buffers_are_used_again_for_the_same_shape(trt: Any, graph: bool) -> None:
    with opened(trt, cuda_graph=graph) as runner:
        first = runner({"x": torch.ones(2, 3)})["y"]
        other = runner({"x": torch.ones(4, 3)})["y"]
        again = runner({"x": torch.full((2, 3), 5.0)})["y"]
        assert again.data_ptr() == first.data_ptr() != other.data_ptr()
        assert torch.equal(first, torch.full((2, 3), 10.0))
        assert torch.equal(other, torch.full((4, 3), 2.0))


def test_shapes_in_turn_share_a_context_that_is_set_when_they_change(trt: Any) -> None:
    with opened(trt) as runner:
        for rows in (1, 2, 1, 1, 3):
            x = torch.randn(rows, 2)
            assert torch.equal(runner({"x": x})["y"], 2 * x)
        assert len(trt.Runtime.loaded[0].contexts) == 1


def test_a_graph_is_captured_once_for_a_shape_after_a_run_that_warms_up(trt: Any) -> None:
    lane = HostLane()
    with opened(trt, lane=lane, cuda_graph=True) as runner:
        for value in (1.0, 2.0, 3.0):
            out = runner({"x": torch.full((2, 2), value)})["y"]
            assert torch.equal(out, torch.full((2, 2), 2 * value))
        runner({"x": torch.ones(1, 2)})
    contexts = trt.Runtime.loaded[0].contexts
    assert len(contexts) == 2  # a graph holds addresses of its context
    assert lane.told.count("captured") == 2
    assert lane.told[:3] == ["entered", "synchronized", "captured"]


def test_a_graph_reads_from_memory_of_its_own(trt: Any) -> None:
    with opened(trt, cuda_graph=True) as runner:
        x = torch.ones(2, 2)
        runner({"x": x})
        (context,) = trt.Runtime.loaded[0].contexts
        assert context.addresses["x"] != x.data_ptr()


def test_what_cannot_be_captured_is_an_error_with_the_way_out(trt: Any) -> None:
    with (
        opened(trt, lane=HostLane(refuses=True), cuda_graph=True) as runner,
        pytest.raises(TargetError, match=r"not permitted when stream.*cuda_graph=False") as raised,
    ):
        runner({"x": torch.ones(2, 2)})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("graph", [False, True])
def test_only_so_many_shapes_are_kept(trt: Any, graph: bool) -> None:
    with opened(trt, cuda_graph=graph) as runner:
        kept = [runner({"x": torch.ones(n + 1, 2)})["y"] for n in range(KEPT_SHAPES + 1)]
        assert len(runner._slots) == KEPT_SHAPES
        assert runner({"x": torch.ones(2, 2)})["y"] is kept[1]
        out = runner({"x": torch.ones(1, 2)})["y"]  # the first was dropped, and is made again
        assert torch.equal(out, torch.full((1, 2), 2.0))
        assert torch.equal(kept[0], torch.full((1, 2), 2.0))


def test_arrays_go_in_and_out_as_copies(trt: Any) -> None:
    with opened(trt) as runner:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        x.flags.writeable = False
        (first,) = runner.arrays({"x": x})
        (second,) = runner.arrays({"x": x + 1})
        assert np.array_equal(first, 2 * x)
        assert np.array_equal(second, 2 * x + 2)


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        ({"z": torch.ones(2, 2)}, "a batch has z, but some.engine takes x"),
        ({"x": torch.ones(2, 2), "z": torch.ones(1)}, "a batch has x, z"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "x is int64, but some.engine takes float32"),
        ({"x": torch.ones(64, 2)}, r"shape \(64, 2\), outside the sizes"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_the_next_one_runs(
    trt: Any, batch: dict[str, torch.Tensor], why: str
) -> None:
    for graph in (False, True):
        with opened(trt, cuda_graph=graph) as runner:
            runner({"x": torch.ones(3, 2)})
            with pytest.raises(TargetError, match=why):
                runner(batch)
            out = runner({"x": torch.ones(3, 2)})["y"]
            assert torch.equal(out, torch.full((3, 2), 2.0))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"host": "x"}, "reads or writes x on the host"),
        ({"flags": ["VERSION_COMPATIBLE"]}, "loads with version_compatible=True"),
    ],
)
def test_an_engine_that_cannot_be_served_is_refused_when_it_is_loaded(
    trt: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(TargetError, match=why):
        opened(trt, **options)


def test_code_for_the_host_is_allowed_only_if_it_is_asked_for(trt: Any) -> None:
    with opened(trt, flags=["VERSION_COMPATIBLE"], host_code=True) as runner:
        runner({"x": torch.ones(1, 2)})


def test_what_goes_wrong_while_it_runs_is_an_error(trt: Any) -> None:
    with (
        opened(trt, unknown="y") as runner,
        pytest.raises(TargetError, match="shape of output y depends on the data"),
    ):
        runner({"x": torch.ones(2, 2)})
    with opened(trt, broken=True) as runner, pytest.raises(TargetError, match="did not run"):
        runner({"x": torch.ones(2, 2)})
    with pytest.raises(TargetError, match="input or output of FP8"):
        opened(trt, ("x", "INPUT", "FP8"), ("y", "OUTPUT", "FLOAT"))
    with pytest.raises(TargetError, match="does not load here"):
        EngineRunner(trt, b"no engine", "some.engine", lane=HostLane())


@pytest.mark.gpu
def test_a_stream_of_its_own_comes_in_order_with_the_callers() -> None:
    lane = CudaLane()
    assert lane.handle != torch.cuda.current_stream().cuda_stream
    x = torch.zeros(1 << 24, device="cuda")
    for _ in range(20):
        x += 1  # queued on the caller's stream, and not done yet
    with lane.entered():
        lane.lend(x)
        y = x * 2
    lane.hand_over(y)
    assert bool((y + 1 == 41).all())


@pytest.mark.gpu
def test_captured_work_is_done_again_with_the_memory_that_it_had() -> None:
    lane = CudaLane()
    x, y = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    with lane.entered():
        y.copy_(x * 2)
        lane.synchronize()
        replay = lane.capture(lambda: torch.mul(x, 2, out=y) and None)
        x.fill_(5)
        replay()
    assert y.tolist() == [10.0] * 8
    with pytest.raises(RuntimeError):
        lane.capture(lambda: print(x.sum().item()))
