"""Runs an ONNX file in ONNX Runtime with its own profiler on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from quantkit.benching.inputs import Arrays
from quantkit.benching.runner import ordered
from quantkit.errors import TargetError
from quantkit.profiling import onnxruntime_trace as trace
from quantkit.profiling.recorded import Recorded, around, leave, timed

#: Only what ends the process is logged: all else is raised.
_FATAL = 4


@dataclass(frozen=True, kw_only=True)
class OnnxJob:
    """What is run, and how often.

    Attributes:
        file: the model.
        threads: how many of the processor's one run may use.
        inputs: of one run.
        more: inputs of a larger batch, to see what that gains; ``None`` where the model takes none.
        runs: with the profiler, and as many without.
        trace: where to leave ONNX Runtime's profile; ``None`` for nowhere.
    """

    file: Path
    threads: int
    inputs: Arrays
    more: Arrays | None
    runs: int
    trace: Path | None


def record(job: OnnxJob) -> Recorded:
    """Run it by the CPU execution provider.

    Raises:
        TargetError: ONNX Runtime refuses the file, or fails on the inputs.
        MissingDependencyError: it is not installed.
    """
    from quantkit.benching.runners._onnxruntime import import_onnxruntime

    import_onnxruntime()
    import onnxruntime

    model = onnx.load(job.file, load_external_data=False)
    names = trace.labelled(model)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        plain = _session(job, model, {})
        profiled = _session(
            job, model,
            {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "profile"),
             "optimized_model_filepath": str(optimized)},
        )  # fmt: skip
        for session in (plain, profiled):
            _run(session, job, job.inputs)
        wall = around(
            lambda: _run(plain, job, job.inputs),
            lambda: timed(lambda: _run(profiled, job, job.inputs), job.runs),
            runs=job.runs, warm=3,
        )  # fmt: skip
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(optimized, load_external_data=False)
    if job.trace is not None:
        _leave(events, names, job.trace)
    walls = {_batch(job.inputs): wall}
    if job.more is not None:
        more = job.more
        timed(lambda: _run(plain, job, more), 2)
        walls[_batch(more)] = timed(lambda: _run(plain, job, more), max(3, job.runs // 2))
    seconds = trace.node_seconds(events, job.runs, skip=1)
    return Recorded(
        recording=trace.parse_profile(events, names, skip=1),
        walls=walls,
        runtime=f"ONNX Runtime {onnxruntime.__version__}",
        steps=trace.steps_of(graph, names, seconds),
    )


def _session(job: OnnxJob, model: onnx.ModelProto, settings: dict[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    folder = str(job.file.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for name, value in settings.items():
        setattr(options, name, value)
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        # A protocol buffer ends at 2 GB: what came with external data leaves with it.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "optimized.onnx.data"
        )
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no base of their own
        raise TargetError(
            f"ONNX Runtime does not load {job.file.name}: {_line(error)}; "
            "`quantkit check` tells which nodes it refuses"
        ) from error


def _run(session: Any, job: OnnxJob, inputs: Arrays) -> None:
    names = [given.name for given in session.get_inputs()]
    try:
        session.run(None, dict(zip(names, ordered(inputs, names), strict=True)))
    except Exception as error:  # its exceptions have no base of their own
        raise TargetError(
            f"ONNX Runtime fails on {job.file.name}: {_line(error)}; give inputs that the model "
            "takes"
        ) from error


def _leave(events: Sequence[dict[str, Any]], names: trace.Names, path: Path) -> None:
    """Write the profile with the layers' names in place of labels: it is a Chrome trace."""
    told = []
    for event in events:
        layer = names.layer(event["name"].removesuffix("_kernel_time"))
        told.append(event | {"name": f"{layer}_kernel_time"} if layer else event)
    leave(json.dumps(told).encode(), path)


def _batch(inputs: Arrays) -> int:
    first = next(iter(inputs.values()))
    return int(first.shape[0]) if first.ndim else 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rpartition(" FAIL : ")[2].rstrip(".")
