"""A read-only index of an ONNX model: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx import numpy_helper as onnx_numpy

from quantkit.interfaces import Severity

_RANDOM: Final = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial")
)
#: Operators whose output holds the values of their first input, perhaps in another shape or type.
_SAME_VALUES: Final = frozenset(
    ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand")
)
#: Which input has the type of the output; it is the first of all other operators.
_TYPE_GIVEN_BY: Final = {"DequantizeLinear": 1, "Where": 1, "QuantizeLinear": 2}
_SUBGRAPHS: Final = (AttributeProto.GRAPH, AttributeProto.GRAPHS)

#: Where a linted file is to run.
LintTarget = Literal["tensorrt", "onnxruntime"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Node:
    """One node; its tensor names are made unique across the subgraphs of the model."""

    proto: NodeProto
    order: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def op(self) -> str:
        """The operator's type, without its domain."""
        return self.proto.op_type

    @property
    def where(self) -> str:
        """The node's name, or what stands for it where it has none."""
        return self.proto.name or next(filter(None, self.proto.output), f"{self.op}#{self.order}")

    def input(self, index: int) -> str:
        """The name of an input; empty where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def attribute(self, name: str) -> Any:
        """The value of an attribute; ``None`` where it is absent."""
        for attribute in self.proto.attribute:
            if attribute.name == name and attribute.type != AttributeProto.UNDEFINED:
                return helper.get_attribute_value(attribute)
        return None

    def integer(self, name: str, default: int) -> int:
        """The value of an integer attribute, or its default."""
        value = self.attribute(name)
        return value if isinstance(value, int) else default


@dataclass(frozen=True)
class Hit:
    """One place where a rule applies, before the rule's code and severity are put to it."""

    order: int
    where: str
    why: str
    fix: str


def hit(node: Node, why: str, fix: str) -> Hit:
    """A place at a node."""
    return Hit(node.order, node.where, why, fix)


