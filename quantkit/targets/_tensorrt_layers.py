"""Reads what TensorRT's engine inspector tells: the kernels of an engine, as JSON.

The form differs between versions, and is documented by examples:

- 8 and 10: a tensor has ``Format/Datatype``, a sentence such as ``Channel major INT8 format where
  channel % 16 == 0``, a word such as ``Half``, or that it is not told (dynamic shapes); a layer
  may have ``Weights``, of one ``Type``.
- 11: a tensor has ``Datatype`` and ``Format`` apart, and a layer its ``Constants``; ``I/O Tensors``
  stand where ``Bindings`` stood.
- In all, ``Metadata`` names the ONNX nodes, parted by control characters or by nothing; it may be
  missing, and then the layer's name is those of the nodes, joined by `` + ``.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html and
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quantkit.targets._engine_layers import FORMATS, Kernel, TensorInfo

#: Words for formats within a sentence; others (Int32, Bool …) are kept as they are, in lower case.
_FORMAT = re.compile(
    r"\b(?P<word>BFloat16|BF16|FP32|Float|FP16|Half|FP8|FP4|U?Int\d+|Bool)", re.IGNORECASE
)
_WORDS = {word.lower(): name for word, name in FORMATS.items()} | {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
#: A tactic such as ``sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_…``: the first pair
#: is what it reads and writes, the second what it multiplies and sums.
_TACTIC = re.compile(r"_(?:i8|s8|e4m3|bf16|f16|f32)+_(?P<operand>i8|s8|e4m3|bf16|f16|tf32|f32)")
_TACTICS = {"i8": "int8", "s8": "int8", "e4m3": "fp8", "bf16": "bfloat16", "f16": "float16"} | {
    "tf32": "float32",
    "f32": "float32",
}
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX Layer: |\s*$)", re.DOTALL)
_REGION = re.compile(r"\{ForeignNode\[(?P<first>.*?)\.\.\.(?P<last>.*?)\]\}")
_PROFILE = re.compile(r" \[profile \d+\]$")


def parse_information(text: str) -> tuple[Kernel, ...]:
    r"""The kernels of an engine, in execution order; none where the text is not understood.

    Example:
        >>> layer = (
        ...     '{"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x",'
        ...     ' "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major Int8 format"}],'
        ...     ' "Outputs": [], "Weights": {"Type": "Int8", "Count": 576}}'
        ... )
        >>> kernel, = parse_information('{"Layers": [' + layer + '], "Bindings": ["x"]}')
        >>> kernel.nodes, kernel.inputs[0].format, kernel.weights
        (('conv1', 'relu1'), 'int8', 'int8')
    """
    try:
        # Not strict: the separators within Metadata stand in the text as they are.
        told = json.loads(text, strict=False)
    except (json.JSONDecodeError, RecursionError):
        return ()
    layers = _listed(told.get("Layers")) if isinstance(told, Mapping) else []
    return tuple(_kernel(layer) for layer in layers if isinstance(layer, Mapping | str))


def _kernel(layer: Mapping[str, Any] | str) -> Kernel:
    """One layer; a verbosity below DETAILED leaves its name alone."""
    fields: Mapping[str, Any] = {"Name": layer} if isinstance(layer, str) else layer
    name, kind = str(fields.get("Name", "")), str(fields.get("LayerType", ""))
    weights = fields.get("Weights")
    tactic = _TACTIC.search(str(fields.get("TacticName", "")))
    return Kernel(
        name=name,
        layer_type=kind,
        inputs=_tensors(fields.get("Inputs")),
        constants=_tensors(fields.get("Constants")),
        outputs=_tensors(fields.get("Outputs")),
        nodes=_nodes(name, kind, str(fields.get("Metadata", ""))),
        weights=_format(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else "",
        operands=_TACTICS[tactic["operand"]] if tactic else "",
        opaque=kind == "Myelin" or "ForeignNode[" in name,
    )


def _nodes(name: str, kind: str, metadata: str) -> tuple[str, ...]:
    """The ONNX nodes of a layer, of which the metadata tells, else its name."""
    told = _METADATA.findall(metadata)
    if told:
        return tuple(dict.fromkeys(told))
    if kind in ("Reformat", "NoOp") or name.startswith("Reformatting CopyNode"):
        return ()  # it is named after what it serves
    name = _PROFILE.sub("", name)
    if region := _REGION.fullmatch(name):
        return region["first"], region["last"]
    return tuple(dict.fromkeys(part.strip() for part in name.split(" + ") if part.strip()))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _tensors(value: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            name=str(tensor.get("Name", "")),
            dimensions=tuple(map(str, _listed(tensor.get("Dimensions")))),
            format=_format(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")),
        )
        for tensor in _listed(value)
        if isinstance(tensor, Mapping)
    )


def _format(text: str) -> str:
    """The format that a word or a sentence names, in quantkit's words; empty where it does not."""
    match = _FORMAT.search(text)
    return "" if match is None else _WORDS.get(match["word"].lower(), match["word"].lower())
