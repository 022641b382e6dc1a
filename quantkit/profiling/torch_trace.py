"""Reads the Chrome trace that ``torch.profiler`` exports, recorded here or elsewhere.

What is read of it: events with ``ph: X`` (a span: ``ts`` and ``dur`` in microseconds, ``pid`` and
``tid``), told apart by ``cat``: ``cpu_op``, ``user_annotation`` (``record_function``),
``python_function``, ``cuda_runtime`` and ``cuda_driver`` (what queues work), and ``kernel``,
``gpu_memcpy`` and ``gpu_memset`` (what a GPU did, as CUPTI tells it). ``args.correlation`` joins a
kernel with the call that queued it, and ``args["blocks per SM"]`` tells how it fills the GPU.

https://docs.pytorch.org/tutorials/recipes/recipes/profiler_recipe.html, and Kineto's
``libkineto/src/output_json.cpp``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantkit.profiling.recording import Call, Recording, Span

#: Marks that quantkit leaves in what it runs: one run of the model, and one layer.
RUN: Final = "quantkit.run"
LAYER: Final = "quantkit.layer: "

_STEP = re.compile(rf"{re.escape(RUN)}|ProfilerStep#\d+")
_MODULE: Final = "nn.Module: "
#: What PyTorch's compiler records around operators, as if it were one.
_FRAMES: Final = ("Torch-Compiled Region", "TorchDynamo", "Pregraph", "AOTDispatcher", "Compiled")
_QUEUES: Final = frozenset({"cuda_runtime", "cuda_driver", "runtime", "driver"})
_DEVICE: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_KINDS: Final = {
    "cpu_op": "op",
    "operator": "op",
    "user_annotation": "mark",
    "python_function": "python",
}


@dataclass
class _Event:
    """A span, and what encloses it on its thread."""

    kind: str
    name: str
    start: float
    end: float
    args: Mapping[str, Any]
    parent: _Event | None = None
    inner: float = 0.0  # of the operators that it calls

    @property
    def enclosing(self) -> Iterator[_Event]:
        """It, and what it lies in, from within."""
        event: _Event | None = self
        while event is not None:
            yield event
            event = event.parent


def read_trace(path: Path) -> Recording:
    """The recording of a file that ``export_chrome_trace`` wrote.

    Raises:
        ValueError: it holds neither operators nor kernels.
    """
    return parse_trace(json.loads(path.read_text(encoding="utf-8")))


def parse_trace(trace: Mapping[str, Any]) -> Recording:
    """The recording of a trace.

    Runs are what lies in marks of quantkit, or in the ``ProfilerStep`` of a schedule; without
    either, the whole trace is one. A layer is named by quantkit's mark, or by the modules that
    ``with_stack=True`` records.

    Raises:
        ValueError: it holds neither operators nor kernels.

    Example:
        >>> def span(cat, name, ts, dur, **args):
        ...     return dict(ph="X", cat=cat, name=name, ts=ts, dur=dur, pid=1, tid=1, args=args)
        >>> found = parse_trace({"traceEvents": [
        ...     span("user_annotation", "quantkit.layer: conv1", 0, 20),
        ...     span("cpu_op", "aten::conv2d", 1, 10),
        ...     span("cuda_runtime", "cudaLaunchKernel", 2, 5, correlation=7),
        ...     span("kernel", "volta_sgemm_128x64_nn", 30, 40, correlation=7, device=0)]})
        >>> [(call.layer, call.op, call.name, round(1e6 * call.seconds)) for call in found.calls]
        [('conv1', 'aten::conv2d', 'volta_sgemm_128x64_nn', 40)]
    """
    threads, device = _events(trace)
    for events in threads.values():
        _nest(events)
    host = [event for events in threads.values() for event in events]
    ops = [event for event in host if event.kind == "op"]
    if not device and not ops:
        raise ValueError("it holds no operator and no kernel")
    runs = _runs(host, device)
    if not device:
        return Recording(device="cpu", calls=_cpu_calls(ops, runs), runs=tuple(runs))
    queued = {e.args.get("correlation"): e for e in host if e.kind == "queue"}
    calls = _device_calls(device, queued, runs)
    launches = [0.0] * len(runs)
    # A call that waits for the GPU queues nothing: what it takes is no cost of launches.
    started = {event.args.get("correlation") for event in device}
    for number, event in queued.items():
        if number in started and (run := _run_of(event.start, runs)) is not None:
            launches[run] += event.end - event.start
    return Recording(
        device="cuda", calls=calls, runs=_until_done(runs, calls), launches=tuple(launches)
    )


def _events(trace: Mapping[str, Any]) -> tuple[dict[tuple[Any, Any], list[_Event]], list[_Event]]:
    """The spans of each thread of the processor, and those of GPUs."""
    threads: dict[tuple[Any, Any], list[_Event]] = {}
    device: list[_Event] = []
    for told in trace["traceEvents"]:
        category = str(told.get("cat", "")).lower()
        kind = "queue" if category in _QUEUES else _KINDS.get(category)
        if told.get("ph") != "X" or (kind is None and category not in _DEVICE):
            continue
        if kind == "op" and str(told["name"]).startswith(_FRAMES):
            continue
        start = 1e-6 * float(told["ts"])
        event = _Event(
            kind=kind or category,
            name=str(told["name"]),
            start=start,
            end=start + 1e-6 * float(told.get("dur", 0.0)),
            args=told.get("args") or {},
        )
        if kind is None:
            device.append(event)
        elif kind != "python" or event.name.startswith(_MODULE):
            threads.setdefault((told.get("pid"), told.get("tid")), []).append(event)
    return threads, sorted(device, key=lambda event: event.start)


def _nest(events: list[_Event]) -> None:
    """Tell each span of a thread what encloses it, and each operator what it calls takes."""
    events.sort(key=lambda event: (event.start, -event.end))
    open_: list[_Event] = []
    for event in events:
        while open_ and open_[-1].end <= event.start:
            open_.pop()
        event.parent = open_[-1] if open_ else None
        open_.append(event)
        if event.kind == "op":
            caller = next((e for e in open_[-2::-1] if e.kind == "op"), None)
            if caller is not None:
                caller.inner += event.end - event.start


def _runs(host: Sequence[_Event], device: Sequence[_Event]) -> list[Span]:
    marks = [e for e in host if e.kind == "mark" and _STEP.fullmatch(e.name)]
    if marks:
        return sorted((mark.start, mark.end) for mark in marks)
    every = [e for e in (*host, *device) if e.kind != "python"]
    return [(min(e.start for e in every), max(e.end for e in every))]


def _run_of(time: float, runs: Sequence[Span]) -> int | None:
    return next((i for i, (start, end) in enumerate(runs) if start <= time <= end), None)


def _cpu_calls(ops: Iterable[_Event], runs: Sequence[Span]) -> tuple[Call, ...]:
    found = []
    for event in sorted(ops, key=lambda event: event.start):
        run = _run_of(event.start, runs)
        if run is not None:
            told = event.args.get("Input type")
            found.append(
                Call(
                    name=event.name,
                    op=_outermost(event).name,
                    layer=_layer(event),
                    run=run,
                    start=event.start,
                    seconds=max(0.0, event.end - event.start - event.inner),
                    dtype=next((str(x) for x in told if x), "") if isinstance(told, list) else "",
                )
            )
    return tuple(found)


def _device_calls(
    device: Iterable[_Event], queued: Mapping[Any, _Event], runs: Sequence[Span]
) -> tuple[Call, ...]:
    """Kernels with the operator and layer that queued them; by time where nothing tells it."""
    found = []
    for event in device:
        origin = queued.get(event.args.get("correlation"))
        run = _run_of((origin or event).start, runs)
        if run is None:
            continue
        op = None if origin is None else next((e for e in origin.enclosing if e.kind == "op"), None)
        blocks = event.args.get("blocks per SM")
        found.append(
            Call(
                name=event.name,
                op="" if op is None else _outermost(op).name,
                layer="" if origin is None else _layer(origin),
                run=run,
                start=event.start,
                seconds=event.end - event.start,
                blocks_per_sm=None if blocks is None else float(blocks),
            )
        )
    return tuple(found)


def _until_done(runs: Sequence[Span], calls: Iterable[Call]) -> tuple[Span, ...]:
    """Runs that end no earlier than their last kernel: the processor may not wait for it."""
    ends = [end for _, end in runs]
    for call in calls:
        ends[call.run] = max(ends[call.run], call.span[1])
    return tuple((start, end) for (start, _), end in zip(runs, ends, strict=True))


def _outermost(op: _Event) -> _Event:
    """The operator that the model called, of those that called one another."""
    last = op
    for event in op.enclosing:
        if event.kind == "op":
            last = event
        elif event.kind == "mark":
            break
    return last


def _layer(event: _Event) -> str:
    """By quantkit's mark, else by the modules that it ran in."""
    around = list(event.enclosing)
    for mark in around:
        if mark.kind == "mark" and mark.name.startswith(LAYER):
            return mark.name.removeprefix(LAYER)
    modules = [e.name.removeprefix(_MODULE) for e in around if e.kind == "python"]
    return "/".join(reversed(modules))
