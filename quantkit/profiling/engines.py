"""Profiles engines of TensorRT and TensorRT-RTX: what runs in what, and on a GPU how long.

On a GPU the kernels and their times come from CUPTI, by ``torch.profiler``, and the time of each
layer from the SDK's ``IProfiler``. Without one, TensorRT-RTX still builds, and its builder tells
the kernels and the formats of each: they are listed without times.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantkit import hardware
from quantkit.benching.inputs import Arrays
from quantkit.comparing import feed_of
from quantkit.errors import TargetError
from quantkit.profiling import engine_steps, torch_trace
from quantkit.profiling.recorded import Recorded, around, leave

if TYPE_CHECKING:
    from torch import Tensor

    from quantkit.targets._engine_layers import Kernel
    from quantkit.targets._engine_run import EngineRunner

#: Files that hold an engine.
SUFFIXES: Final = (".engine", ".plan", ".trt")
NO_GPU: Final = (
    "There is no GPU here ({why}): the layers are those of the engine that TensorRT-RTX builds for "
    "{gpu}, without times. Run this on the GPU to have them."
)
_MILLI: Final = 1e-3
_RTX: Final = "tensorrt_rtx"


@dataclass
class LayerTimes:
    """Takes what ``IProfiler.report_layer_time`` is told.

    Example:
        >>> times = LayerTimes()
        >>> for ms in (2.0, 4.0, 3.0):
        ...     times.report_layer_time("conv1", ms)
        >>> times.medians()
        {'conv1': 0.003}
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """One layer of one run."""
        self.seconds[layer_name].append(_MILLI * ms)

    def medians(self) -> dict[str, float]:
        """Seconds of each layer, over the runs."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}


def as_profiler(trt: Any, times: LayerTimes) -> Any:
    """An ``IProfiler`` of the SDK that tells ``times``."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.report_layer_time(layer_name, ms)

    return Profiler()


def record(
    file: Path, target: str, inputs: Arrays, *, runs: int, trace: Path | None = None
) -> Recorded:
    """Build an engine of an ONNX file, and profile it if there is a GPU.

    Args:
        file: of ONNX.
        target: ``tensorrt`` or ``tensorrt_rtx``.
        inputs: of one run, by name.
        runs: how many are recorded.
        trace: where to leave the Chrome trace of a GPU.

    Raises:
        TargetError: the file is refused, or TensorRT is asked for without a GPU.
        MissingDependencyError: the SDK is not installed.
    """
    import onnx

    ops = engine_steps.operators(onnx.load(file, load_external_data=False))
    gpus = hardware.detect_gpus()
    if not gpus.devices:
        if target == "tensorrt":
            raise TargetError(
                f"TensorRT builds and runs only on a GPU ({gpus.why_none}); use the target "
                "tensorrt_rtx, which lists an engine's layers without one"
            )
        return _listed(file, ops, gpus.why_none or "none is found")
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        runner, trt, kernels = _opened(file, target, inputs, Path(folder))
        with runner:
            return profiled(runner, trt, kernels, inputs, ops, runs=runs, trace=trace)


def record_engine(
    engine: Path,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    *,
    runs: int,
    trace: Path | None = None,
) -> Recorded:
    """Profile an engine file of TensorRT, which tells its layers if it was built to.

    Args:
        engine: built here (`quantkit build`): an engine is code, and one of elsewhere is refused.
        args: inputs of one run, in the engine's order.
        kwargs: and by name.
        runs: how many are recorded.
        trace: where to leave the Chrome trace.

    Raises:
        TargetError: there is no GPU, or the engine was not built here or does not load.
        DataError: the inputs are not the engine's.
    """
    gpus = hardware.detect_gpus()
    if not gpus.devices:
        raise TargetError(
            f"{engine.name}: an engine runs on the GPU that it was built for, and there is none "
            f"({gpus.why_none}); profile the ONNX file with --target tensorrt_rtx, which lists an "
            "engine's layers without one"
        )
    from quantkit.targets.tensorrt import TensorRT
    from quantkit.tensorrt.sdk import load_sdk

    trt = load_sdk().trt
    with TensorRT(progress=False).runner(engine) as runner:
        inputs = feed_of(args, kwargs, runner.inputs)
        kernels = inspected(trt, engine.read_bytes())
        return profiled(runner, trt, kernels, inputs, {}, runs=runs, trace=trace)


