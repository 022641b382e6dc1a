"""``profile``: where the time of a model goes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from quantkit import hardware
from quantkit.batches import Call, as_batches
from quantkit.benching import inputs as model_inputs
from quantkit.benching.inputs import Arrays
from quantkit.benching.runner import Device, Load
from quantkit.benching.sources import UnfitError, Variant
from quantkit.benching.subject import Examples, Model, Subject, subject_of
from quantkit.data import DataSpec
from quantkit.errors import DataError, ModelFileError, TargetError
from quantkit.profiling import engines, findings
from quantkit.profiling.composing import composed, counted
from quantkit.profiling.cpu_kinds import WORDS, cpu_kind
from quantkit.profiling.engine_steps import layers_of
from quantkit.profiling.kernels import classify
from quantkit.profiling.kinds import KernelKind
from quantkit.profiling.recorded import Recorded
from quantkit.profiling.recording import Call as KernelCall
from quantkit.profiling.recording import kernel_times, layer_times, totals
from quantkit.profiling.report import KernelTime as KernelTime
from quantkit.profiling.report import LayerTime as LayerTime
from quantkit.profiling.report import ProfileReport as ProfileReport
from quantkit.profiling.report import Totals as Totals
from quantkit.profiling.roofline import Roof

#: What can be profiled, and the form of the file that each reads.
TARGETS: Final[Mapping[str, str]] = {
    "eager": "pt2",
    "inductor": "pt2",
    "onnxruntime": "onnx",
    "tensorrt": "onnx",
    "tensorrt_rtx": "onnx",
}
#: A batch this many times as large shows what larger batches gain.
_LARGER: Final = 4


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is run, and how."""

    target: str
    device: Device
    threads: int
    runs: int
    trace: Path | None


def profile(
    model: Model,
    *,
    target: str | None = None,
    device: Device = "cpu",
    data: Iterable[Any] | None = None,
    example_inputs: tuple[Tensor, ...] = (),
    example_kwargs: Mapping[str, Tensor] | None = None,
    batch: int | None = None,
    runs: int = 20,
    threads: int = 1,
    trace: Path | None = None,
    roof: Roof | None = None,
    memory: bool = False,
) -> ProfileReport:
    """Tell where the time of a model goes: by kernel and by layer, and what is slow about it.

    Args:
        model: a module, a program of ``torch.export``, a ``.pt2`` or ``.onnx`` file, an engine, or
            ``package.module:factory``.
        target: ``eager``, ``inductor``, ``onnxruntime``, ``tensorrt_rtx`` or ``tensorrt``; by
            default what fits the model: ONNX Runtime for ONNX, Inductor for programs with Q/DQ,
            else PyTorch eager.
        device: ``cpu`` or ``cuda``.
        data: batches of inputs, of which the first samples are run.
        example_inputs: inputs by order, where there are no data.
        example_kwargs: and by name.
        batch: samples a run; by default those of the example inputs, else 1 or what the model
            takes.
        runs: how many runs are recorded, after some that do not count.
        threads: of the processor, for one run.
        trace: where to leave the recording as a Chrome trace.
        roof: place each layer under it: ``roofs.measure_roof()``, or ``roof_from_table``.
        memory: tell as well which bytes live while each layer runs.

    Raises:
        ModelFileError, CaptureError: the model cannot be read or captured.
        DataError: data do not fit, or there are none where there must be.
        TargetError: the target cannot run it.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> report = profile(net, example_inputs=(torch.randn(4, 32),), batch=4, runs=3)
        >>> [layer.name for layer in report.layers]
        ['0', '1/relu']
    """
    if runs < 1 or threads < 1:
        raise DataError(
            f"a profile takes 1 run or more on 1 thread or more, got {runs} and {threads}; "
            "correct the number"
        )
    opened = data.open() if isinstance(data, DataSpec) else data
    if isinstance(model, str | Path) and Path(model).suffix in engines.SUFFIXES:
        given = (example_inputs, dict(example_kwargs or {}))
        call = given if opened is None else next(as_batches(opened))
        if roof is not None or memory:
            raise TargetError(
                f"{Path(model).name}: an engine does not tell what it computes, so it has no roof "
                "and no memory plan; profile the ONNX file that it was built of"
            )
        return _engine(Path(model), target, call, runs, trace)
    with tempfile.TemporaryDirectory(prefix="quantkit-profile-") as name:
        examples = Examples(args=example_inputs, kwargs=example_kwargs)
        subject = subject_of([model], (), opened, examples, Path(name), batch or 1)
        variant = subject.variants[0]
        chosen = target or _default(variant)
        _require(chosen, variant, device)
        task = _Task(target=chosen, device=device, threads=threads, runs=runs, trace=trace)
        size = _size(subject, batch or _given(example_inputs, example_kwargs))
        file = _file(chosen, variant)
        inputs = _sized(subject, size)
        recorded = _recorded(task, file, inputs, _more(subject, size))
        label = str(model) if isinstance(model, str | Path) else type(model).__name__
        report = report_of(recorded, subject=label, batch=size)
        if roof is not None or memory:
            found = counted(file, inputs, size)
            report = composed(report, found, roof=roof, with_memory=memory)
    return report


