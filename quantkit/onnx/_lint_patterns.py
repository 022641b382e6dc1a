"""Lint rules about attention and about clips: patterns of several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from onnx import TensorProto

from quantkit.interfaces import Severity
from quantkit.onnx._lint_index import GraphIndex, Hit, Node, Rule, hit
from quantkit.onnx._lint_layers import dequantized_by

_T: Final = TensorProto
_PAIR: Final = ("QuantizeLinear", "DequantizeLinear")
_SHAPE: Final = ("Identity", "Cast", "Reshape", "Transpose", "Dropout", "Squeeze", "Unsqueeze")
_SCORES: Final = frozenset((*_PAIR, *_SHAPE, "Add", "Sub", "Mul", "Div", "Where"))
_WEIGHTS: Final = frozenset((*_PAIR, *_SHAPE, "Where", "Mul"))
_MASKS: Final = frozenset((*_PAIR, *_SHAPE, "Sub", "Mul", "Where", "Expand", "ConstantOfShape"))
#: A value this low is a mask's, and a range this wide leaves no step for the scores.
_MASK_VALUE: Final = 1e3
_DEPTH: Final = 12
_QMAX: Final[dict[int, int]] = {
    _T.INT8: 127,
    _T.UINT8: 255,
    _T.INT16: 32767,
    _T.UINT16: 65535,
    _T.FLOAT8E4M3FN: 448,
    _T.FLOAT8E5M2: 57344,
}
_QMIN: Final[dict[int, int]] = {_T.INT8: -128, _T.UINT8: 0, _T.INT16: -32768, _T.UINT16: 0}


def _partial_attention(index: GraphIndex) -> Iterator[Hit]:
    for softmax in index.of("Softmax"):
        scores = _scores(index, softmax.input(0))
        mixed = _mixing(index, softmax)
        if scores is None or mixed is None:
            continue
        parts = dict(
            zip(("Q", "K", "softmax output", "V"), scores.inputs + mixed.inputs, strict=False)
        )
        missing = [part for part, name in parts.items() if not dequantized_by(index, name)]
        if 0 < len(missing) < len(parts):
            yield hit(
                softmax,
                f"Attention is quantized in part (not: {', '.join(missing)}), "
                "so its fused kernel is lost.",
                "Quantize Q, K, V and the softmax output, or none of them.",
            )


def _scores(index: GraphIndex, name: str) -> Node | None:
    """The product of Q and K that a softmax is taken of."""
    ahead, seen = [name], set[str]()
    while ahead:
        name = ahead.pop(0)
        node = None if name in seen else index.producers.get(name)
        seen.add(name)
        if node is None:
            continue
        if node.op == "MatMul" and not any(map(index.is_constant, node.inputs)):
            return node
        if node.op in _SCORES:
            ahead += node.inputs
    return None


def _mixing(index: GraphIndex, softmax: Node) -> Node | None:
    """The product of a softmax and V."""
    ahead, seen = list(softmax.outputs), set[str]()
    while ahead:
        name = ahead.pop(0)
        readers = index.consumers.get(name, []) if name and name not in seen else []
        seen.add(name)
        for node in readers:
            if node.op == "MatMul" and not index.is_constant(node.input(1)):
                return node
            if node.op in _WEIGHTS:
                ahead += node.outputs
    return None


def _mask_sum(index: GraphIndex, softmax: Node) -> tuple[Node | None, Node | None]:
    """Where the mask meets the scores of a softmax, and what quantizes the masked scores."""
    name, quantizer = softmax.input(0), None
    for _ in range(_DEPTH):
        node = index.producers.get(name)
        if node is None:
            return None, None
        if node.op in ("Add", "Where", "Sub"):
            return node, quantizer
        if node.op == "QuantizeLinear":
            quantizer = node
        elif node.op not in _SHAPE and node.op != "DequantizeLinear":
            return None, None
        name = node.input(0)
    return None, None


def _is_mask(index: GraphIndex, name: str, depth: int) -> bool:
    """Whether a tensor holds values so low that they can only be a mask's."""
    if depth == 0 or not name:
        return False
    values = index.value(name) if index.is_constant(name) else None
    if values is not None:
        return bool(values.size and values.min() <= -_MASK_VALUE)
    node = index.producers.get(name)
    if node is None or node.op not in _MASKS:
        return False
    if node.op == "QuantizeLinear" and _range(index, node) >= _MASK_VALUE:
        return True
    data = node.inputs[:1] if node.op in (*_PAIR, "Reshape", "Expand") else node.inputs
    return any(_is_mask(index, operand, depth - 1) for operand in data)


