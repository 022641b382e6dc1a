"""Which nodes stay in float32 for the sake of numbers that half does not hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import constant, is_float, is_island, readers

#: A weight of which half keeps less than this, in dB, is one that underflows: 11 bits keep over
#: 70, the 8 of bfloat16 over 50.
FAITHFUL = 40.0
#: Data are a sample: another may be this many times as large.
HEADROOM = 2.0

_BEYOND = "its constant {0} holds {1:g}, beyond the {2:g} of {3}"
_UNDERFLOWS = "of its weight {0} {1} keeps {2:.0f} dB: it underflows"
_LARGE = "{0} reaches {1:,.0f} on the data; {2} ends at {3:,.0f}"
_SMALL = "{0} stays below {1:.1e} on the data, where {2} has no full mantissa"
SUMS = "its sums may reach {0:,.0f}; so framed, TensorRT runs it in {1} and sums in float32"

#: The inputs that are multiplied with: there a relative error counts.
_FACTORS = {
    "Conv": (1,), "ConvTranspose": (1,), "Div": (0, 1), "Gather": (0,), "Gemm": (0, 1),
    "LayerNormalization": (1,), "MatMul": (0, 1), "Mul": (0, 1), "PRelu": (1,),
    "RMSNormalization": (1,),
}  # fmt: skip
_GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def from_constants(graph: ir.Graph, half: HalfFormat) -> Iterator[tuple[ir.Node, str]]:
    """The nodes with a constant that half does not hold."""
    for node in graph.all_nodes():
        if node.op_type in _GRIDS:
            continue
        for index, value in enumerate(node.inputs):
            array = constant(value) if value is not None and is_float(value) else None
            if array is not None and value is not None:
                reason = _unfaithful(node, index, str(value.name), array, half)
                if reason is not None:
                    yield node, reason
        fill = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
        filled = None if fill is None else fill.as_tensor().numpy()
        if filled is not None and half.overflows(filled):
            yield node, _BEYOND.format("value", float(filled.max()), half.largest, half.name)


def _unfaithful(
    node: ir.Node, index: int, name: str, array: np.ndarray, half: HalfFormat
) -> str | None:
    if half.overflows(array):
        largest = float(np.abs(array[np.isfinite(array)]).max())
        return _BEYOND.format(name, largest, half.largest, half.name)
    kept = kept_db(array, half)
    if index in _FACTORS.get(node.op_type, ()) and kept < FAITHFUL:
        return _UNDERFLOWS.format(name, half.name, kept)
    return None


def kept_db(array: np.ndarray, half: HalfFormat) -> float:
    """How much of an array half keeps, as a ratio of signal to rounding in dB.

    Example:
        >>> from quantkit.onnx._half_format import FORMATS
        >>> weights = np.float32([0.1, -0.7, 0.3])
        >>> [round(kept_db(w, FORMATS["float16"])) for w in (weights, weights * 1e-6)]
        [72, 30]
    """
    finite = np.asarray(array, np.float64)[np.isfinite(array)]
    noise = np.square(half.round(finite).astype(np.float64) - finite).sum()
    signal = np.square(finite).sum()
    return 10.0 * math.log10(signal / noise) if noise and signal else math.inf


def from_peaks(
    graph: ir.Graph, peaks: Mapping[str, float], half: HalfFormat
) -> Iterator[tuple[ir.Node, str]]:
    """The nodes that make or read a tensor that left the range of half while data ran."""
    for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
        peak = peaks.get(str(value.name))
        if peak is None:
            continue
        if peak * HEADROOM > half.largest:
            reason = _LARGE.format(value.name, peak, half.name, half.largest)
        elif 0.0 < peak < half.smallest:
            reason = _SMALL.format(value.name, peak, half.name)
        else:
            continue
        maker = value.producer()
        yield from ((node, reason) for node in (*((maker,) if maker else ()), *readers(value)))


def from_sums(
    graph: ir.Graph, peaks: Mapping[str, float], half: HalfFormat
) -> Iterator[tuple[ir.Node, str]]:
    """The products whose partial sums may leave the range of half, though their results do not."""
    for node in graph:
        bound = _bound(node, peaks) if is_island(node) else None
        if bound is not None and bound > half.largest:
            yield node, SUMS.format(bound, half.name)


def _bound(node: ir.Node, peaks: Mapping[str, float]) -> float | None:
    """What no partial sum exceeds: the largest input times the largest sum of weights."""
    if node.op_type == "Einsum":
        return None
    left, right = node.inputs[:2]
    if left is None or right is None:
        return None
    first, second = peaks.get(str(left.name)), peaks.get(str(right.name))
    if first is not None and (weight := constant(right)) is not None:
        return first * _largest_sum(node, weight)
    if second is not None and (weight := constant(left)) is not None:
        return second * float(np.abs(weight).sum(axis=-1).max())
    shared = left.shape[-1] if left.shape is not None and len(left.shape) else None
    if first is None or second is None or not isinstance(shared, int):
        return None
    return first * second * shared


def _largest_sum(node: ir.Node, weight: np.ndarray) -> float:
    """The largest sum of magnitudes that one result is made of."""
    sizes = np.abs(weight.astype(np.float64))
    if node.op_type == "Conv":
        return float(sizes.reshape(len(sizes), -1).sum(axis=1).max())
    if node.op_type == "ConvTranspose":
        return float(sizes.reshape(*sizes.shape[:2], -1).sum(axis=(0, 2)).max())
    transposed = node.attributes.get("transB")
    axis = -1 if transposed is not None and transposed.as_int() else -2
    return float(sizes.sum(axis=axis if sizes.ndim > 1 else -1).max())