def _engine(
    file: Path, target: str | None, call: Call, runs: int, trace: Path | None
) -> ProfileReport:
    """Of an engine file, on the first batch of the data, or on the example inputs."""
    if target not in (None, "tensorrt"):
        raise TargetError(f"{file.name}: an engine is TensorRT's; leave the target out")
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file; give one that quantkit build wrote")
    args, kwargs = call
    if not (args or kwargs):
        raise DataError(
            f"{file.name}: an engine does not tell what its inputs look like; give data, or the "
            "shapes of the inputs"
        )
    recorded = engines.record_engine(file, args, kwargs, runs=runs, trace=trace)
    return report_of(recorded, subject=str(file), batch=next(iter(recorded.walls), None))


def report_of(recorded: Recorded, *, subject: str, batch: int | None) -> ProfileReport:
    """The figures of a recording, and what is slow about it."""
    recording = recorded.recording
    if recording is None:
        return ProfileReport(
            subject=subject, runtime=recorded.runtime, device="no GPU", batch=batch,
            kernels=(), layers=layers_of(recorded.steps), totals=None,
            steps=recorded.steps, notes=recorded.notes,
            findings=findings.findings("cuda", (), None, recorded.steps),
        )  # fmt: skip
    family = "ONNX Runtime" if "ONNX Runtime" in recorded.runtime else "PyTorch"
    on_gpu = recording.device == "cuda"
    kernels = kernel_times(recording, _gpu_kind if on_gpu else partial(_cpu_kind, family))
    walls = recorded.walls
    summed = totals(recording, next(iter(walls.values()), ()))
    return ProfileReport(
        subject=subject,
        runtime=recorded.runtime,
        device=_device_name(recording.device),
        batch=batch,
        kernels=kernels,
        layers=layer_times(recording, kernels, WORDS) or layers_of(recorded.steps),
        totals=summed,
        findings=findings.findings(recording.device, kernels, summed, recorded.steps, walls),
        steps=recorded.steps,
        notes=recorded.notes,
    )


def read_recording(path: Path) -> ProfileReport:
    """The report of a trace that was recorded elsewhere: PyTorch's or ONNX Runtime's.

    Args:
        path: what ``export_chrome_trace`` of ``torch.profiler``, or ONNX Runtime's profiling wrote.

    Raises:
        ModelFileError: it cannot be read, or is no such trace.
    """
    from quantkit.profiling.traces import read_any

    recorded = read_any(path)
    report = report_of(recorded, subject=path.name, batch=None)
    return replace(report, device="as recorded")


def _gpu_kind(call: KernelCall) -> KernelKind:
    return classify(call.name)


def _cpu_kind(family: str, call: KernelCall) -> KernelKind:
    return cpu_kind(call, hardware.detect_cpu().kind, family)


