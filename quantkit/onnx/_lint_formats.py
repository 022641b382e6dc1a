"""Lint rules about formats: what a runtime refuses or reads differently, node by node.

Each was seen with the parser and builder of TensorRT-RTX 1.7, whose ONNX parser TensorRT 10 and
11 share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from onnx import TensorProto

from quantkit.interfaces import Severity
from quantkit.onnx._lint_index import GraphIndex, Hit, Node, Rule, hit, is_external

_T: Final = TensorProto
#: What TensorRT stores; UINT8 and INT32 have rules of their own. Absent types (0) are not judged.
_TENSORRT_TYPES: Final = frozenset(
    (0, _T.INT8, _T.INT4, _T.FLOAT8E4M3FN, _T.FLOAT4E2M1, _T.UINT8, _T.INT32)
)
#: The opset in which QuantizeLinear learnt a type.
_FIRST_OPSET: Final[dict[int, int]] = {
    _T.INT8: 10,
    _T.UINT8: 10,
    _T.FLOAT8E4M3FN: 19,
    _T.FLOAT8E4M3FNUZ: 19,
    _T.FLOAT8E5M2: 19,
    _T.FLOAT8E5M2FNUZ: 19,
    _T.INT4: 21,
    _T.UINT4: 21,
    _T.INT16: 21,
    _T.UINT16: 21,
    _T.FLOAT4E2M1: 23,
}


def quantizers(index: GraphIndex) -> Iterator[Node]:
    """Every QuantizeLinear, and each DequantizeLinear whose grid no QuantizeLinear has given."""
    for node in index.of("QuantizeLinear", "DequantizeLinear"):
        made_by = index.producers.get(node.input(0))
        if node.op == "DequantizeLinear" and made_by is not None:
            # A pair that shares its scale and zero-point is reported once, where it begins.
            same = node.inputs[1:3] == made_by.inputs[1:3]
            if same and made_by.op == "QuantizeLinear":
                continue
        yield node


def type_name(data_type: int) -> str:
    """What ONNX calls a type, such as ``INT8``."""
    known = data_type in _T.DataType.values()
    return _T.DataType.Name(_T.DataType.ValueType(data_type)) if known else f"type {data_type}"


def _bad_scale(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        scale = index.value(node.input(1))
        if scale is None or (bad := ~(np.isfinite(scale) & (scale > 0))).sum() == 0:
            continue
        where = np.argwhere(bad)[0].tolist()
        value = scale[bad].flat[0]
        place = f" (first at index {where})" if scale.ndim else ""
        yield hit(
            node,
            f"{int(bad.sum())} of {scale.size} scales are zero, negative or not finite: "
            f"{value:g}{place}; a channel of dead weights does this.",
            "Give dead channels the scale of any small positive range, and calibrate again.",
        )


def _opset(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        data_type = index.quantized_type(node)
        scale = index.shape(node.input(1))
        needs = [(_FIRST_OPSET.get(data_type, 10), type_name(data_type))]
        needs.append((13 if scale and max(scale) > 1 else 10, "a scale per channel"))
        needs.append((21 if node.integer("block_size", 0) else 10, "a scale per block"))
        opset, what = max(needs, key=lambda need: need[0])
        if index.opset < opset:
            yield hit(
                node,
                f"{what} needs opset {opset}; the file declares {index.opset}.",
                f"Export with opset {opset} or newer.",
            )


def _unreadable(index: GraphIndex) -> Iterator[Hit]:
    reported: set[str] = set()
    for node in index.nodes:
        parameters = node.inputs[1:3] if node.op in ("QuantizeLinear", "DequantizeLinear") else ()
        for name in dict.fromkeys(filter(None, node.inputs)):
            tensor = index.tensors.get(name)
            if tensor is None or name in reported:
                continue
            lost = is_external(tensor) and not _data_exists(index, tensor)
            if lost or (name in parameters and index.is_unreadable(name)):
                reported.add(name)
                yield hit(
                    node,
                    f"The data of its input {name!r} is missing or malformed.",
                    "Keep the external data file beside the model and give lint the path.",
                )


def _data_exists(index: GraphIndex, tensor: TensorProto) -> bool:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if index.folder is None or not (location := entries.get("location")):
        return False
    file = index.folder / location
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    if not (file.is_file() and offset.isdigit() and length.isdigit()):
        return False
    return bool(file.stat().st_size >= int(offset) + int(length))


def _nonconstant(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        moving = [n for n in node.inputs[1:3] if n and not index.is_constant(n)]
        if moving:
            yield hit(
                node,
                f"{moving[0]!r} is computed at run time; TensorRT wants a constant scale and "
                "zero-point, and a builder may crash on this.",
                "Write x / s, Q/DQ with scale 1, the layer, then * s for a dynamic scale s.",
            )


def _nonzero_zero_point(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        zero_point = index.value(node.input(2)) if node.input(2) else None
        if zero_point is None or not zero_point.any() or _is_uint8_weight(index, node):
            continue
        yield hit(
            node,
            f"Its zero-point is {zero_point[zero_point != 0].flat[0]:g}; "
            "TensorRT takes symmetric grids only.",
            "Quantize symmetrically: int8, zero-point 0 (uint8 with 128 is that grid plus 128).",
        )


def _is_uint8_weight(index: GraphIndex, node: Node) -> bool:
    stored = node.op == "DequantizeLinear" and index.is_constant(node.input(0))
    return stored and index.elem_type(node.input(0)) == _T.UINT8


def _uint8_weights(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        made_by = index.producers.get(node.input(0))
        quantized_here = made_by is not None and made_by.op == "QuantizeLinear"
        if _is_uint8_weight(index, node) and not quantized_here:
            yield hit(node, "It reads uint8 weights.", "Store weights as int8 with zero-point 0.")


def _uint8_zero_point(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        data_type = index.elem_type(node.input(2)) if node.input(2) else 0
        values = index.value(node.input(2)) if data_type == _T.UINT8 else None
        if values is not None and not values.any() and not _is_uint8_weight(index, node):
            yield hit(
                node,
                "TensorRT reads its uint8 zero-point 0 as int8: values beyond 127 steps saturate.",
                "Calibrate a symmetric int8 grid and write an int8 zero-point 0.",
            )


def _missing_zero_point(index: GraphIndex) -> Iterator[Hit]:
    for node in index.of("QuantizeLinear"):
        if not node.input(2) and not node.integer("output_dtype", 0):
            yield hit(
                node,
                "It has no zero-point: ONNX reads that as uint8, TensorRT as int8.",
                "Write an explicit int8 zero-point 0.",
            )


def _unsupported_type(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        data_type = index.quantized_type(node)
        if data_type not in _TENSORRT_TYPES:
            yield hit(
                node,
                f"TensorRT has no {type_name(data_type)} grid.",
                "Use int8, int4 (weights only) or FP8 E4M3.",
            )


def _int32_bias(index: GraphIndex) -> Iterator[Hit]:
    for node in index.of("DequantizeLinear"):
        if index.quantized_type(node) == _T.INT32:
            yield hit(
                node,
                "It dequantizes int32, as for a bias.",
                "Keep the bias in float; TensorRT adds it in the convolution all the same.",
            )


def _int4_activation(index: GraphIndex) -> Iterator[Hit]:
    for node in quantizers(index):
        if index.quantized_type(node) == _T.INT4 and not index.is_constant(node.input(0)):
            yield hit(
                node,
                "It puts an activation in int4, which no kernel reads.",
                "Use int4 for weights only; quantize activations to int8.",
            )


_E = Severity.ERROR

FORMAT_RULES: tuple[Rule, ...] = (
    Rule(code="nonpositive-scale", severity=_E, check=_bad_scale),
    Rule(code="opset-too-old", severity=_E, check=_opset),
    Rule(code="unreadable-data", severity=_E, check=_unreadable),
    Rule(code="nonconstant-qparams", severity=_E, check=_nonconstant, only="tensorrt"),
    Rule(code="nonzero-zero-point", severity=_E, check=_nonzero_zero_point, only="tensorrt"),
    Rule(code="uint8-weights", severity=_E, check=_uint8_weights, only="tensorrt"),
    Rule(code="uint8-zero-point", severity=_E, check=_uint8_zero_point, only="tensorrt"),
    Rule(code="missing-zero-point", severity=_E, check=_missing_zero_point, only="tensorrt"),
    Rule(code="unsupported-type", severity=_E, check=_unsupported_type, only="tensorrt"),
    Rule(code="int32-bias", severity=_E, check=_int32_bias, only="tensorrt"),
    Rule(code="int4-activation", severity=_E, check=_int4_activation, only="tensorrt"),
)
