"""Describe an ONNX graph as the abstract graph that the rules read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op, Value
from quantkit.graph.naming import Namer
from quantkit.graph.plan import Edge
from quantkit.onnx.clusters import Cluster, clusters_of
from quantkit.onnx.kinds import attribute, kind_of, pads_space, rank, tensor_inputs
from quantkit.onnx.origins import origin_of
from quantkit.onnx.plain import attention_left_whole

_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)

#: A node and which of its inputs.
Use = tuple[ir.Node, int]


@dataclass
class OnnxDescription:
    """An abstract graph and where each of its parts stands in the ONNX graph.

    Attributes:
        graph: what the rules read; its values have the file's names of tensors.
        node_of_op: the node that carries an operator's name.
        uses: the inputs of nodes that an edge stands for.
        value_of: each tensor that a quantizer may stand behind.
        notes: why an operator that the rules do not know stays in float.
    """

    graph: Graph
    node_of_op: dict[str, ir.Node] = field(default_factory=dict)
    uses: dict[Edge, tuple[Use, ...]] = field(default_factory=dict)
    value_of: dict[str, ir.Value] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def bias(self, op: str) -> tuple[Use, ir.Value] | None:
        """Where a layer reads a constant bias, and the bias."""
        for use in self.uses.get(Edge(op, 2), ()):
            value = use[0].inputs[use[1]]
            if value is not None and value.const_value is not None:
                return use, value
        return None


def describe_onnx(graph: ir.Graph) -> OnnxDescription:
    """The abstract graph of a model that ``read_onnx`` returned."""
    return _Describer(graph).describe()


class _Describer:
    def __init__(self, graph: ir.Graph) -> None:
        self.source = graph
        self.namer = Namer()
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.result = OnnxDescription(Graph((), {}))
        #: What follows from shapes alone: numbers that say how, which PyTorch has no tensors for.
        self.counted: set[ir.Value] = set()

    def describe(self) -> OnnxDescription:
        for value in (*self.source.inputs, *self.source.initializers.values()):
            self._add_value(value, constant=value.const_value is not None)
        clusters = clusters_of(self.source)
        for node in self.source:
            cluster = clusters.get(node)
            if cluster is not None and cluster.last is not node:
                continue
            if cluster is not None:
                self._add_op(cluster.main, cluster.kind, cluster.inputs, node.outputs[:1], cluster)
            elif not self._counts(node):
                kind = kind_of(node)
                inputs = tuple(((node, index),) for index in tensor_inputs(node, kind))
                self._add_op(node, kind, (*inputs, *_captured(node)), node.outputs)
        outputs = tuple(str(v.name) for v in self.source.outputs if v.name in self.values)
        self.result.graph = Graph(tuple(self.ops), self.values, outputs)
        return self.result

    def _add_value(self, value: ir.Value, *, constant: bool) -> str:
        name = self.namer.unique(str(value.name))
        self.values[name] = Value(
            name=name, shape=_shape(value), constant=constant, floating=value.dtype in _FLOATS
        )
        self.result.value_of[name] = value
        return name

    def _counts(self, node: ir.Node) -> bool:
        """Whether a node computes shapes: integers that depend on no tensor's values."""
        inputs = [v for v in node.inputs if v is not None and v.const_value is None]
        numbers = node.op_type in {"Shape", "Size"} or all(v in self.counted for v in inputs)
        if not numbers or any(v.dtype in _FLOATS for v in node.outputs) or any(_captured(node)):
            return False
        self.counted.update(node.outputs)
        return True

    def _add_op(
        self,
        node: ir.Node,
        kind: Kind,
        inputs: tuple[tuple[Use, ...], ...],
        outputs: Sequence[ir.Value],
        cluster: Cluster | None = None,
    ) -> None:
        origin = origin_of(node, kind)
        if cluster is not None and origin.path is None and kind in COMPUTE:
            origin = origin_of(cluster.last, kind)
        path = origin.path or ""
        own = origin.operator if origin.path is not None else str(node.name)
        name = self.namer.op(path, own, leaf=origin.leaf)
        read = [uses for uses in inputs if _read(uses) not in self.counted]
        names = tuple(str(getattr(_read(uses), "name", "")) for uses in read)
        for index, uses in enumerate(read):
            self.result.uses[Edge(name, index)] = uses
        self.result.node_of_op[name] = node
        if node.op_type == "Attention" and (why := attention_left_whole(node)) is not None:
            self.result.notes[name] = why
        constant = bool(names) and all(self.values[n].constant for n in names)
        used = [o for o in outputs if o.uses() or o.is_graph_output()] or list(outputs[:1])
        if len(used) == 1 and node.op_type != "Split":
            made = self._add_value(used[0], constant=constant)
            self.ops.append(self._op(node, name, kind, names, made, cluster, path))
            return
        # As a captured graph has it: a list, and operators that take its parts.
        whole = self.namer.unique(f"{name}/outputs")
        self.values[whole] = Value(name=whole, constant=constant)
        self.ops.append(self._op(node, name, kind, names, whole, cluster, path))
        for output in used:
            part = self.namer.op(path, "getitem", leaf=False)
            made = self._add_value(output, constant=constant)
            self.ops.append(
                Op(name=part, kind=Kind.SLICE, inputs=(whole,), output=made, module=path)
            )

    def _op(
        self,
        node: ir.Node,
        name: str,
        kind: Kind,
        inputs: tuple[str, ...],
        output: str,
        cluster: Cluster | None,
        module: str,
    ) -> Op:
        axis: int | None = None if cluster is None else cluster.weight_axis
        kernel: tuple[int, ...] = ()
        groups = 1
        if kind in {Kind.CONV, Kind.CONV_TRANSPOSE}:
            groups = int(attribute(node, "group", 1))
            shape = _shape(node.inputs[1]) if node.inputs[1] is not None else ()
            kernel = tuple(extent for extent in shape[2:] if extent is not None)
            axis = 0 if kind is Kind.CONV else 1
        elif kind is Kind.LINEAR and axis is None:
            axis = 0 if attribute(node, "transB", 0) else 1
        elif kind is Kind.MATMUL:
            axis = (rank(node.inputs[1]) or 0) - 1
        return Op(
            name=name, kind=kind, inputs=inputs, output=output, module=module,
            operator=node.op_type, groups=groups, kernel=kernel, weight_axis=axis,
            spatial=kind is Kind.PAD and pads_space(node),
        )  # fmt: skip


def _read(uses: tuple[Use, ...]) -> ir.Value | None:
    node, index = uses[0]
    return node.inputs[index]


def _captured(node: ir.Node) -> tuple[tuple[Use, ...], ...]:
    """What the branches or the body of a node read from outside."""
    found: dict[ir.Value, list[Use]] = {}
    for graph in _inner_graphs(node):
        own = {*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)}
        for inner in graph:
            for index, value in enumerate(inner.inputs):
                if value is not None and value not in own and value.graph is not inner.graph:
                    found.setdefault(value, []).append((inner, index))
            for uses in _captured(inner):
                value = _read(uses)
                if value is not None and value not in own:
                    found.setdefault(value, []).extend(uses)
    return tuple(tuple(uses) for uses in found.values())


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for item in node.attributes.values():
        if item.type == ir.AttributeType.GRAPH:
            yield item.as_graph()
        elif item.type == ir.AttributeType.GRAPHS:
            yield from item.as_graphs()


def _shape(value: ir.Value | None) -> tuple[int | None, ...]:
    if value is None or value.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)
