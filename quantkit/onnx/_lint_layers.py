"""Lint rules about compute layers: which do not run in low precision though the file asks.

What commutes with DequantizeLinear was found by building each operator between DequantizeLinear
and Conv with TensorRT-RTX 1.7 for SM86 and reading the datatype of the convolution's kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from onnx import TensorProto

from quantkit.interfaces import Severity
from quantkit.onnx._lint_index import GraphIndex, Hit, Node, Rule, hit

_T: Final = TensorProto
COMPUTE: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: A layer behind one of these, behind DequantizeLinear, still runs in int8.
_COMMUTES: Final = frozenset(
    (
        *("MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Split", "Gather", "Expand", "Tile", "SpaceToDepth", "DepthToSpace"),
    )
)
_INT4_BLOCKS: Final = range(16, 129)


def commutes(index: GraphIndex, node: Node) -> bool:
    """Whether a dequantized tensor may pass through a node and still reach a layer as int8."""
    if node.op in ("Mul", "Div"):
        return index.is_constant(node.input(1))
    if node.op == "Pad":
        if (node.attribute("mode") or b"constant") != b"constant":
            return True
        fill = index.value(node.input(2)) if node.input(2) else None
        return fill is None or not fill.any()
    return node.op in _COMMUTES


def dequantized_by(index: GraphIndex, name: str) -> Node | None:
    """The DequantizeLinear that a tensor comes from, through what commutes; ``None`` if none."""
    ahead, seen, found = [name], set[str](), None
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        node = index.producers.get(name)
        if node is not None and node.op == "DequantizeLinear":
            found = found or node
        elif node is not None and node.op == "Concat":
            ahead += node.inputs  # all of them must be dequantized
        elif node is not None and commutes(index, node):
            ahead.append(node.input(0))
        else:
            return None
    return found


def operands(index: GraphIndex, layer: Node) -> tuple[str, str]:
    """The activation and the weight of a layer; the weight is empty where neither is constant."""
    first, second = layer.input(0), layer.input(1)
    if layer.op == "MatMul" and index.is_constant(first) and not index.is_constant(second):
        return second, first
    return first, second if layer.op != "MatMul" or index.is_constant(second) else ""


def _layers(index: GraphIndex, *ops: str) -> Iterator[tuple[Node, Node | None, Node | None]]:
    """Each layer that has a weight, with what dequantizes its activation and its weight."""
    for layer in index.of(*(ops or COMPUTE)):
        activation, weight = operands(index, layer)
        if weight:
            yield layer, dequantized_by(index, activation), dequantized_by(index, weight)


def _conv_transpose(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "ConvTranspose"):
        if activation or weight:
            yield hit(
                layer,
                "TensorRT runs ConvTranspose in float whatever Q/DQ says.",
                "Leave it unquantized, or replace it by Resize, Q/DQ and Conv.",
            )


def _weight_axis(index: GraphIndex) -> Iterator[Hit]:
    for layer, _, weight in _layers(index, "Conv", "Gemm", "MatMul"):
        shape = index.shape(weight.input(0)) if weight else None
        scale = index.shape(weight.input(1)) if weight else None
        if weight is None or not shape or not scale or len(scale) != 1 or scale[0] < 2:
            continue
        expected = _output_axis(index, layer, len(shape))
        axis = weight.integer("axis", 1) % len(shape)
        if expected is not None and axis != expected and not weight.integer("block_size", 0):
            yield hit(
                layer,
                f"Its weight has a scale for each slice of axis {axis}; the outputs lie along "
                f"axis {expected}, so it runs in float.",
                f"Quantize the weight per channel along axis {expected}.",
            )


def _output_axis(index: GraphIndex, layer: Node, rank: int) -> int | None:
    """The axis of the stored weight along which a layer's output channels lie."""
    _, name = operands(index, layer)
    if layer.op == "MatMul":
        axis = rank - 1 if name == layer.input(1) else rank - 2
    else:
        axis = 0 if layer.op == "Conv" or layer.integer("transB", 0) else 1
    for _ in range(rank + 1):
        node = index.producers.get(name)
        if node is None or node.op == "DequantizeLinear":
            return axis
        if node.op == "Transpose":
            order = node.attribute("perm") or list(range(rank))[::-1]
            if len(order) != rank or not 0 <= axis < rank:
                return None
            axis = int(order[axis])
        elif node.op != "Identity":
            return None
        name = node.input(0)
    return None


def _channel_activation(index: GraphIndex) -> Iterator[Hit]:
    for node in index.of("QuantizeLinear"):
        scale = index.shape(node.input(1))
        if index.is_constant(node.input(0)) or not scale or max(scale) < 2:
            continue
        yield hit(
            node,
            f"An activation has {max(scale)} scales; what reads it runs in float.",
            "Quantize activations per tensor.",
        )