def _range(index: GraphIndex, node: Node) -> float:
    """The largest magnitude that a QuantizeLinear can hold; 0 where its scale is not known."""
    scale = index.value(node.input(1))
    if scale is None or not scale.size:
        return 0.0
    return float(scale.max()) * _QMAX.get(index.quantized_type(node), 0)


def _quantized_mask(index: GraphIndex) -> Iterator[Hit]:
    for softmax in index.of("Softmax"):
        masked, quantizer = _mask_sum(index, softmax)
        if masked is None or quantizer is None:
            continue
        wide = _range(index, quantizer)
        if wide >= _MASK_VALUE or any(_is_mask(index, n, 5) for n in masked.inputs):
            yield hit(
                quantizer,
                f"It quantizes scores after the mask of {masked.where!r} (range {wide:.3g}): "
                "the mask takes the grid and the scores are lost.",
                "Remove Q/DQ between the mask and the softmax.",
            )


def _quantized_mask_operand(index: GraphIndex) -> Iterator[Hit]:
    for softmax in index.of("Softmax"):
        masked, _ = _mask_sum(index, softmax)
        for name in masked.inputs if masked else ():
            pair = dequantized_by(index, name)
            if pair is not None and _is_mask(index, name, 5):
                yield hit(
                    pair,
                    f"It quantizes the attention mask that {masked.where if masked else ''!r} "
                    "reads, which gains nothing and may clip it.",
                    "Leave the mask in float.",
                )


def _implied_clip(index: GraphIndex) -> Iterator[Hit]:
    for node in index.of("QuantizeLinear"):
        clip = index.producers.get(node.input(0))
        scale, zero = index.value(node.input(1)), index.value(node.input(2))
        kind = index.quantized_type(node)
        if clip is None or clip.op != "Clip" or scale is None or kind not in _QMIN:
            continue
        if scale.size != 1 or index.consumers.get(clip.outputs[0]) != [node]:
            continue
        step, middle = float(scale.max()), 0.0 if zero is None or not zero.size else zero.flat[0]
        low, high = (_QMIN[kind] - middle) * step, (_QMAX[kind] - middle) * step
        least, most = _bounds(index, clip)
        # Half a step beyond the grid rounds to its last value, so such a bound changes nothing.
        if least < low + step / 2 and most > high - step / 2:
            yield hit(
                clip,
                f"The grid behind it covers [{low:.4g}, {high:.4g}], so it clips nothing, and "
                "it keeps the layer before it from running in integers.",
                "Remove the Clip.",
            )


def _bounds(index: GraphIndex, clip: Node) -> tuple[float, float]:
    """The limits of a Clip; infinite where absent, and not a number where not known."""
    limits = []
    for position, (name, absent) in enumerate((("min", -float("inf")), ("max", float("inf")))):
        attribute = clip.attribute(name)
        limit = absent if attribute is None else float(attribute)
        if tensor := clip.input(position + 1):
            values = index.value(tensor)
            limit = float("nan") if values is None or not values.size else float(values.flat[0])
        limits.append(limit)
    return limits[0], limits[1]


_W, _ERROR = Severity.WARNING, Severity.ERROR

PATTERN_RULES: tuple[Rule, ...] = (
    Rule(code="partial-attention", severity=_W, check=_partial_attention, only="tensorrt"),
    Rule(code="quantized-mask", severity=_ERROR, check=_quantized_mask),
    Rule(code="quantized-mask-operand", severity=_W, check=_quantized_mask_operand),
    Rule(code="implied-clip", severity=_W, check=_implied_clip, only="onnxruntime"),
)
