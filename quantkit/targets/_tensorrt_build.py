"""Builds one TensorRT engine: the same steps with Q/DQ and with a calibrator.

Runs in the process of the caller: a calibrator reads the caller's data and GPU memory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import TargetError
from quantkit.interfaces import Finding
from quantkit.targets._rtx_build import add_profile
from quantkit.targets._rtx_process import Outcome, Refusal
from quantkit.targets._shapes import Shapes
from quantkit.targets._tensorrt_calibration import Calibration, calibrated
from quantkit.tensorrt.sdk import Sdk


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build.

    Attributes:
        model: the ONNX file.
        quantized: it has Q/DQ.
        shapes: of dynamic inputs, the smallest, best and largest.
        calibration: for a float model; ``None`` for one that is built as it is.
    """

    model: Path
    quantized: bool
    shapes: Shapes
    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of it: the engine where there is one, how it went, and what to know of it."""

    engine: bytes | None
    outcome: Outcome
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class _Network:
    """A parsed network, and what must live as long as it does."""

    builder: Any
    network: Any
    parser: Any
    logger: Any
    refusals: tuple[Refusal, ...]


def parse(sdk: Sdk, model: Path) -> Outcome:
    """What TensorRT's parser says of a file.

    Raises:
        TargetError: TensorRT does not start: there is no GPU.
    """
    parsed = _parse(sdk, model, calibrated=False)
    return _outcome(parsed, built=not parsed.refusals)


def build_engine(sdk: Sdk, request: Request) -> Built:
    """Build an engine.

    Raises:
        TargetError: TensorRT does not start, or has no such calibrator.
        DataError: the calibration data does not fit, as raised where it was read.
    """
    started = time.perf_counter()
    calibration = request.calibration
    parsed = _parse(sdk, request.model, calibrated=calibration is not None)
    if parsed.refusals:
        return Built(engine=None, outcome=_outcome(parsed, built=False))
    config = parsed.builder.create_builder_config()
    if sdk.needs_int8_flag(calibrated=calibration is not None, quantized=request.quantized):
        config.set_flag(sdk.trt.BuilderFlag.INT8)
    problem = add_profile(parsed.builder, parsed.network, config, request.shapes)
    if problem is not None:
        refusal = Refusal(node="", operator="", function="profile", why=problem)
        return Built(engine=None, outcome=_outcome(parsed, built=False, refusal=refusal))
    notes: tuple[Finding, ...] = ()
    if calibration is None:
        engine = parsed.builder.build_serialized_network(parsed.network, config)
    else:
        engine, notes = calibrated(
            sdk, parsed.builder, parsed.network, config, calibration, request.shapes
        )
    seconds = time.perf_counter() - started
    return Built(
        engine=None if engine is None else bytes(engine),
        outcome=_outcome(parsed, built=engine is not None, seconds=seconds),
        findings=notes,
    )


def _parse(sdk: Sdk, model: Path, *, calibrated: bool) -> _Network:
    trt = sdk.trt
    logger = _logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # the binding of a null pointer
        told = f" ({logger.errors[0]})" if logger.errors else ""
        raise TargetError(
            f"{sdk.label} does not start{told}: it builds only on a machine with an NVIDIA GPU "
            "and its driver; TensorRT-RTX builds on any (--target tensorrt_rtx)"
        ) from error
    network = builder.create_network(sdk.network_flags(calibrated=calibrated))
    parser = trt.OnnxParser(network, logger)
    refusals: tuple[Refusal, ...] = ()
    # By its path: external data lies beside it.
    if not parser.parse_from_file(str(model.resolve())):
        refusals = tuple(_refusal(parser.get_error(index)) for index in range(parser.num_errors))
        refusals = refusals or (_EMPTY_REFUSAL,)
    return _Network(builder, network, parser, logger, refusals)


_EMPTY_REFUSAL = Refusal(
    node="", operator="", function="", why="The parser refuses it and gives no reason"
)


def _refusal(error: Any) -> Refusal:
    # Parsers before TensorRT 9 do not name the node.
    node, operator = getattr(error, "node_name", None), getattr(error, "node_operator", None)
    return Refusal(
        node=(node() or "") if node else "",
        operator=(operator() or "") if operator else "",
        function=error.func(),
        why=error.desc(),
    )


def _outcome(
    parsed: _Network, *, built: bool, seconds: float = 0.0, refusal: Refusal | None = None
) -> Outcome:
    return Outcome(
        built=built,
        refusals=parsed.refusals if refusal is None else (refusal,),
        errors=tuple(parsed.logger.errors),
        layers="",
        ended=None,
        stderr="",
        seconds=seconds,
    )


def _logger(trt: Any) -> Any:
    """A logger that keeps errors, for findings; TensorRT's own prints them."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known only here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
