"""The operators of an ONNX graph as steps of a split, and the bytes of the tensors between them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import ceil, prod

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from quantkit.partitioning import Step

#: Bytes of an element where NumPy has no such type.
_SMALL: dict[int, float] = {
    TensorProto.INT4: 0.5,
    TensorProto.UINT4: 0.5,
    TensorProto.FLOAT4E2M1: 0.5,
    TensorProto.BFLOAT16: 2,
    TensorProto.FLOAT8E4M3FN: 1,
    TensorProto.FLOAT8E5M2: 1,
}
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def flow(graph: GraphProto, refused: Collection[str]) -> list[Step]:
    """The steps of a graph: its nodes without those that depend on stored values alone.

    Both nodes of a Q/DQ pair are refused if one is: between them flows an integer tensor that no
    other runtime would take for one on that grid.

    Args:
        graph: every node with a name of its own, sorted.
        refused: the names of the nodes that no engine can hold.
    """
    constant = constants(graph)
    torn = set(refused) | partners(graph, refused)
    return [
        Step(
            name=node.name,
            inputs=tuple(dict.fromkeys(n for n in read_by(node) if n not in constant)),
            outputs=tuple(name for name in node.output if name),
            supported=node.name not in torn,
        )
        for node in graph.node
        if not constant.issuperset(name for name in node.output if name)
    ]


def constants(graph: GraphProto) -> set[str]:
    """The tensors that depend on what is stored alone; random ones are not of them."""
    known = {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        if not random and known.issuperset(read_by(node)):
            known.update(name for name in node.output if name)
    return known


def read_by(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its subgraphs read from outside included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for inner in _graphs(attribute):
            own = {value.name for value in (*inner.input, *inner.initializer)}
            for child in inner.node:
                yield from (name for name in read_by(child) if name not in own)
                own.update(child.output)
            yield from (value.name for value in inner.output if value.name not in own)


def resized(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """A copy with inputs of these sizes, and the types of all tensors that follow from them.

    Of what no rule is known for, a custom operator, the file's own word is taken.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    known: dict[str, int] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if dim.dim_param:
                known[dim.dim_param] = size
            dim.dim_value = size
    opaque = {n for node in graph.node if not onnx.defs.has(node.op_type) for n in node.output}
    told = [value for value in graph.value_info if value.name in opaque]
    for value in told:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    graph.ClearField("value_info")
    graph.value_info.extend(told)
    for value in graph.output:  # what they say of dynamic sizes is no longer so
        value.type.tensor_type.ClearField("shape")
    inferred: ModelProto = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    return inferred


def typed(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """The types of tensors, by name, where they are known."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: v for v in values if v.type.tensor_type.elem_type}


def sizes(values: Mapping[str, ValueInfoProto]) -> dict[str, int | None]:
    """The bytes of tensors; ``None`` where a dimension is not known."""
    return {name: _bytes(value) for name, value in values.items()}


def part(
    model: ModelProto,
    names: Collection[str],
    reads: Iterable[str],
    writes: Iterable[str],
    values: Mapping[str, ValueInfoProto],
) -> ModelProto | None:
    """A model of some nodes, with the constants that they need.

    Args:
        model: the whole one.
        names: of the nodes.
        reads: the tensors that come in.
        writes: the tensors that it puts out.
        values: the types of tensors.

    Returns:
        ``None`` where the type or rank of a tensor that comes in is not known.
    """
    reads, writes = list(reads), list(writes)
    if not all(n in values and values[n].type.tensor_type.HasField("shape") for n in reads):
        return None
    stored = constants(model.graph)
    wanted = [node for node in model.graph.node if node.name in names]
    needed = {name for node in wanted for name in read_by(node) if name in stored}
    beside: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and node.name not in names:
            beside.insert(0, node)
            needed.update(read_by(node))
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    for field in ("node", "initializer", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend([*beside, *wanted])
    graph.initializer.extend(weights)
    graph.input.extend(values[name] for name in reads)
    graph.output.extend(values.get(name, ValueInfoProto(name=name)) for name in writes)
    return copy


def _graphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def partners(graph: GraphProto, names: Collection[str]) -> set[str]:
    """The other nodes of the Q/DQ pairs of which one is named."""
    makers = {name: node for node in graph.node for name in node.output}
    found = set()
    for node in graph.node:
        source = makers.get(node.input[0]) if node.input else None
        if node.op_type == _PAIR[1] and source is not None and source.op_type == _PAIR[0]:
            if node.name in names:
                found.add(source.name)
            if source.name in names:
                found.add(node.name)
    return found


def _bytes(value: ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    kind = tensor.elem_type
    element = _SMALL.get(kind) or float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    return ceil(prod(int(dim.dim_value) for dim in dims) * element)
