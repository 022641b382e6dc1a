"""When a layer is better left in float: each rule gives its reason, or ``None``.

Sources: NVIDIA's guide to explicit quantization (TensorRT developer guide, "Working with Quantized
Types"), the placement of Model-Optimizer's ONNX quantizer, and builds with TensorRT-RTX.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.recipe import PlacementChoice
from quantkit.spec import Scheme

#: Tensor cores multiply INT8 tiles of 16 columns and 16 rows; less is padded.
SMALLEST = 16
#: Beyond this sequence length an INT8 softmax output (steps of 1/127) loses small weights.
LONGEST_ATTENTION = 512
#: FP8 convolution kernels exist up to this many taps.
FP8_TAPS = 32

Rule = Callable[[Op, Graph, Scheme, PlacementChoice], str | None]


def reason_for_float(op: Op, graph: Graph, scheme: Scheme, choice: PlacementChoice) -> str | None:
    """Why this layer is not quantized under ``scheme``; ``None`` where it is."""
    reasons = (rule(op, graph, scheme, choice) for rule in _RULES)
    return next((reason for reason in reasons if reason is not None), None)


def is_attention(op: Op, graph: Graph) -> bool:
    """Whether a product of two activations is one of the two around a softmax."""
    if op.kind is not Kind.MATMUL:
        return False
    return _softmax_before(op, graph) or _softmax_after(op, graph)


def _without_numbers(op: Op, graph: Graph, _: Scheme, __: PlacementChoice) -> str | None:
    if len(op.inputs) < 2 or not all(graph.values[name].floating for name in op.inputs[:2]):
        return "its inputs are not floating point"
    if graph.values[op.inputs[0]].constant:
        return "its first input is constant, so it is no layer over an activation"
    return None


def _nothing_to_quantize(op: Op, graph: Graph, scheme: Scheme, _: PlacementChoice) -> str | None:
    if scheme.kind == "none":
        return "the recipe leaves it in float"
    if scheme.activations is None:
        if not graph.values[op.inputs[1]].constant:
            return "weight-only: both of its inputs are activations"
        if op.kind in {Kind.CONV, Kind.CONV_TRANSPOSE}:
            return "weight-only: engines dequantize in linear layers, not in convolutions"
    if op.kind in {Kind.CONV, Kind.CONV_TRANSPOSE} and not graph.values[op.inputs[1]].constant:
        return "its filter is an activation"
    return None


def _transposed(op: Op, _: Graph, __: Scheme, ___: PlacementChoice) -> str | None:
    if op.kind is Kind.CONV_TRANSPOSE:
        return "TensorRT runs transposed convolutions in float even between Q/DQ"
    return None


def _attention(op: Op, graph: Graph, _: Scheme, choice: PlacementChoice) -> str | None:
    if not is_attention(op, graph):
        return None
    if not choice.attention:
        return "the recipe leaves attention's products in float"
    length = max((graph.values[n].shape[-2] or 0 for n in op.inputs[:2]), default=0)
    if length > LONGEST_ATTENTION:
        return f"attention over {length} positions, beyond {LONGEST_ATTENTION}: softmax needs finer steps"
    return None


def _small_product(op: Op, graph: Graph, _: Scheme, choice: PlacementChoice) -> str | None:
    if op.kind not in {Kind.LINEAR, Kind.MATMUL} or is_attention(op, graph):
        return None
    shape = graph.values[op.inputs[1]].shape
    if len(shape) < 2:
        return "a product with a vector is bound by memory, not arithmetic"
    inner, columns = (shape[1], shape[0]) if op.kind is Kind.LINEAR else (shape[-2], shape[-1])
    if columns == 1:
        return "N = 1, a product with a vector: bound by memory, not arithmetic"
    if choice.small:
        return None
    for letter, extent in (("K", inner), ("N", columns)):
        if extent is not None and extent < SMALLEST:
            return f"{letter} = {extent}, below the {SMALLEST} of an INT8 tensor-core tile"
    return None


def _small_convolution(op: Op, graph: Graph, _: Scheme, choice: PlacementChoice) -> str | None:
    if op.kind is not Kind.CONV or choice.small:
        return None
    shape = graph.values[op.inputs[1]].shape
    channels_out, channels_in = shape[0] or 0, (shape[1] or 0) * op.groups
    if op.groups > 1 and op.groups == channels_in:
        if channels_out % 8 == 0 and max(op.kernel) >= 3:
            return None
        return f"depthwise with {channels_out} channels and kernel {_times(op.kernel)}: needs a multiple of 8 and 3 or more"
    if _is_stem(op, graph) and channels_out % 8 == 0 and len(set(op.kernel)) == 1:
        return None
    per_group = min(channels_in, channels_out) // op.groups
    if per_group < SMALLEST:
        grouped = " a group" if op.groups > 1 else ""
        return f"{per_group} channels{grouped}, below the {SMALLEST} of an INT8 tensor-core tile"
    return None


def _fp8(op: Op, graph: Graph, scheme: Scheme, _: PlacementChoice) -> str | None:
    specs = (scheme.weights, scheme.activations)
    if op.kind is not Kind.CONV or not any(s is not None and s.is_float for s in specs):
        return None
    if op.groups > 1:
        return "FP8 has no grouped or depthwise convolution"
    if math.prod(op.kernel) > FP8_TAPS:
        return f"FP8 convolutions have at most {FP8_TAPS} taps; this one has {math.prod(op.kernel)}"
    return None


_RULES: tuple[Rule, ...] = (
    _without_numbers,
    _nothing_to_quantize,
    _transposed,
    _attention,
    _small_product,
    _small_convolution,
    _fp8,
)


def _is_stem(op: Op, graph: Graph) -> bool:
    """Whether a convolution reads the model's input, at most moved or padded."""
    name = op.inputs[0]
    while (producer := graph.producer.get(name)) is not None:
        if producer.kind not in {Kind.MOVE, Kind.PAD, Kind.SLICE} or not producer.inputs:
            return False
        name = producer.inputs[0]
    return True


_BESIDE_SOFTMAX = frozenset({Kind.MOVE, Kind.ADD, Kind.MUL, Kind.POINTWISE, Kind.OTHER})


def _softmax_before(op: Op, graph: Graph) -> bool:
    """Its first input is a softmax's output, at most moved."""
    producer = graph.producer.get(op.inputs[0])
    while producer is not None and producer.kind is Kind.MOVE and producer.inputs:
        producer = graph.producer.get(producer.inputs[0])
    return producer is not None and producer.kind is Kind.SOFTMAX


def _softmax_after(op: Op, graph: Graph) -> bool:
    """Its output goes to a softmax through nothing but scale, mask and reshape."""
    name, seen = op.output, 0
    while seen < 8:
        readers = graph.consumers[name]
        if any(reader.kind is Kind.SOFTMAX for reader, _ in readers):
            return True
        if len(readers) != 1 or readers[0][0].kind not in _BESIDE_SOFTMAX:
            return False
        name, seen = readers[0][0].output, seen + 1
    return False


def _times(extents: tuple[int, ...]) -> str:
    return "×".join(map(str, extents))
