"""Read the tensors inside an ONNX file, and give it others in their place.

A *tap* is a tensor whose name the plan knows: the result of a layer, or an activation behind its
Q/DQ. Export writes those names into the nodes (``quantkit.layer``, ``quantkit.tensor``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from quantkit.onnx.marks import TENSOR

LAYER = "quantkit.layer"
#: Ends the name of a tensor that is given to the file in place of its own.
GIVEN = "~given"
#: What may stand between a tensor's DQ and the layer that reads it.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Pad",
     "Slice", "Expand", "Split", "Gather", "Concat"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One tensor of a file.

    Attributes:
        name: the plan's, of the layer that makes it or of the activation.
        kind: the result of a layer, or an activation behind its Q/DQ.
        value: its name in the file.
    """

    name: str
    kind: Literal["layer", "activation"]
    value: str


class Taps:
    """The tensors of a file that the plan knows by name, in graph order.

    Attributes:
        taps: those of the main graph.
        model: the file; weights outside it are not loaded.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        self._constants = {t.name for t in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self.taps = tuple(self._found(graph))

    def _found(self, graph: GraphProto) -> Iterator[Tap]:
        seen: set[str] = set()
        for node in graph.node:
            layer, tensor = written(node, LAYER), written(node, TENSOR)
            if layer and f"layer {layer}" not in seen:
                seen.add(f"layer {layer}")
                yield Tap(name=layer, kind="layer", value=self._with_bias(node))
            if node.op_type != "DequantizeLinear" or node.input[0] in self._constants:
                continue
            if tensor and f"tensor {tensor}" not in seen:
                seen.add(f"tensor {tensor}")
                yield Tap(name=tensor, kind="activation", value=node.output[0])

    def _with_bias(self, node: NodeProto) -> str:
        """The result of a layer: behind the Add of its bias, where a MatMul has one."""
        result: str = node.output[0]
        readers = self._readers.get(result, [])
        if node.op_type != "MatMul" or len(readers) != 1 or readers[0].op_type != "Add":
            return result
        other = [name for name in readers[0].input if name != result]
        constant = len(other) == 1 and self.is_constant(other[0])
        return readers[0].output[0] if constant else result

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a weight or bias, stored as it is or in integers."""
        node = self.producers.get(name)
        while node is not None and node.op_type in {"DequantizeLinear", *_MOVES}:
            name = node.input[0]
            node = self.producers.get(name)
        return name in self._constants or (node is not None and node.op_type == "Constant")

    def reads(self, layer: str) -> bool:
        """Whether the file has a node for a layer."""
        return any(written(node, LAYER) == layer for node in self.model.graph.node)

    def read_by(self, layer: str, index: int) -> str | None:
        """The activation whose Q/DQ a layer's input comes from; ``None`` where it is from none."""
        for node in self.model.graph.node:
            if written(node, LAYER) != layer or index >= len(node.input):
                continue
            maker = self.producers.get(node.input[index])
            while maker is not None and maker.op_type in _MOVES:
                maker = self.producers.get(maker.input[0])
            if maker is None or maker.op_type != "DequantizeLinear":
                return None
            return written(maker, TENSOR) or None
        return None


def written(node: NodeProto, key: str) -> str:
    """What export wrote into a node under a key; empty where it wrote nothing."""
    return next((prop.value for prop in node.metadata_props if prop.key == key), "")


def tapped(model: ModelProto, values: Sequence[str]) -> ModelProto:
    """A copy whose outputs are the model's own, then those of ``values`` that are not among them.

    Example:
        >>> node = onnx.helper.make_node("Relu", ["x"], ["hidden"])
        >>> last = onnx.helper.make_node("Neg", ["hidden"], ["y"])
        >>> x, y = (onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "xy")
        >>> made = onnx.helper.make_model(onnx.helper.make_graph([node, last], "g", [x], [y]))
        >>> [output.name for output in tapped(made, ["hidden"]).graph.output]
        ['y', 'hidden']
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    have = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(values):
        if name not in have:
            copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return copy


def forced(model: ModelProto, values: Sequence[str]) -> ModelProto:
    """As `tapped`, and what reads one of ``values`` reads an input ``<name>~given`` in its place.

    So each step of the file runs on tensors that it is given, and puts out its own result: what it
    does wrong is seen there, and nowhere behind. They are given in float32, whatever they are.
    """
    copy = tapped(model, values)
    halves = _halves(model)
    new = {name: f"{name}{GIVEN}" for name in values}
    reread = {name: f"{given}~cast" if name in halves else given for name, given in new.items()}
    _reread(copy.graph, reread)
    for name, given in new.items():
        if name in {i.name for i in model.graph.input}:
            continue
        copy.graph.input.append(onnx.helper.make_tensor_value_info(given, TensorProto.FLOAT, None))
        if name in halves:
            cast = onnx.helper.make_node("Cast", [given], [reread[name]], to=halves[name])
            copy.graph.node.insert(0, cast)
    return copy


def _halves(model: ModelProto) -> dict[str, int]:
    """The types of tensors in 16 bits, by name, as far as types can be told."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return {
        name: kind
        for name, kind in types.items()
        if kind in {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    }


def _reread(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Let all nodes, those of subgraphs too, read other tensors."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in new:
                node.input[index] = new[name]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _reread(attribute.g, new)