def _device_name(device: Device) -> str:
    if device == "cuda":
        gpus = hardware.detect_gpus().devices
        return gpus[0].gpu.name if gpus else "a GPU that is not here"
    return hardware.detect_cpu().name


def _default(variant: Variant) -> str:
    if "pt2" not in variant.formats:
        return "onnxruntime"
    return "inductor" if variant.precision.quantized else "eager"


def _require(target: str, variant: Variant, device: Device) -> None:
    """Refuse what the target cannot run, before anything runs."""
    reads = TARGETS.get(target)
    if reads is None:
        raise TargetError(f"no profile of {target!r}; there are: {', '.join(TARGETS)}")
    if reads not in variant.formats:
        raise TargetError(
            f"{target} reads .{reads} files, and there is none; choose another target"
        )
    if target == "eager" and variant.precision.quantized:
        raise TargetError(
            "PyTorch eager computes Q/DQ in float, which says nothing of its speed in INT8; use "
            "the target inductor"
        )
    if target == "onnxruntime" and device == "cuda":
        raise TargetError(
            "ONNX Runtime's profile tells of a GPU only when work was queued; profile the engine "
            "(tensorrt) or the program (eager) there"
        )
    if device == "cuda" and reads == "pt2" and not hardware.detect_gpus().devices:
        raise TargetError(f"no GPU to profile on: {hardware.detect_gpus().why_none}; use cpu")


def _given(args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor] | None) -> int | None:
    """Samples in example inputs; ``None`` where there are none."""
    tensors = [x for x in (*args, *(kwargs or {}).values()) if x.ndim]
    return int(tensors[0].shape[0]) if tensors else None


def _size(subject: Subject, batch: int | None) -> int:
    """Samples a run."""
    fixed = model_inputs.fixed_batch(subject.inputs)
    if batch is not None and batch < 1:
        raise DataError(f"a batch has 1 sample or more, got {batch}; correct the batch size")
    if fixed is not None and batch not in (None, fixed):
        raise DataError(
            f"the model takes batches of {fixed} alone; leave the batch size out, or export it "
            "with a dynamic batch"
        )
    return batch or fixed or 1


def _file(target: str, variant: Variant) -> Path:
    """What the target reads."""
    try:
        return variant.file(
            "pt2" if TARGETS[target] == "pt2" else "onnx",
            "tensorrt" if target.startswith("tensorrt") else "onnxruntime",
            half=False,
        )
    except UnfitError as error:
        raise TargetError(f"{target} has no file to run: {error}; choose another") from error


def _sized(subject: Subject, size: int) -> Arrays:
    batched = {given.name for given in subject.inputs if given.batched}
    return model_inputs.resized(subject.example, size, batched)


def _more(subject: Subject, size: int) -> Arrays | None:
    """A larger batch, where the model takes any."""
    free = any(given.batched for given in subject.inputs)
    return _sized(subject, _LARGER * size) if free else None


def _recorded(task: _Task, file: Path, inputs: Arrays, more: Arrays | None) -> Recorded:
    if task.target == "onnxruntime":
        from quantkit.profiling import onnxruntime_run

        job = onnxruntime_run.OnnxJob(
            file=file, threads=task.threads, inputs=inputs, more=more, runs=task.runs,
            trace=task.trace,
        )  # fmt: skip
        return onnxruntime_run.record(job)
    if task.target.startswith("tensorrt"):
        return engines.record(file, task.target, inputs, runs=task.runs, trace=task.trace)
    from quantkit.profiling import torch_run

    shapes = {name: value.shape for name, value in inputs.items()}
    load = Load(
        file=file, device=task.device, threads=task.threads, half=False, folder=file.parent,
        shapes=shapes,
    )  # fmt: skip
    of_torch = torch_run.TorchJob(
        load=load, inputs=inputs, more=more, runs=task.runs, trace=task.trace
    )
    run = torch_run.record_eager if task.target == "eager" else torch_run.record_inductor
    return run(of_torch)
