"""When a layer is better left in float: each rule gives its reason, or ``None``.

Sources: NVIDIA's guide to explicit quantization (TensorRT developer guide, "Working with Quantized
Types"), the placement of Model-Optimizer's ONNX quantizer, and builds with TensorRT-RTX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.recipe import PlacementChoice
from quantkit.spec import Scheme

#: Tensor cores multiply INT8 tiles of 16 columns and 16 rows; less is padded.
SMALLEST = 16
#: Beyond this sequence length an INT8 softmax output (steps of 1/127) loses small weights.
LONGEST_ATTENTION = 512
#: FP8 convolution kernels exist up to this many taps.
FP8_TAPS = 32

_CONVOLUTIONS = frozenset({Kind.CONV, Kind.CONV_TRANSPOSE})

Shape: TypeAlias = tuple[int | None, ...]
Rule: TypeAlias = Callable[[Op, Graph, Scheme, PlacementChoice], str | None]


def reason_for_float(
    op: Op, graph: Graph, scheme: Scheme, choice: PlacementChoice, *, forced: bool = False
) -> str | None:
    """Why this layer is not quantized under ``scheme``; ``None`` where it is.

    ``forced``: the user asks for it, so only what has no meaning is refused, not what does not pay.
    """
    rules = _MEANING if forced else (*_MEANING, *_GAIN)
    reasons = (rule(op, graph, scheme, choice) for rule in rules)
    return next((reason for reason in reasons if reason is not None), None)


def is_attention(op: Op, graph: Graph) -> bool:
    """Whether a product of two activations is one of the two around a softmax."""
    if op.kind is not Kind.MATMUL or any(graph.values[n].constant for n in op.inputs[:2]):
        return False
    return _softmax_before(op, graph) is not None or _softmax_after(op, graph)


def products_before(second: Op, graph: Graph) -> tuple[Op, ...]:
    """The products whose sums a softmax weighs ``second`` with; none if it is not attention's."""
    softmax = _softmax_before(second, graph)
    if softmax is None or graph.values[second.inputs[1]].constant:
        return ()
    found: dict[str, Op] = {}
    seen: set[str] = set()
    waiting = [softmax.inputs[0]] if softmax.inputs else []
    while waiting:
        name = waiting.pop()
        producer = graph.producer.get(name)
        if producer is None or name in seen:
            continue
        seen.add(name)
        if producer.kind is Kind.MATMUL:
            found[producer.name] = producer
        elif producer.kind in _BESIDE_SOFTMAX:
            waiting.extend(producer.inputs)
    return tuple(sorted(found.values(), key=lambda op: graph.order[op.name]))


def _without_numbers(op: Op, graph: Graph, _: Scheme, __: PlacementChoice) -> str | None:
    if len(op.inputs) < 2 or not all(graph.values[name].floating for name in op.inputs[:2]):
        return "its inputs are not floating point"
    if graph.values[op.inputs[0]].constant:
        return "its first input is constant, so it is no layer over an activation"
    return None


def _nothing_to_quantize(op: Op, graph: Graph, scheme: Scheme, _: PlacementChoice) -> str | None:
    if scheme.kind == "none":
        return "the recipe leaves it in float"
    if graph.values[op.inputs[1]].constant:
        return None
    if scheme.activations is None:
        return "weight-only: both of its inputs are activations"
    return "its filter is an activation" if op.kind in _CONVOLUTIONS else None


def _weight_only_convolution(op: Op, _: Graph, scheme: Scheme, __: PlacementChoice) -> str | None:
    if scheme.activations is None and op.kind in _CONVOLUTIONS:
        return "weight-only: engines dequantize in linear layers, not in convolutions"
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
    # The scores: what the first product makes, what the second one reads.
    first = _softmax_after(op, graph)
    shape = graph.values[op.output if first else op.inputs[0]].shape
    length = max((extent or 0 for extent in shape[-2:]), default=0)
    if length > LONGEST_ATTENTION:
        return (
            f"attention over {length} positions, beyond {LONGEST_ATTENTION}: "
            "softmax needs finer steps"
        )
    return None