def profiled(
    runner: EngineRunner,
    trt: Any,
    kernels: Sequence[Kernel],
    inputs: Arrays,
    ops: Mapping[str, str],
    *,
    runs: int,
    trace: Path | None,
) -> Recorded:
    """Run an engine that is loaded: by CUPTI, and then once more by the SDK's profiler.

    The SDK's profiler waits for each run to tell its layers, so it is no witness of gaps between
    kernels; CUPTI is.
    """
    import torch

    batch = {name: torch.tensor(value, device="cuda") for name, value in inputs.items()}

    def run() -> None:
        runner(batch)
        torch.cuda.synchronize()

    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        path = Path(folder) / "trace.json"

        def recorded() -> None:
            with _profiler() as told:
                for _ in range(runs + 1):
                    with torch.profiler.record_function(torch_trace.RUN):
                        run()
            told.export_chrome_trace(str(path))

        wall = around(run, recorded, runs=runs, warm=3)
        recording = torch_trace.read_trace(path).without_first()
        if trace is not None:
            leave(path.read_bytes(), trace)
    times = layer_times(runner, trt, batch, runs)
    size = next(iter(inputs.values())).shape
    return Recorded(
        recording=recording,
        walls={int(size[0]) if size else 1: wall},
        runtime=f"{trt.__name__} {trt.__version__}",
        steps=engine_steps.engine_steps(kernels, ops, times),
    )


def layer_times(
    runner: EngineRunner, trt: Any, batch: Mapping[str, Any], runs: int
) -> dict[str, float]:
    """Seconds of each layer, the median over some runs, as the SDK's profiler tells them.

    Args:
        runner: of the engine; it forgets the contexts that it has.
        trt: the SDK.
        batch: of inputs.
        runs: how many.
    """
    times = LayerTimes()
    runner.close()  # contexts that are made from here on have the profiler
    runner.profiler = as_profiler(trt, times)
    try:
        runner(batch)
        times.seconds.clear()
        for _ in range(runs):
            runner(batch)
    finally:
        runner.close()
        runner.profiler = None
    return times.medians()


def _profiler() -> AbstractContextManager[Any]:
    import torch

    kinds = torch.profiler.ProfilerActivity
    return torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])


def _listed(file: Path, ops: Mapping[str, str], why: str) -> Recorded:
    """The layers of an engine that cannot run here."""
    from quantkit.targets.tensorrt_rtx import TensorRTRTX

    target = TensorRTRTX(progress=False)
    kernels = target.kernels(file)
    return Recorded(
        recording=None,
        walls={},
        runtime=hardware.detect().runtimes.get(_RTX) or _RTX,
        steps=engine_steps.engine_steps(kernels, ops),
        notes=(NO_GPU.format(why=why, gpu=f"SM {target.compute_capability}"),),
    )


def _opened(
    file: Path, target: str, inputs: Arrays, folder: Path
) -> tuple[EngineRunner, Any, tuple[Kernel, ...]]:
    """An engine for the inputs' shapes, loaded, and its kernels."""
    from quantkit.benching.runners._engines import exactly
    from quantkit.targets._engine_run import EngineRunner

    shapes = exactly({name: value.shape for name, value in inputs.items()})
    engine = folder / "profiled.engine"
    if target == "tensorrt_rtx":
        import tensorrt_rtx

        from quantkit.targets.tensorrt_rtx import TensorRTRTX

        rtx = TensorRTRTX(shapes=shapes, progress=False)
        rtx.build(file, engine)
        runner = EngineRunner(tensorrt_rtx, engine.read_bytes(), file.name)
        return runner, tensorrt_rtx, rtx.kernels(file)
    from quantkit.targets.tensorrt import TensorRT
    from quantkit.tensorrt.sdk import load_sdk

    trt = load_sdk().trt
    built = TensorRT(shapes=shapes, progress=False)
    built.build(file, engine)
    runner = built.runner(engine)
    return runner, trt, inspected(trt, engine.read_bytes())


def inspected(trt: Any, engine: bytes) -> tuple[Kernel, ...]:
    """The kernels of an engine, as the SDK's inspector tells them.

    Raises:
        TargetError: the engine does not load here.
    """
    from quantkit.targets._tensorrt_layers import parse_information

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise TargetError(
            "the engine does not load here: it was built for another GPU, or by another version of "
            "the SDK; build it here again"
        )
    inspector = loaded.create_engine_inspector()
    return parse_information(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