def _float_weights(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "Conv", "Gemm", "MatMul"):
        if activation is not None and weight is None:
            yield hit(
                layer,
                "Its activation is quantized and its weight is not, so it runs in float.",
                "Quantize the weight as well, or remove Q/DQ before this layer.",
            )


def _weight_only_conv(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "Conv"):
        if activation is None and weight is not None and _blocker(index, layer) is None:
            yield hit(
                layer,
                "Only its weight is quantized; a convolution then runs in float.",
                "Quantize its activation as well (weight-only serves Gemm and MatMul).",
            )


def _op_before_conv(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "Conv"):
        if activation is None and weight is not None and (blocker := _blocker(index, layer)):
            yield hit(
                layer,
                f"{blocker.op} {blocker.where!r} stands between DequantizeLinear and this "
                "convolution, which therefore runs in float.",
                f"Put a second Q/DQ after the {blocker.op}.",
            )


def _blocker(index: GraphIndex, layer: Node) -> Node | None:
    """What keeps a dequantized tensor, a few operators back, from reaching a layer as int8."""
    name, first = layer.input(0), None
    for _ in range(6):
        node = index.producers.get(name)
        if node is None or node.op in COMPUTE:
            return None
        if node.op == "DequantizeLinear":
            return first
        if first is None and not commutes(index, node):
            first = node
        name = node.input(0)
    return None


def _int4_convolution(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "Conv"):
        if activation and weight and index.quantized_type(weight) in (_T.INT4, _T.UINT4):
            yield hit(
                layer,
                "No convolution reads int4 weights beside quantized activations: the build fails.",
                "Use int8 weights here; int4 serves the weights of Gemm and MatMul.",
            )


def _unfused_weights(index: GraphIndex) -> Iterator[Hit]:
    for layer, activation, weight in _layers(index, "Gemm", "MatMul"):
        if activation is not None or weight is None:
            continue
        stored, block = index.quantized_type(weight), weight.integer("block_size", 0)
        if stored == _T.INT4 and not block:
            form, fix = "int4 without blocks", "Use blocks of 16 to 128 along the inputs."
        elif stored == _T.INT8 and block:
            form, fix = "int8 in blocks", "Use one int8 scale per channel, or int4 in blocks."
        else:
            continue
        yield hit(
            layer, f"Its weight is {form}; it is dequantized in a kernel of its own to float.", fix
        )


def _int4_block(index: GraphIndex) -> Iterator[Hit]:
    for node in index.of("DequantizeLinear"):
        block = node.integer("block_size", 0)
        if block and block not in _INT4_BLOCKS and index.quantized_type(node) == _T.INT4:
            yield hit(
                node,
                f"Blocks of {block} lie outside 16 to 128, where int4 is known to be fused.",
                "Use blocks of 32, 64 or 128.",
            )


def _fp32_island(index: GraphIndex) -> Iterator[Hit]:
    scales = [index.elem_type(node.input(1)) for node in index.of("QuantizeLinear")]
    if not scales:
        return
    half = (_T.FLOAT16, _T.BFLOAT16)
    types = {
        layer.order: index.elem_type(operands(index, layer)[0]) for layer in index.of(*COMPUTE)
    }
    if not any(found in half for found in (*types.values(), *scales)):
        return
    for layer in index.of(*COMPUTE):
        if types[layer.order] == _T.FLOAT and not dequantized_by(index, layer.input(0)):
            yield hit(
                layer,
                "It is float32 in a network that is otherwise of 16 bits; TensorRT keeps it so.",
                "Convert this layer to the 16-bit type, or quantize it.",
            )


_W, _ERROR, _INFO = Severity.WARNING, Severity.ERROR, Severity.INFO

LAYER_RULES: tuple[Rule, ...] = (
    Rule(code="conv-transpose", severity=_W, check=_conv_transpose, only="tensorrt"),
    Rule(code="weight-scale-axis", severity=_W, check=_weight_axis),
    Rule(code="per-channel-activation", severity=_W, check=_channel_activation),
    Rule(code="float-weights", severity=_W, check=_float_weights),
    Rule(code="weight-only-conv", severity=_W, check=_weight_only_conv),
    Rule(code="op-before-conv", severity=_W, check=_op_before_conv),
    Rule(code="int4-convolution", severity=_ERROR, check=_int4_convolution, only="tensorrt"),
    Rule(code="unfused-weights", severity=_W, check=_unfused_weights, only="tensorrt"),
    Rule(code="int4-block-size", severity=_INFO, check=_int4_block, only="tensorrt"),
    Rule(code="fp32-island", severity=_W, check=_fp32_island, only="tensorrt"),
)
