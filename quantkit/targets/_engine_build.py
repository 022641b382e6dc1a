"""Builds one engine with TensorRT or TensorRT-RTX, and tells what happens as events.

It runs in the child process of ``_engine_process``, so it imports nothing that is slow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.targets import _engine_timing
from quantkit.targets._engine_request import Request, Send
from quantkit.targets._shapes import default_profile

if TYPE_CHECKING:
    import tensorrt as api

    from quantkit.tensorrt.remote import Answer, Ask


@dataclass(frozen=True)
class _Session:
    """One build: the SDK's objects, which must live as long as it, and where events go."""

    trt: Any
    request: Request
    send: Send
    ask: Ask
    logger: Any
    builder: api.Builder
    network: api.INetworkDefinition


def _nobody(what: str, **values: object) -> Answer:
    raise EOFError(f"nobody answers when {what} is asked for")


def build(trt: Any, request: Request, send: Send, ask: Ask = _nobody) -> None:
    """Do what is asked for, and tell of it.

    Args:
        trt: the module of the SDK.
        request: what to build.
        send: takes the events.
        ask: what a calibrator needs of the data.
    """
    started = time.perf_counter()
    logger = _logger(trt, send)  # one logger a process: the SDK keeps the first
    try:
        builder: api.Builder = trt.Builder(logger)
    except (TypeError, RuntimeError):  # the binding of a null pointer
        return
    send("started", version=str(getattr(trt, "__version__", "?")))
    network = builder.create_network(request.settings.network_bits(trt))
    session = _Session(trt, request, send, ask, logger, builder, network)
    parser = _parse(session)  # alive as long as the network
    if parser is not None and request.engine is None:
        send("built")
    elif parser is not None:
        _build(session)
    send("done", seconds=time.perf_counter() - started)


def _build(session: _Session) -> None:
    request, builder, network = session.request, session.builder, session.network
    config = builder.create_builder_config()
    request.settings.apply(session.trt, config)
    problem = add_profile(builder, network, config, request.shapes)
    if problem is not None:
        session.send("refusal", node="", operator="", function="profile", why=problem)
        return
    # The SDK keeps pointers, not references, to the monitor and the timing cache.
    monitor = _monitor(session.trt, session.send)
    if monitor is not None:
        config.progress_monitor = monitor
    timing = None
    if request.timing_cache is not None:
        timing = _engine_timing.attach(config, request.timing_cache, session.send)
    engine = _serialized(session, config)
    if engine is None:
        return
    assert request.engine is not None
    request.engine.write_bytes(engine)
    session.send("built")
    if timing is not None:
        timing.save(config, session.send)
    if request.inspected:
        _inspect(session, bytes(engine))


def _serialized(session: _Session, config: api.IBuilderConfig) -> api.IHostMemory | None:
    """The engine; what went wrong with a calibrator's data is sent."""
    calibrator, builder, network = session.request.calibrator, session.builder, session.network
    if calibrator is None:
        return builder.build_serialized_network(network, config)
    from quantkit.targets._engine_calibrate import calibrated  # which others need not wait for

    engine, error = calibrated(session.trt, builder, network, config, calibrator, session.ask)
    if error is not None:
        session.send("failed", kind=type(error).__name__, why=str(error))
    return engine


def _parse(session: _Session) -> api.OnnxParser | None:
    """The parser if it took the whole model; what is wrong with the model is sent."""
    request, path = session.request, str(session.request.model.resolve())
    parser: api.OnnxParser = session.trt.OnnxParser(session.network, session.logger)
    # The path says where external data lies.
    if request.proto is None:
        parsed = parser.parse_from_file(path)
    else:
        parsed = parser.parse(request.proto.read_bytes(), path)
    if parsed:
        return parser
    _report(parser, session.send)
    # The import stops at the first bad node; the static check lists those of the whole file.
    # It fills a network as well, and crashes on one that is not empty.
    spare = session.builder.create_network(request.settings.network_bits(session.trt))
    checker: api.OnnxParser = session.trt.OnnxParser(spare, session.logger)
    if hasattr(checker, "supports_model_v2"):  # not before TensorRT 10
        checker.supports_model_v2((request.proto or request.model).read_bytes(), path)
        _report(checker, session.send)
    return None


def _report(parser: api.OnnxParser, send: Send) -> None:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # Parsers before TensorRT 9 do not name the node.
        node, operator = getattr(error, "node_name", None), getattr(error, "node_operator", None)
        send(
            "refusal",
            node=(node() if node else "") or "",
            operator=(operator() if operator else "") or "",
            function=error.func(),
            why=error.desc(),
        )


def add_profile(
    builder: api.Builder,
    network: api.INetworkDefinition,
    config: api.IBuilderConfig,
    shapes: Mapping[str, Any],
) -> str | None:
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


def _inspect(session: _Session, engine: bytes) -> None:
    """Load the engine that was just built, and send its inspector's list of kernels."""
    try:
        runtime: api.Runtime = session.trt.Runtime(session.logger)
        if "VERSION_COMPATIBLE" in session.request.settings.builder_flags:
            runtime.engine_host_code_allowed = True  # it holds what later versions need
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            session.send("note", code="not-inspected", why="the engine does not load here")
            return
        inspector = loaded.create_engine_inspector()
        text = inspector.get_engine_information(session.trt.LayerInformationFormat.JSON)
    except (TypeError, RuntimeError) as error:
        session.send("note", code="not-inspected", why=f"its inspector fails ({error})")
        return
    session.send("information", text=text or "")


def _logger(trt: Any, send: Send) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                send("error", text=message)
            elif message.startswith("Layers:"):
                send("layers", text=message)

    return Logger()


def _monitor(trt: Any, send: Send) -> Any | None:
    """What the builder tells its progress to, from TensorRT 10 on."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            send("phase", name=name, steps=steps)

        def step_complete(self, name: str, step: int) -> bool:
            send("step", name=name, step=step)
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()
