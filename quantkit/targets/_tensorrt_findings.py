"""What is known of a file before TensorRT has built it, and what it does not tell afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from quantkit.errors import ModelFileError
from quantkit.interfaces import Finding, Severity
from quantkit.targets import _rtx_findings, _rtx_graph
from quantkit.targets._rtx_graph import GraphReader


def read(model: Path) -> GraphReader | Finding:
    """The graph of an ONNX file, or why there is none.

    Raises:
        ModelFileError: there is no such file.
    """
    if not model.is_file():
        raise ModelFileError(f"no ONNX file {model}; export one with quantkit.export_onnx")
    try:
        proto, _ = _rtx_graph.load(model)
    except DecodeError as error:
        return _rtx_findings.unreadable(model, str(error))
    return GraphReader(proto)


def has_qdq(reader: GraphReader) -> bool:
    """Whether the file says itself what is quantized."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in reader.nodes)


def route(reader: GraphReader, model: Path, *, calibrated: bool) -> Iterator[Finding]:
    """Whether the file is one for a calibrator, or one for none."""
    if has_qdq(reader) and calibrated:
        yield Finding(
            severity=Severity.ERROR,
            code="calibrator-ignored",
            where=model.name,
            why="It holds Q/DQ, and TensorRT ignores a calibrator then.",
            fix="Build it without a calibrator, or calibrate the float file it was made from.",
        )
    if not has_qdq(reader) and not calibrated:
        yield Finding(
            severity=Severity.WARNING,
            code="float-model",
            where=model.name,
            why="It holds no Q/DQ, and no calibrator is set: all of it runs in float.",
            fix="Quantize it with quantkit, or set a calibrator (before TensorRT 11).",
        )


def not_covered(model: Path) -> Finding:
    """That a build alone does not show what runs in INT8."""
    return Finding(
        severity=Severity.INFO,
        code="coverage-unknown",
        where=model.name,
        why="Which kernel each layer got is not read from engines of TensorRT.",
        fix="Check it with the target tensorrt_rtx, which tells how each layer runs.",
    )


def not_parsed(model: Path, why: str) -> Finding:
    """That the parser of TensorRT has not seen the file, and why."""
    return Finding(
        severity=Severity.WARNING,
        code="not-parsed",
        where=model.name,
        why=f"TensorRT has not seen it: {why}.",
        fix="Check it with the target tensorrt_rtx, which has the same parser and needs no GPU.",
    )
