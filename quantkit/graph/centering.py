"""Which tensors can be shifted by a constant, so that an asymmetric grid becomes a symmetric one.

``x ≈ (q - z) * s`` is ``x + z * s ≈ q * s``: the shifted tensor has a symmetric grid of the same
codes. What reads it must make up for the shift; the pass ``center`` writes how. This tells, of a
captured graph with or without its quantizers, where that costs no layer its INT8 kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import fx

from quantkit.graph.abstract import COMPUTE, Kind
from quantkit.graph.aten import Description, kind_of
from quantkit.graph.plan import Placement, QuantizedTensor
from quantkit.spec import QuantSpec, shiftable

#: What puts out the values of its first input, so that they stay shifted.
CARRYING = frozenset({Kind.MOVE, Kind.SLICE, Kind.UPSAMPLE, Kind.MAX_POOL, Kind.PAD, Kind.CONCAT})
#: Layers whose bias takes in what a shift of their input adds.
_ABSORBING = frozenset({Kind.CONV, Kind.LINEAR, Kind.MATMUL})


def symmetric(spec: QuantSpec) -> QuantSpec:
    """The grid of the shifted tensor."""
    return replace(spec, symmetric=True)


def bars_shift(reader: fx.Node, source: fx.Node) -> bool:
    """Whether a layer behind ``source``, at most what moves its values between, needs it as it is.

    That is a product of two activations (the shift of one multiplies the other), and a transposed
    convolution (its borders sum fewer weights). Everything else takes a constant into its bias, or
    has it added back in the kernel of its neighbour.
    """
    kind = kind_of(reader)
    if kind in COMPUTE:
        first = bool(reader.args) and reader.args[0] is source
        return kind not in _ABSORBING or not first or not is_constant(reader.args[1])
    if kind in CARRYING:
        return any(bars_shift(user, reader) for user in reader.users)
    return False


def made_by_attention(source: fx.Node) -> bool:
    """Whether a tensor is a product of two activations, at most moved.

    Its quantizer is part of TensorRT's fused attention, which a subtraction between would break
    (seen with TensorRT-RTX 1.7.1). It has no side that a shift would gain, either.
    """
    while kind_of(source) in {Kind.MOVE, Kind.SLICE}:
        source = source.all_input_nodes[0]
    return kind_of(source) is Kind.MATMUL and not any(map(is_constant, source.all_input_nodes))


def is_constant(node: object) -> bool:
    """Whether a node depends on parameters alone, through a quantizer or not."""
    if not isinstance(node, fx.Node):
        return False
    inputs = node.all_input_nodes
    return node.op == "get_attr" or (bool(inputs) and all(map(is_constant, inputs)))


def planned_to_shift(plan: Placement, description: Description) -> Placement:
    """The plan with symmetric grids for the tensors that cannot be shifted.

    Args:
        plan: for a recipe with the pass ``center``.
        description: of the captured graph, without quantizers yet.
    """

    def barred(tensor: QuantizedTensor) -> bool:
        source = description.node_of_value[tensor.tensor]
        readers = (description.node_of_op[edge.op] for edge in tensor.edges)
        return made_by_attention(source) or any(bars_shift(node, source) for node in readers)

    kept = {
        grid
        for grid, members in plan.grids.items()
        if shiftable(members[0].spec) and any(map(barred, members))
    }
    return with_symmetric(plan, kept)


def with_symmetric(plan: Placement, grids: Iterable[str]) -> Placement:
    """The plan with these grids symmetric."""
    chosen = frozenset(grids)
    tensors = (
        replace(tensor, spec=symmetric(tensor.spec)) if tensor.grid in chosen else tensor
        for tensor in plan.tensors
    )
    return replace(plan, tensors=tuple(tensors))
