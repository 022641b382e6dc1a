"""Faults to plant in a quantized ONNX file, for whatever is to find them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from quantkit.onnx.marks import TENSOR
from quantkit.onnx.taps import written


def pairs(proto: ModelProto, tensor: str, *operators: str) -> list[NodeProto]:
    """The Q and DQ of a tensor, those of some operators alone if they are named."""
    found = [n for n in proto.graph.node if written(n, TENSOR) == tensor]
    return [n for n in found if not operators or n.op_type in operators]


def constant(proto: ModelProto, node: NodeProto, index: int) -> np.ndarray:
    """A copy of a constant that a node reads."""
    old = next(t for t in proto.graph.initializer if t.name == node.input[index])
    return numpy_helper.to_array(old).copy()


def give(proto: ModelProto, node: NodeProto, index: int, value: np.ndarray) -> None:
    """Let a node alone read another constant."""
    name = f"{node.name}_planted_{index}"
    proto.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[index] = name


def move_zero_point(proto: ModelProto, tensor: str, codes: int = 3) -> None:
    """Let the DQ of a tensor subtract another zero-point than its Q adds."""
    (node,) = pairs(proto, tensor, "DequantizeLinear")
    zero = constant(proto, node, 2)
    give(proto, node, 2, (zero + codes).astype(zero.dtype))


def stretch(proto: ModelProto, tensor: str, factor: float) -> None:
    """Give the Q and the DQ of a tensor another scale."""
    for node in pairs(proto, tensor):
        give(proto, node, 1, constant(proto, node, 1) * np.float32(factor))


def swap_scales(proto: ModelProto, first: str, second: str) -> None:
    """Give each of two tensors the scale of the other."""
    one, other = pairs(proto, first), pairs(proto, second)
    scales = [constant(proto, nodes[0], 1) for nodes in (other, one)]
    for nodes, scale in zip((one, other), scales, strict=True):
        for node in nodes:
            give(proto, node, 1, scale)


def drop(proto: ModelProto, tensor: str) -> None:
    """Let all that reads a tensor's DQ read what its Q reads, and remove what is between."""
    nodes = pairs(proto, tensor)
    quantize = next(n for n in nodes if n.op_type == "QuantizeLinear")
    dequantize = next(n for n in nodes if n.op_type == "DequantizeLinear")
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == dequantize.output[0]:
                node.input[index] = quantize.input[0]
    dead = {dequantize.output[0]}
    for node in reversed(list(proto.graph.node)):  # in integers, a Clip may lie between
        if node is quantize or dead & set(node.output):
            dead.update(node.input[:1] if node is not quantize else ())
            proto.graph.node.remove(node)