def _small_product(op: Op, graph: Graph, scheme: Scheme, choice: PlacementChoice) -> str | None:
    if op.kind not in {Kind.LINEAR, Kind.MATMUL} or is_attention(op, graph):
        return None
    left, right = (graph.values[name].shape for name in op.inputs[:2])
    if len(right) < 2 or not left:
        return "a product with a vector is bound by memory, not arithmetic"
    inner, columns = right[-2:]
    if op.kind is Kind.LINEAR and op.weight_axis != 1:  # (N, K), as PyTorch has it
        inner, columns = columns, inner
    if columns == 1:
        return "N = 1, a product with a vector: bound by memory, not arithmetic"
    if choice.small:
        return None
    # Weights alone are quantized to save memory traffic, which is all that one row needs.
    if scheme.activations is not None and _rows(op, left, right) == 1:
        return "M = 1, a product with a vector: bound by memory, not arithmetic"
    for letter, extent in (("K", inner), ("N", columns)):
        if extent is not None and extent < SMALLEST:
            return f"{letter} = {extent}, below the {SMALLEST} of an INT8 tensor-core tile"
    return None


def _rows(op: Op, left: Shape, right: Shape) -> int | None:
    """M of a product: rows of one matrix of a batch, or all rows where the right one is shared."""
    rows = left[-2:-1] if op.kind is Kind.MATMUL and len(right) > 2 else left[:-1]
    return None if None in rows else math.prod(extent for extent in rows if extent is not None)


def _small_convolution(op: Op, graph: Graph, _: Scheme, choice: PlacementChoice) -> str | None:
    if op.kind is not Kind.CONV or choice.small:
        return None
    shape = graph.values[op.inputs[1]].shape
    channels_out, channels_in = shape[0] or 0, (shape[1] or 0) * op.groups
    if op.groups > 1 and op.groups == channels_in:
        if channels_out % 8 == 0 and max(op.kernel, default=1) >= 3:
            return None
        return (
            f"depthwise with {channels_out} channels and kernel {_times(op.kernel)}: "
            "needs a multiple of 8 and 3 or more"
        )
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


def _one_group(op: Op, graph: Graph, scheme: Scheme, _: PlacementChoice) -> str | None:
    weights = scheme.weights
    if weights is None or weights.group_size is None or op.kind not in {Kind.LINEAR, Kind.MATMUL}:
        return None
    shape = graph.values[op.inputs[1]].shape
    inner = shape[-1] if op.kind is Kind.LINEAR and op.weight_axis != 1 else shape[-2]
    if scheme.activations is not None or inner is None or inner > weights.group_size:
        return None
    return (
        f"K = {inner}, one group of {weights.group_size}: engines dequantize it before a float "
        "product"
    )


#: Without these a quantized layer would mean nothing.
_MEANING: tuple[Rule, ...] = (_without_numbers, _nothing_to_quantize)
#: Without these it would be no faster, or too coarse.
_GAIN: tuple[Rule, ...] = (
    _weight_only_convolution,
    _transposed,
    _attention,
    _small_product,
    _small_convolution,
    _fp8,
    _one_group,
)


#: What may stand before the first convolution: moves, padding, and normalizing the input.
_BEFORE_STEM = frozenset({Kind.MOVE, Kind.PAD, Kind.SLICE, Kind.ADD, Kind.MUL, Kind.POINTWISE})


def _is_stem(op: Op, graph: Graph) -> bool:
    """Whether a convolution reads the model's input, at most moved, padded or normalized."""
    name = op.inputs[0]
    while (producer := graph.producer.get(name)) is not None:
        variable = [n for n in producer.inputs if not graph.values[n].constant]
        if producer.kind not in _BEFORE_STEM or len(variable) != 1:
            return False
        name = variable[0]
    return True


_BESIDE_SOFTMAX = frozenset({Kind.MOVE, Kind.ADD, Kind.MUL, Kind.POINTWISE, Kind.OTHER})


def _softmax_before(op: Op, graph: Graph) -> Op | None:
    """The softmax whose output is its first input, at most moved."""
    producer = graph.producer.get(op.inputs[0])
    while producer is not None and producer.kind is Kind.MOVE and producer.inputs:
        producer = graph.producer.get(producer.inputs[0])
    return producer if producer is not None and producer.kind is Kind.SOFTMAX else None


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
    return "x".join(map(str, extents))
