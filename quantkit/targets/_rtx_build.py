"""Build one TensorRT-RTX engine: the program that runs in the child process.

A few networks end the builder with a signal instead of an error, so it never runs in the process
of the user. This file is started by its path and imports nothing of quantkit, so that the child
starts at once: one JSON request on standard input, then JSON lines on standard output, each with
an ``event``: ``missing`` (no SDK), ``phase`` and ``step`` (progress), ``refusal`` (the parser on
one node), ``error`` (the builder's log), ``layers`` (its list of kernels), ``done``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

#: Smallest, best and largest size of a dynamic dimension where the user gives none.
BATCH = (1, 8, 32)
SEQUENCE = (1, 128, 512)
IMAGE = (64, 224, 512)


def default_profile(shape: Sequence[int]) -> Profile:
    """The sizes to build for where a dimension is dynamic (negative).

    The first dimension is taken for a batch (1, 8, 32); others of a tensor of rank 4 or more for
    the side of an image (64, 224, 512); the rest for a sequence (1, 128, 512).

    Example:
        >>> default_profile([-1, 3, 224, 224])
        ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))
    """
    inner = IMAGE if len(shape) >= 4 else SEQUENCE
    low, best, high = (
        tuple(
            size if size >= 0 else (BATCH if i == 0 else inner)[k] for i, size in enumerate(shape)
        )
        for k in range(3)
    )
    return low, best, high


class _Pipe:
    """Writes events; the builder calls it from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: str, **values: object) -> None:
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **values}) + "\n")
                self._stream.flush()
            except BrokenPipeError:  # the parent is gone: nobody wants the engine
                os._exit(1)


def _logger(trt: Any, pipe: _Pipe) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                pipe.send("error", text=message)
            elif message.startswith("Layers:"):
                pipe.send("layers", text=message)

    return Logger()


def _monitor(trt: Any, pipe: _Pipe) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            pipe.send("phase", name=name, steps=steps)

        def step_complete(self, name: str, step: int) -> bool:
            pipe.send("step", name=name, step=step)
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def _report(parser: Any, pipe: _Pipe) -> None:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        pipe.send(
            "refusal",
            node=error.node_name(),
            operator=error.node_operator(),
            function=error.func(),
            why=error.desc(),
        )


def _parse(
    trt: Any, builder: Any, network: Any, logger: Any, request: Mapping[str, Any], pipe: _Pipe
) -> Any:
    """The parser if it took the whole model (it must outlive the build), else ``None``."""
    parser = trt.OnnxParser(network, logger)
    if request["proto"] is None:
        parsed = parser.parse_from_file(request["model"])
    else:  # the same model with every node named; the path says where external data lies
        parsed = parser.parse(Path(request["proto"]).read_bytes(), request["model"])
    if parsed:
        return parser
    _report(parser, pipe)
    # The import stops at the first bad node; the static check lists those of the whole file.
    # It fills a network as well, and crashes on one that is not empty.
    spare = builder.create_network(0)
    checker = trt.OnnxParser(spare, logger)
    source = Path(request["proto"] or request["model"]).read_bytes()
    checker.supports_model_v2(source, request["model"])
    _report(checker, pipe)
    return None


def add_profile(builder: Any, network: Any, config: Any, shapes: Mapping[str, Any]) -> str | None:
    """Give every dynamic input its sizes; returns what is wrong with ``shapes``."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    unknown = sorted(set(shapes) - {tensor.name for tensor in inputs})
    if unknown:
        names = ", ".join(tensor.name for tensor in inputs)
        return f"shapes names {', '.join(unknown)}, but the inputs of the model are {names}."
    dynamic = [tensor for tensor in inputs if any(size < 0 for size in tensor.shape)]
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        low, best, high = shapes.get(tensor.name) or default_profile(tuple(tensor.shape))
        try:
            profile.set_shape(tensor.name, tuple(low), tuple(best), tuple(high))
        except (ValueError, TypeError, RuntimeError) as error:
            return f"The sizes {low}, {best}, {high} of input {tensor.name} are refused: {error}."
    if dynamic and config.add_optimization_profile(profile) < 0:
        return "The sizes of the dynamic inputs are refused as an optimization profile."
    return None


def _build(trt: Any, request: Mapping[str, Any], pipe: _Pipe) -> bool:
    logger = _logger(trt, pipe)  # one logger a process: the SDK keeps the first
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = _parse(trt, builder, network, logger, request, pipe)
    if parser is None:
        return False
    config = builder.create_builder_config()
    # Without a target the builder does not check what the GPU has, and fp8 builds for anything.
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, request["capability"]), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    problem = add_profile(builder, network, config, request["shapes"])
    if problem is not None:
        pipe.send("refusal", node="", operator="", function="profile", why=problem)
        return False
    monitor = _monitor(trt, pipe)
    config.progress_monitor = monitor  # the SDK keeps a pointer, not a reference
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return False
    Path(request["engine"]).write_bytes(engine)
    return True


def main() -> None:
    """Read the request, build, report."""
    # The SDK is free to print: keep the pipe for events, send everything else to standard error.
    pipe = _Pipe(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        import tensorrt_rtx as trt
    except (ImportError, OSError) as error:
        pipe.send("missing", why=str(error))
        return
    started = time.perf_counter()
    built = _build(trt, request, pipe)
    pipe.send("done", built=built, seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
