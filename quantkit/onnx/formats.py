"""Which formats an ONNX file multiplies in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onnx import ModelProto, TensorProto

from quantkit.hardware import Format
from quantkit.onnx._lint_formats import quantizers
from quantkit.onnx._lint_index import GraphIndex, Node
from quantkit.onnx.facts import read_proto

_T: Final = TensorProto
_GRIDS: Final[dict[int, Format]] = {
    _T.INT8: Format.INT8,
    _T.UINT8: Format.INT8,
    _T.INT4: Format.INT4,
    _T.UINT4: Format.INT4,
    _T.FLOAT8E4M3FN: Format.FP8,
    _T.FLOAT4E2M1: Format.NVFP4,
}
_FLOATS: Final[dict[int, Format]] = {_T.FLOAT16: Format.FP16, _T.BFLOAT16: Format.BF16}
#: Operators of TensorRT's own, in any domain: ONNX has none for these formats.
_OWN: Final[dict[str, Format]] = {
    "TRT_MXFP8DynamicQuantize": Format.MXFP8,
    "TRT_MXFP8DequantizeLinear": Format.MXFP8,
    "TRT_FP4DynamicQuantize": Format.NVFP4,
}
_PRODUCTS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def formats_of(model: Path) -> dict[Format, str]:
    """The formats that a file asks for, fp32 aside, each with the first node that does.

    Weights outside the file are not loaded.

    Raises:
        ModelFileError: there is no such file, or it is no ONNX file.
    """
    index = GraphIndex(read_proto(model), None)
    found: dict[Format, str] = {}
    for format, node in _uses(index):
        found.setdefault(format, node.where)
    return found


def uses_of(model: ModelProto) -> list[tuple[Format, str]]:
    """The formats that a model asks for, fp32 aside, with every node that does."""
    return [(format, node.where) for format, node in _uses(GraphIndex(model, None))]


def _uses(index: GraphIndex) -> Iterator[tuple[Format, Node]]:
    for node in quantizers(index):
        format = _GRIDS.get(index.quantized_type(node))
        if format is not None and not _is_of_scales(index, node):
            yield format, node
    for node in index.nodes:
        if node.op in _OWN:
            yield _OWN[node.op], node
    for node in index.of(*_PRODUCTS):
        format = _FLOATS.get(index.elem_type(node.input(0)))
        if format is not None:
            yield format, node


def _is_of_scales(index: GraphIndex, node: Node) -> bool:
    """Whether what it dequantizes are the scales of another grid, as those of nvfp4 are fp8."""
    made = node.outputs[0]
    readers = index.consumers.get(made, [])
    return bool(readers) and all(
        reader.op == "DequantizeLinear" and reader.input(1) == made for reader in readers
    )
