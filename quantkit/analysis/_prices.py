"""What a layer costs beside accuracy: bytes of weights, and operations by the bits they have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit import numerics
from quantkit.analysis._units import Unit
from quantkit.graph.aten import Description
from quantkit.graph.edit import constant
from quantkit.graph.plan import Placement
from quantkit.model import QuantizedModel
from quantkit.recipe import SchemeChoice
from quantkit.spec import STORAGE_BITS, QuantSpec

#: Bits of a number of a layer that is left in float.
FLOAT_BITS = 32
#: Bytes of a scale.
_SCALE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of a layer, or of the layers of a block.

    Attributes:
        weight_bytes: what the weights take in the bits that they use, with their scales.
        bit_operations: of one sample: multiply-accumulates times the bits of both factors.
    """

    weight_bytes: int
    bit_operations: int


def used_bits(spec: QuantSpec | None) -> int:
    """The bits of a number: those that are used, not those that it is stored in.

    Example:
        >>> used_bits(QuantSpec(bits=4)), used_bits(None)
        (4, 32)
    """
    return FLOAT_BITS if spec is None else spec.bits or STORAGE_BITS[spec.dtype]


def packed_bytes(shape: Sequence[int], spec: QuantSpec | None) -> int:
    """What a weight takes, with one float32 a scale.

    Example:
        >>> packed_bytes((16, 10), QuantSpec(bits=4, axis=0)), packed_bytes((16, 10), None)
        (144, 640)
    """
    scales = 0 if spec is None else _SCALE_BYTES * math.prod(numerics.scale_shape(shape, spec))
    return math.ceil(math.prod(shape) * used_bits(spec) / 8) + scales


def price_of(
    description: Description,
    unit: Unit,
    plan: Placement | None,
    schemes: Mapping[str, SchemeChoice],
    macs: Mapping[str, int],
) -> Price:
    """Of a unit that is quantized as a plan says, which obeys ``schemes``; ``None``: in float."""
    weight_bytes = operations = 0
    graph = description.graph
    for op in graph.ops:
        if op.name not in unit.layers:
            continue
        scheme = schemes.get(op.name)
        choice = None if scheme is None else scheme.activations
        activation = None if choice is None else choice.spec(1)
        value, second = graph.values[op.inputs[1]], activation
        if value.constant:
            tensor = None if plan is None else plan.tensor(op.name, 1)
            second = None if tensor is None else tensor.spec
            weight_bytes += packed_bytes([extent or 1 for extent in value.shape], second)
        operations += macs[op.name] * used_bits(activation) * used_bits(second)
    return Price(weight_bytes=weight_bytes, bit_operations=operations)


def unquantized(model: QuantizedModel, description: Description, units: Sequence[Unit]) -> int:
    """Bytes of parameters and buffers beside those that the weights of the units are made of."""
    names = {name for unit in units for name in unit.layers}
    waiting = [
        description.node_of_value[op.inputs[1]]
        for op in description.graph.ops
        if op.name in names and description.graph.values[op.inputs[1]].constant
    ]
    own: set[int] = set()
    while waiting:  # with batch-norm kept, a weight is computed from several parameters
        node = waiting.pop()
        own.add(id(constant(model.graph, node)))
        waiting.extend(node.all_input_nodes)
    rest = {id(x): x for _, x in model.float_state() if id(x) not in own}
    return sum(x.numel() * x.element_size() for x in rest.values())