class GraphIndex:
    """All nodes of a model in graph order, subgraphs included, and how tensors connect them.

    Args:
        model: the model; it is only read.
        folder: where its external data lies; read tensor by tensor, when a value is asked for.
    """

    def __init__(self, model: ModelProto, folder: Path | None) -> None:
        self.graph: Final = model.graph
        self.nodes: Final[list[Node]] = []
        self.producers: Final[dict[str, Node]] = {}
        self.consumers: Final[dict[str, list[Node]]] = {}
        self.tensors: Final[dict[str, TensorProto]] = {}
        self.functions: Final = frozenset((f.domain, f.name) for f in model.functions)
        self.opset: Final = max(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1
        )
        self._types: Final[dict[str, int]] = {}
        self._constant: Final[set[str]] = set()
        self.folder: Final = folder
        self._graphs = 0
        self._add(model.graph, ChainMap())

    def of(self, *ops: str) -> Iterator[Node]:
        """The nodes of these operator types, in graph order."""
        return (node for node in self.nodes if node.op in ops)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on no input of the model."""
        return name in self._constant

    def elem_type(self, name: str) -> int:
        """The ``TensorProto`` type of a tensor; 0 where the file does not tell."""
        passed: list[str] = []
        while len(passed) <= len(self.nodes):
            node = self.producers.get(name)
            found = self._types.get(name, 0)
            if name in self.tensors:
                found = self.tensors[name].data_type
            elif node is not None and not found:
                found = self._made_type(node)
            if found or node is None:
                self._types.update((seen, found) for seen in passed if found)
                return found
            passed.append(name)
            name = node.input(_TYPE_GIVEN_BY.get(node.op, 0))
        return 0

    def _made_type(self, node: Node) -> int:
        """The type that a node gives its output whatever its inputs are; 0 where it follows one."""
        if node.op == "QuantizeLinear" and not node.input(2):
            return self.quantized_type(node)
        if node.op == "Cast":
            return node.integer("to", 0)
        return _constant_tensor(node).data_type if node.op == "Constant" else 0

    def quantized_type(self, node: Node) -> int:
        """The storage type of a QuantizeLinear or DequantizeLinear, by the rules of ONNX."""
        if node.op == "DequantizeLinear" and (found := self.elem_type(node.input(0))):
            return found
        if node.input(2) and (found := self.elem_type(node.input(2))):
            return found
        return node.integer("output_dtype", 0) or TensorProto.UINT8

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant tensor that is stored, or is quantized from a stored one."""
        for _ in range(len(self.nodes) + 1):
            if name in self.tensors:
                return tuple(self.tensors[name].dims)
            node = self.producers.get(name)
            if node is not None and node.op == "Constant":
                return tuple(_constant_tensor(node).dims)
            if node is None or node.op not in ("QuantizeLinear", "DequantizeLinear", "Identity"):
                return None
            name = node.input(0)
        return None

    def value(self, name: str) -> Array | None:
        """The values of a small constant; ``None`` where it is not stored or not readable."""
        for _ in range(len(self.nodes) + 1):
            if name in self.tensors:
                return self._read(self.tensors[name])
            node = self.producers.get(name)
            if node is None or not self.is_constant(name):
                return None
            if node.op == "Constant":
                return self._read(_constant_tensor(node))
            if node.op not in _SAME_VALUES:
                return None
            name = node.input(0)
        return None

    def is_unreadable(self, name: str) -> bool:
        """Whether a tensor is stored but its data is missing or malformed."""
        return name in self.tensors and self._read(self.tensors[name]) is None

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The names of the model's outputs."""
        return frozenset(value.name for value in self.graph.output)

    def _read(self, tensor: TensorProto) -> Array | None:
        if is_external(tensor) and self.folder is None:
            return None
        copy = TensorProto()
        copy.CopyFrom(tensor)  # reading external data would fill the caller's tensor
        try:
            array = onnx_numpy.to_array(copy, base_dir=str(self.folder or "."))
            with np.errstate(invalid="ignore"):
                return np.asarray(array, dtype=np.float64)
        except (ValueError, TypeError, KeyError, OSError, onnx.checker.ValidationError):
            return None  # reported by the rule unreadable-data

    def _add(self, graph: GraphProto, scope: ChainMap[str, str]) -> None:
        suffix = f"@{self._graphs}" if self._graphs else ""
        self._graphs += 1
        made = [o for node in graph.node for o in node.output if o]
        local = [v.name for v in graph.input] + [t.name for t in graph.initializer] + made
        scope = scope.new_child({name: name + suffix for name in local})
        for info in (*graph.input, *graph.output, *graph.value_info):
            self._types[scope.get(info.name, info.name)] = info.type.tensor_type.elem_type
        for tensor in graph.initializer:
            name = scope[tensor.name]
            self.tensors[name] = tensor
            self._constant.add(name)
        for proto in graph.node:
            self._add_node(proto, scope)

    def _add_node(self, proto: NodeProto, scope: ChainMap[str, str]) -> None:
        inputs = tuple(scope.get(name, name) for name in proto.input)
        outputs = tuple(scope.get(name, name) for name in proto.output)
        node = Node(proto, len(self.nodes), inputs, outputs)
        self.nodes.append(node)
        self.producers.update((name, node) for name in outputs if name)
        for name in dict.fromkeys(filter(None, inputs)):
            self.consumers.setdefault(name, []).append(node)
        graphs = [a for a in proto.attribute if a.type in _SUBGRAPHS]
        if (
            not graphs
            and node.op not in _RANDOM
            and self._constant.issuperset(filter(None, inputs))
        ):
            self._constant.update(filter(None, outputs))
        for attribute in graphs:
            for graph in (attribute.g, *attribute.graphs):
                self._add(graph, scope)


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's data lies in a file of its own."""
    return tensor.data_location == TensorProto.EXTERNAL


def _constant_tensor(node: Node) -> TensorProto:
    """The tensor that a Constant node holds, whichever attribute holds it."""
    tensor = node.attribute("value")
    if isinstance(tensor, TensorProto):
        return tensor
    for name, kind in (("float", TensorProto.FLOAT), ("int", TensorProto.INT64)):
        for attribute in (f"value_{name}", f"value_{name}s"):
            value = node.attribute(attribute)
            if value is not None:
                array = np.asarray(value)
                return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())
    return TensorProto()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What is wrong with a file, how bad it is, and where that holds.

    Attributes:
        code: the stable name that findings carry.
        severity: how bad it is.
        check: yields every place where the rule applies.
        only: the one target that minds; ``None`` where every target does.
    """

    code: str
    severity: Severity
    check: Callable[[GraphIndex], Iterator[Hit]]
    only: LintTarget | None = None
