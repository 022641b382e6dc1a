"""What to do about an operator that the parser of TensorRT-RTX does not take.

The parser's words were collected by asking it for the 1,884 models of ONNX's own tests of its
operators (TensorRT-RTX 1.7.1): it takes 1,013 of them, and none crashes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import onnx
from onnx import NodeProto

from quantkit.interfaces import Finding

_LEAVE: Final = "leave it to ONNX Runtime between two engines"
_DRAW: Final = "Draw the numbers before the engine, and give them as an input."
_TEXT: Final = "Prepare text before the model: an engine holds no strings."
_LOSS: Final = "Export the model without its loss: an engine does not train."
_PRODUCTS: Final = "Export attention as MatMul, Softmax and MatMul."
_QDQ: Final = "quantkit quantize does, from the float file."

#: What to do about an operator, whatever it was refused for.
_OPERATORS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit"), _TEXT),
    **dict.fromkeys(("RegexFullMatch", "TfIdfVectorizer", "LabelEncoder", "Tokenizer"), _TEXT),
    **dict.fromkeys(("Bernoulli", "Multinomial"), _DRAW),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _LOSS),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), f"Write the file in Q/DQ form: {_QDQ}"),
    **dict.fromkeys(
        ("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        f"Compute it before the model, write it by Mul, Div and Mod of int32, or {_LEAVE}.",
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        "Export the model for the one case that is deployed.",
    ),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap"),
        "Export with one tensor: stack what the sequence holds.",
    ),
    "AffineGrid": "Write the grid as MatMul of theta with the coordinates, which are constant.",
    "CenterCropPad": "Write it as Slice or Pad with the sizes that are used.",
    "Col2Im": "Write it as ConvTranspose with a weight of ones and zeros, as nn.Fold can be.",
    "Compress": f"Keep all rows and mask them by Where, or {_LEAVE}: its size depends on data.",
    "ConcatFromSequence": "Export with Concat of the tensors.",
    "ConvInteger": f"Write Conv between Q/DQ: {_QDQ}",
    "CumProd": "Write it as Exp of CumSum of Log where its input is positive, or write it out.",
    "DeformConv": f"Write it by GridSample and Conv, write a plugin, or {_LEAVE}.",
    "Det": f"Write it out for the one size that is used, or {_LEAVE}.",
    "DFT": "Write it as a MatMul with the matrix of the transform, which is constant.",
    "DynamicQuantizeLinear": "Calibrate static scales: quantkit quantize writes such Q/DQ.",
    "ImageDecoder": "Decode before the model, with NVIDIA DALI for instance.",
    "MatMulInteger": f"Write MatMul between Q/DQ: {_QDQ}",
    "MaxRoiPool": "Write it by GridSample over the boxes, and a pool.",
    "MaxUnpool": "Write it by ScatterElements into zeros, or replace it by Resize.",
    "MelWeightMatrix": "Fold it: its inputs are constants of the model.",
    "NonZero": "Take a fixed number by TopK over the mask, or leave it to ONNX Runtime between "
    "two engines: its size depends on data.",
    "RoiAlign": f"Write it by GridSample over the boxes, write a plugin, or {_LEAVE}.",
    "SequenceAt": "Export with one tensor, and take the part by Gather or Slice.",
    "SequenceLength": "Export with one tensor, whose size is known.",
    "SplitToSequence": "Export with Split, whose outputs are tensors.",
    "STFT": "Write it as a Conv with the windowed transform as its weight.",
    "SwiGLU": "Write it as the Sigmoid and the products that it stands for.",
    "Unique": f"Compute it before the engine, or {_LEAVE}: its size depends on data.",
}

#: What to do about what the parser says, whatever the operator.
_REASONS: Final[tuple[tuple[str, str], ...]] = (
    (
        r"one output|more? than 1 outputs|mode than 1 outputs",
        "Remove its outputs beyond the first, which are unused as a rule; else compute them apart.",
    ),
    (r"TensorRT Attention|Key and Value must|causal", _PRODUCTS),
    (
        r"training",
        "Export the model in evaluation mode: model.eval() before torch.onnx.export.",
    ),
    (
        r"build-time constant|must be an initializer|is not a constant|as an initializer",
        "Store that input in the file as an initializer: fold its constants, or export with fixed "
        "sizes.",
    ),
    (
        r"dilations other than 1",
        "Slice its input by the dilation, pool the slices, and interleave them; an average is a "
        "depthwise Conv with dilations as well.",
    ),
    (r"Antialiasing", "Set antialias to 0, or resize before the model."),
    (r"keep_aspect_ratio_policy", "Give Resize scales, or sizes with the policy stretch."),
    (r"transformation modes", "Export with align_corners, or with half_pixel, which is usual."),
    (r"`axes` attribute", "Give scales for every axis: 1 for those that stay."),
    (r"shape tensor and must have type", "Give it sizes in int64, or as constants."),
    (
        r"with reduction is not supported|reduction type",
        "Scatter without a reduction; a sum is a MatMul with a one-hot matrix as well.",
    ),
    (r"fmod attribute", "Set fmod to 1 for floats, or cast to int32 before it."),
    (
        r"UINT8|type UInt8|requires inputs with type|INT8\.$|data type for the Cast",
        "Cast to float or int32 before it: engines compute in few types.",
    ),
    (r"only supports int32, int64", "Cast its inputs to int64, and its output back."),
    (r"Only L1 and L2", "Write it as Pow, AveragePool and Pow."),
    (r"even number of elements", "Pad that tensor to an even number of elements."),
)

#: What a domain of operators is for, and so what to do about all of it.
_DOMAINS: Final[Mapping[str, str]] = {
    "ai.onnx.ml": f"Compute it before or after the engine, or {_LEAVE}: it is classic learning.",
    "ai.onnx.preview.training": _LOSS,
    "com.microsoft": "Take the file as it was before ONNX Runtime's optimizer fused it, or write "
    f"the operators that it stands for, or {_LEAVE}.",
    "org.pytorch.aten": "Export with dynamo=True and a newer opset: the exporter had no form for "
    "it.",
}


def told_better(finding: Finding, node: NodeProto) -> Finding:
    """A refusal of a node with what is known of its operator.

    Example:
        >>> from quantkit.interfaces import Severity
        >>> said = Finding(severity=Severity.ERROR, code="unsupported-operator", where="u",
        ...                why="The parser does not take Unique.", fix="Export it otherwise.")
        >>> told_better(said, onnx.helper.make_node("Unique", ["x"], ["y"], "u")).fix[:28]
        'Compute it before the engine'
    """
    if finding.code not in ("custom-operator", "unsupported-operator"):
        return finding  # it is a matter of grids, whose rule knows the way out
    if finding.code == "custom-operator" and is_standard(node):
        why = f"The parser has no importer for {node.op_type}, and no plugin of that name."
        finding = replace(finding, code="unsupported-operator", why=why)
    return replace(finding, fix=_way(finding.why, node))


def is_standard(node: NodeProto) -> bool:
    """Whether an operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx") and bool(onnx.defs.has(node.op_type))


def _way(why: str, node: NodeProto) -> str:
    for pattern, fix in _REASONS:
        if re.search(pattern, why):
            return fix
    if node.domain in ("", "ai.onnx") and node.op_type in _OPERATORS:
        return _OPERATORS[node.op_type]
    if node.domain in _DOMAINS:
        return _DOMAINS[node.domain]
    return (
        f"Replace {node.op_type} by standard operators that compute the same, write a plugin for "
        f"it, or {_LEAVE}."
    )
