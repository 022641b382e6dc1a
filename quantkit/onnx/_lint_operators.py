"""Lint rules about a whole file: operators that a runtime lacks, shapes, what the GPU must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx
from onnx import TensorProto

from quantkit.interfaces import Severity
from quantkit.onnx._lint_formats import quantizers, type_name
from quantkit.onnx._lint_index import GraphIndex, Hit, Rule, hit

_T: Final = TensorProto
_HARDWARE: Final[dict[int, str]] = {
    _T.FLOAT8E4M3FN: "GPUs of SM89 (Ada) or newer",
    _T.FLOAT4E2M1: "GPUs of the Blackwell generation (SM100, SM120)",
    _T.INT4: "GPUs newer than SM75 (Turing)",
}
_INTEGER_OPERATORS: Final = frozenset(
    (
        *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "ConvIntegerToFloat"),
        *("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QAttention", "QGemm"),
        *("QMoE", "QEmbedLayerNormalization", "QOrderedMatMul"),
    )
)


def _hardware(index: GraphIndex) -> Iterator[Hit]:
    seen: set[int] = set()
    for node in quantizers(index):
        data_type = index.quantized_type(node)
        if data_type in _HARDWARE and data_type not in seen:
            seen.add(data_type)
            yield hit(
                node,
                f"{type_name(data_type)} runs on {_HARDWARE[data_type]} only.",
                "Use int8 where older GPUs must run the file.",
            )


def _integer_operator(index: GraphIndex) -> Iterator[Hit]:
    for node in index.nodes:
        if node.op.startswith("QLinear") or node.op in _INTEGER_OPERATORS:
            yield hit(
                node,
                f"{node.op} is of the QOperator form, which TensorRT cannot import.",
                "Write the file in Q/DQ form (quantize_static with quant_format=QDQ).",
            )


def _dynamic_operator(index: GraphIndex) -> Iterator[Hit]:
    for node in index.nodes:
        if node.op.startswith("DynamicQuantize"):
            yield hit(
                node,
                f"{node.op} computes scales at run time, which TensorRT cannot import.",
                "Calibrate static scales, or write x / s, Q/DQ with scale 1, the layer, then * s.",
            )


def _custom_operator(index: GraphIndex) -> Iterator[Hit]:
    for node in index.nodes:
        op, domain = node.op, node.proto.domain
        # TensorRT's parser looks operators up by type, whatever their domain.
        known = onnx.defs.has(op) or op.startswith(("TRT_", "QLinear", "DynamicQuantize"))
        if known or op in _INTEGER_OPERATORS or (domain, op) in index.functions:
            continue
        yield hit(
            node,
            f"{domain or 'ai.onnx'}::{op} is no ONNX operator; TensorRT needs a plugin for it.",
            "Replace it by standard operators, leave it to ONNX Runtime between two engines, or "
            "write a plugin and load it before parsing.",
        )


def _dynamic_shape(index: GraphIndex) -> Iterator[Hit]:
    for value in index.graph.input:
        dims = value.type.tensor_type.shape.dim
        free = [d.dim_param or "?" for d in dims if not d.HasField("dim_value")]
        if free and value.name not in index.tensors:
            yield Hit(
                -1,
                value.name,
                f"Dynamic: {', '.join(free)}; TensorRT builds only with a profile.",
                "Give the build an optimization profile: least, usual and largest shape.",
            )


def _int8_activations(index: GraphIndex) -> Iterator[Hit]:
    slow = [
        node
        for node in index.of("QuantizeLinear")
        if index.quantized_type(node) == _T.INT8 and not index.is_constant(node.input(0))
    ]
    if slow:
        yield hit(
            slow[0],
            f"{len(slow)} activations are int8; ONNX Runtime on x86 runs uint8 about twice as "
            "fast.",
            "Export in the onnxruntime form: uint8 with zero-point 128 is the same grid.",
        )


_E, _I = Severity.ERROR, Severity.INFO

OPERATOR_RULES: tuple[Rule, ...] = (
    Rule(code="qoperator-form", severity=_E, check=_integer_operator, only="tensorrt"),
    Rule(code="dynamic-quantization", severity=_E, check=_dynamic_operator, only="tensorrt"),
    Rule(code="custom-operator", severity=_E, check=_custom_operator, only="tensorrt"),
    Rule(code="hardware-format", severity=_I, check=_hardware, only="tensorrt"),
    Rule(code="dynamic-shape", severity=_I, check=_dynamic_shape, only="tensorrt"),
    Rule(code="int8-activations", severity=_I, check=_int8_activations, only="onnxruntime"),
)
