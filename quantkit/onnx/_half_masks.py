"""Constants beyond the range of half that only stand for infinity: masks and open bounds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantkit.onnx._half_format import MASK, HalfFormat
from quantkit.onnx._half_graph import MOVES, constant, graphs, is_float
from quantkit.onnx.edit import add_constant

_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax", "ArgMax"})
#: On the way from a mask's constant to the softmax.
_ON_THE_WAY = MOVES | {"Add", "Cast", "ConstantOfShape", "Max", "Min", "Mul", "Sub", "Where"}
#: Inputs that bound or fill.
_BOUNDS = {"Clip": (1, 2), "Max": (0, 1), "Min": (0, 1), "Pad": (2,)}


def clamp(graph: ir.Graph, half: HalfFormat) -> int:
    """Bring masks and bounds into range, in place; returns how many constants.

    A mask becomes -10,000 (or 10,000), whose exponential is 0 as well; minus infinity itself
    stays, since half has it. A bound becomes the largest number of half. Any other constant beyond
    the range stays as it is: what reads it has to remain in float32.
    """
    clamped = 0
    for inner, _ in graphs(graph):
        for node in inner:
            for index, value in enumerate(node.inputs):
                array = constant(value) if value is not None and is_float(value) else None
                if value is None or array is None or not half.overflows(array):
                    continue
                limit = _limit(node, index, half)
                if limit is not None:
                    new = add_constant(
                        graph, f"{value.name}_in_range", _clamped(array, limit, half)
                    )
                    node.replace_input_with(index, new)
                    clamped += 1
            clamped += _clamp_fill(node, half)
    return clamped


def _limit(node: ir.Node, index: int, half: HalfFormat) -> float | None:
    """What an input that is out of range may become; ``None`` where it has to stay."""
    if _reaches_softmax(node) or (node.op_type == "Attention" and index == 3):
        return MASK
    return half.largest if index in _BOUNDS.get(node.op_type, ()) else None


def _clamped(array: np.ndarray, limit: float, half: HalfFormat) -> np.ndarray:
    beyond = np.isfinite(array) & ~np.isfinite(half.round(array))
    return np.where(beyond, np.sign(array) * np.float32(limit), array).astype(np.float32)


def _clamp_fill(node: ir.Node, half: HalfFormat) -> int:
    """The same for the value that a ConstantOfShape fills with."""
    value = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
    if value is None or not is_float(node.outputs[0]):
        return 0
    array = value.as_tensor().numpy()
    if not half.overflows(array) or not _reaches_softmax(node):
        return 0
    node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(_clamped(array, MASK, half)))
    return 1


def _reaches_softmax(node: ir.Node) -> bool:
    """Whether what a node computes is added to scores, or chosen into them."""
    seen = {node}
    waiting = [node]
    while waiting:
        found = waiting.pop()
        if found.op_type in _SOFTMAX:
            return True
        if found.op_type not in _ON_THE_WAY:
            continue
        for use in (use for out in found.outputs for use in out.uses()):
            if use.node.op_type == "Attention" and use.idx == 3:
                return True
            if use.node not in seen:
                seen.add(use.node)
                waiting.append(use.node)
    return False
