"""The operators of an ONNX graph as steps of a split, and models of some of them alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from quantkit.onnx.tensor_types import subgraphs
from quantkit.partitioning import Step

_PAIR = ("QuantizeLinear", "DequantizeLinear")


def flow(graph: GraphProto, refused: Collection[str]) -> list[Step]:
    """The steps of a graph: its nodes without those that depend on stored values alone.

    Both nodes of a Q/DQ pair are refused if one is: between them flows an integer tensor that no
    other runtime would take for one on that grid. What reads a weight is refused with the Q/DQ of
    that weight.

    Args:
        graph: every node with a name of its own, sorted.
        refused: the names of the nodes that no engine can hold.
    """
    refused = {*refused, *partners(graph, refused)}
    constant = constants(graph, refused)
    spoiled: set[str] = set()  # weights that an engine cannot have
    steps: list[Step] = []
    for node in graph.node:
        read = tuple(dict.fromkeys(read_by(node)))
        made = tuple(name for name in node.output if name)
        supported = node.name not in refused and spoiled.isdisjoint(read)
        if not constant.issuperset(made):
            read = tuple(name for name in read if name not in constant)
            steps.append(Step(name=node.name, inputs=read, outputs=made, supported=supported))
        elif not supported:
            spoiled.update(made)
    return steps


def constants(graph: GraphProto, refused: Collection[str] = ()) -> set[str]:
    """The tensors that depend on what is stored alone.

    Not those of random operators, nor of nodes in ``refused``: what an engine cannot compute has
    to come in. Q/DQ of weights are constant all the same: no other runtime would serve an engine
    with them.
    """
    known = {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        moving = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        moving = moving or (node.name in refused and node.op_type not in _PAIR)
        if not moving and known.issuperset(read_by(node)):
            known.update(name for name in node.output if name)
    return known


def read_by(node: NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its subgraphs read from outside included."""
    yield from filter(None, node.input)
    for inner in subgraphs(node):
        own = {value.name for value in (*inner.input, *inner.initializer)}
        for child in inner.node:
            yield from (name for name in read_by(child) if name not in own)
            own.update(child.output)
        yield from (value.name for value in inner.output if value.name not in own)


def partners(graph: GraphProto, names: Collection[str]) -> set[str]:
    """The other nodes of the Q/DQ pairs of which one is named."""
    makers = {name: node for node in graph.node for name in node.output}
    pairs: dict[str, set[str]] = {}
    for node in graph.node:
        source = makers.get(node.input[0]) if node.input else None
        if node.op_type == _PAIR[1] and source is not None and source.op_type == _PAIR[0]:
            pairs.setdefault(source.name, {source.name}).add(node.name)
    whole = (pair for pair in pairs.values() if not pair.isdisjoint(names))
    return {name for pair in whole for name in pair} - set(names)


def in_order(graph: GraphProto) -> None:
    """Sort the nodes of a graph so that each comes after those whose tensors it reads, in place.

    Raises:
        ValueError: they wait for each other, or read what nothing makes.
    """
    known = {value.name for value in (*graph.input, *graph.initializer)}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    made = {name for node in graph.node for name in node.output}
    order = list(graph.node)
    waiting = [(node, set(read_by(node))) for node in order]
    for node, read in waiting:
        lost = read - known - made
        if lost:
            raise ValueError(f"node {_label(node)} reads {min(lost)}, which nothing makes")
    done: list[NodeProto] = []
    while waiting:
        later = []
        for node, read in waiting:
            if known.issuperset(read):
                done.append(node)
                known.update(node.output)
            else:
                later.append((node, read))
        if len(later) == len(waiting):
            raise ValueError(f"node {_label(later[0][0])} waits for its own output")
        waiting = later
    if any(node is not original for node, original in zip(done, order, strict=True)):
        nodes = [_copied(node) for node in done]
        graph.ClearField("node")
        graph.node.extend(nodes)


def name_inner(graph: GraphProto) -> dict[str, str]:
    """Give the nodes in bodies of If, Loop … names of their own, in place.

    Returns:
        For each of them the name of the node of ``graph`` that it is in.
    """
    taken = {node.name for node in graph.node}
    owners: dict[str, str] = {}
    for outer in graph.node:
        for node in _inside(outer):
            base = node.name or f"{node.op_type}_{next(iter(node.output), '')}"
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            node.name = name
            taken.add(name)
            owners[name] = outer.name
    return owners


