"""Runs a program of PyTorch under ``torch.profiler``, with a mark around each of its layers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx

from quantkit.benching.inputs import Arrays
from quantkit.benching.runner import Load, ordered
from quantkit.benching.runners import _torch
from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.graph.aten import describe
from quantkit.profiling import torch_trace
from quantkit.profiling.recorded import Recorded, around, leave, timed
from quantkit.profiling.recording import Recording
from quantkit.profiling.steps import Step, StepKind

if TYPE_CHECKING:
    from torch._ops import OpOverload

#: Tells which layers a compiled program's kernels serve: nothing does.
NO_LAYERS: Final = (
    "Inductor fuses operators of several layers, and its kernels do not tell which: times are by "
    "kernel, not by layer."
)
_PRODUCTS: Final = frozenset({Kind.CONV, Kind.CONV_TRANSPOSE, Kind.LINEAR, Kind.MATMUL})


@dataclass(frozen=True, kw_only=True)
class TorchJob:
    """What is run, and how often.

    Attributes:
        load: the program, the device and the threads.
        inputs: of one run.
        more: inputs of a larger batch, to see what that gains; ``None`` where the model takes none.
        runs: with the profiler, and as many without.
        trace: where to leave the Chrome trace; ``None`` for nowhere.
    """

    load: Load
    inputs: Arrays
    more: Arrays | None
    runs: int
    trace: Path | None


def record_eager(job: TorchJob) -> Recorded:
    """One operator after the other, each layer marked."""
    with _threads(job.load.threads), torch.inference_mode():
        program = _torch.read(job.load)
        plain, marked = _torch.module_of(program), _torch.module_of(program)
        assert isinstance(marked, fx.GraphModule)
        graph = mark(marked)
        names = _torch.names_of(program)
        recorded = _record(job, _caller(plain, names), _caller(marked, names))
    return Recorded(
        recording=recorded[0],
        walls=recorded[1],
        runtime=f"PyTorch {torch.__version__} eager",
        steps=steps_of(graph),
    )


def record_inductor(job: TorchJob) -> Recorded:
    """What Inductor makes of it, whose kernels are of no one layer.

    Raises:
        MissingDependencyError: there is no compiler.
        TargetError: the program cannot be captured again.
    """
    from torch._inductor import config

    from quantkit.program.archive import read_archive
    from quantkit.program.reading import is_quantized
    from quantkit.targets._inductor_process import require_compiler
    from quantkit.targets.inductor import compiled

    require_compiler()
    with _threads(job.load.threads), torch.inference_mode():
        program = _torch.read(job.load)
        call: Callable[..., Any]
        if is_quantized(read_archive(job.load.file)):
            call = compiled(program, dynamic=False, device=job.load.device)
        else:
            call = torch.compile(_torch.module_of(program), dynamic=False)
        run = _caller(call, _torch.names_of(program))
        # Without this, kernels that Inductor writes for a processor are not in the trace.
        with config.patch({"cpp.enable_kernel_profile": True}):
            recording, walls = _record(replace(job, more=None), run, run)
    return Recorded(
        recording=recording,
        walls=walls,
        runtime=f"PyTorch {torch.__version__} Inductor",
        notes=(NO_LAYERS,),
    )


def mark(module: fx.GraphModule) -> Graph:
    """Put a profiler's mark around each layer of a captured model, in place.

    Returns:
        The abstract graph, whose operators the marks are named by.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> module = torch.export.export(net, (torch.ones(2, 4),)).module()
        >>> graph = mark(module)
        >>> [op.name for op in graph.ops], module(torch.ones(2, 4)).shape
        (['0', '1/relu'], torch.Size([2, 4]))
    """
    found = describe(module)
    enter: OpOverload = torch.ops.profiler._record_function_enter_new.default
    leave: OpOverload = torch.ops.profiler._record_function_exit._RecordFunction
    for name, node in found.node_of_op.items():
        with module.graph.inserting_before(node):
            handle = module.graph.call_function(enter, (torch_trace.LAYER + name,))
        with module.graph.inserting_after(node):
            module.graph.call_function(leave, (handle,))
    module.recompile()
    return found.graph


def steps_of(graph: Graph) -> tuple[Step, ...]:
    """The operators of a captured float model."""
    return tuple(
        Step(
            name=op.name,
            layer=op.name,
            op=op.operator,
            kind=_kind(op),
            precision="float32",
            inputs=tuple(name for name in op.inputs if not graph.values[name].constant),
            outputs=(op.output,),
            channels=_channels(op, graph),
        )
        for op in graph.ops
    )


def _kind(op: Op) -> StepKind:
    if op.kind in _PRODUCTS:
        return StepKind.PRODUCT
    if op.kind in {Kind.ADD, Kind.CONCAT}:
        return StepKind.JOIN
    return StepKind.OTHER


def _channels(op: Op, graph: Graph) -> tuple[int, int] | None:
    """Input and output channels of one group, by the shape of the weight."""
    if op.kind not in {Kind.CONV, Kind.LINEAR} or len(op.inputs) < 2:
        return None
    shape = graph.values[op.inputs[1]].shape or ()
    if len(shape) < 2 or shape[0] is None or shape[1] is None:
        return None
    axis = op.weight_axis or 0
    return int(shape[1 - axis] or 0), int(shape[axis] or 0) // op.groups


def _record(
    job: TorchJob, plain: Callable[[Arrays], Any], marked: Callable[[Arrays], Any]
) -> tuple[Recording, Mapping[int, list[float]]]:
    """The recording, and seconds of runs without the profiler by batch size."""
    device = job.load.device
    given = {name: torch.tensor(value, device=device) for name, value in job.inputs.items()}
    wait = torch.cuda.synchronize if device == "cuda" else _nothing

    def run(values: Mapping[str, torch.Tensor], call: Callable[[Any], Any]) -> None:
        call(values)
        wait()

    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        trace = Path(folder) / "trace.json"
        run(given, marked)

        def profiled() -> None:
            with torch.profiler.profile(activities=_activities(device), record_shapes=True) as told:
                for _ in range(job.runs + 1):
                    with torch.profiler.record_function(torch_trace.RUN):
                        run(given, marked)
            told.export_chrome_trace(str(trace))

        wall = around(lambda: run(given, plain), profiled, runs=job.runs, warm=3)
        recording = torch_trace.read_trace(trace)
        if job.trace is not None:
            leave(trace.read_bytes(), job.trace)
    walls = {_batch(job.inputs): wall}
    if job.more is not None:
        larger = {name: torch.tensor(value, device=device) for name, value in job.more.items()}
        timed(lambda: run(larger, plain), 2)
        walls[_batch(job.more)] = timed(lambda: run(larger, plain), max(3, job.runs // 2))
    return recording.without_first(), walls


def _batch(inputs: Arrays) -> int:
    first = next(iter(inputs.values()))
    return int(first.shape[0]) if first.ndim else 1


def _activities(device: str) -> list[torch.profiler.ProfilerActivity]:
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, kinds.CUDA] if device == "cuda" else [kinds.CPU]


def _caller(
    call: Callable[..., Any], names: tuple[list[str], list[str]]
) -> Callable[[Mapping[str, Any]], Any]:
    """The call as a function of inputs by name."""
    positional, keywords = names

    def run(values: Mapping[str, Any]) -> Any:
        placed = ordered(values, (*positional, *keywords))
        count = len(positional)
        return call(*placed[:count], **dict(zip(keywords, placed[count:], strict=True)))

    return run


def _nothing() -> None:
    """A processor has no queue to wait for."""


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads as are asked for, and after that as many as there were."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