def inner_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes in bodies of If, Loop …, at any depth."""
    for node in graph.node:
        yield from _inside(node)


def part(
    model: ModelProto, names: Sequence[str], values: Mapping[str, ValueInfoProto]
) -> ModelProto | None:
    """A model of some nodes, with the constants that they need.

    Args:
        model: the whole one, every node with a name of its own, sorted.
        names: of the nodes.
        values: the types of tensors.

    Returns:
        ``None`` where the type or rank of a tensor that comes in is not known.
    """
    if unknown_reads(model.graph, names, values):
        return None
    chosen, stored = set(names), constants(model.graph)
    wanted = [node for node in model.graph.node if node.name in chosen]
    made = {name for node in wanted for name in node.output}
    read = dict.fromkeys(name for node in wanted for name in read_by(node))
    reads = [name for name in read if name not in made and name not in stored]
    needed = {name for name in read if name in stored}
    beside: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if node.name not in chosen and needed.intersection(node.output):
            beside.append(node)
            needed.update(read_by(node))
    wanted_by_others = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.name not in chosen:
            wanted_by_others.update(read_by(node))
    piece = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = piece.graph
    graph.name = model.graph.name or "part"
    graph.node.extend([*reversed(beside), *wanted])
    graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    graph.input.extend(values[name] for name in reads)
    # A parser wants a type of each, and no outputs at all: those without one are left out.
    graph.output.extend(values[n] for n in sorted(made & wanted_by_others) if n in values)
    return piece


def unknown_reads(
    graph: GraphProto, names: Sequence[str], values: Mapping[str, ValueInfoProto]
) -> set[str]:
    """Those of the tensors that come into some nodes whose type or rank is not known."""
    chosen, stored = set(names), constants(graph)
    wanted = [node for node in graph.node if node.name in chosen]
    read = {name for node in wanted for name in read_by(node)} - stored
    read -= {name for node in wanted for name in node.output}
    return {
        name
        for name in read
        if name not in values or not values[name].type.tensor_type.HasField("shape")
    }


def joined(parts: Sequence[ModelProto]) -> ModelProto | None:
    """One model of several parts of another, each as alone as it was; ``None`` where bodies are.

    What one part makes and another reads is an input of that other, under a name of its own.
    """
    whole = ModelProto()
    whole.CopyFrom(parts[0])
    graph = whole.graph
    for field in ("node", "initializer", "input", "output"):
        graph.ClearField(field)
    nodes: set[str] = set()
    tensors: set[str] = set()
    for number, one in enumerate(parts):
        renamed = {value.name: f"{value.name} of part {number}" for value in one.graph.input}
        for value in one.graph.input:
            graph.input.add().CopyFrom(value)
            graph.input[-1].name = renamed[value.name]
        for node in one.graph.node:
            if any(True for _ in subgraphs(node)):
                return None  # it may read a tensor from outside by its name
            if node.name not in nodes:
                nodes.add(node.name)
                graph.node.add().CopyFrom(node)
                graph.node[-1].input[:] = [renamed.get(name, name) for name in node.input]
        graph.initializer.extend(t for t in one.graph.initializer if t.name not in tensors)
        tensors.update(tensor.name for tensor in one.graph.initializer)
        graph.output.extend(one.graph.output)
    return whole


#: The types of tensors that an engine can read and write (TensorRT-RTX 1.7.1, seen).
_TAKEN = frozenset(
    getattr(TensorProto, name)
    for name in (
        *("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT4E2M1"),
        *("INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL"),
    )
)


def of_other_types(
    model: ModelProto, values: Mapping[str, ValueInfoProto]
) -> dict[str, tuple[str, str]]:
    """The nodes that read what no engine has a type for: of each the tensor and its type."""
    strange: dict[str, str] = {}
    for value in (*model.graph.input, *values.values()):
        kind = value.type.WhichOneof("value") or "tensor_type"
        if kind != "tensor_type":
            strange[value.name] = kind.removesuffix("_type")
        elif (element := value.type.tensor_type.elem_type) and element not in _TAKEN:
            strange[value.name] = TensorProto.DataType.Name(element).lower()
    found = {}
    for node in model.graph.node:
        name = next((name for name in read_by(node) if name in strange), None)
        if name is not None:
            found[node.name] = (name, strange[name])
    return found


def _inside(node: NodeProto) -> Iterator[NodeProto]:
    for graph in subgraphs(node):
        for child in graph.node:
            yield child
            yield from _inside(child)


def _label(node: NodeProto) -> str:
    return node.name or f"{node.op_type} of {next(iter(node.output), 'nothing')}"


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
