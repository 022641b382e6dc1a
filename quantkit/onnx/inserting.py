"""Put marks at a plan's edges and layers into an ONNX graph, for ``lower`` to write Q/DQ there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from quantkit.graph.abstract import COMPUTE
from quantkit.graph.plan import Edge, QuantizedTensor
from quantkit.onnx.edit import add_constant
from quantkit.onnx.marks import DOMAIN, OPERATOR

if TYPE_CHECKING:
    from quantkit.onnx.quantized import QuantizedOnnx


def marked_copy(quantized: QuantizedOnnx) -> ir.Model:
    """A copy of the float model with a mark for each quantizer, and rounded weights and biases."""
    model = quantized.model.clone()
    _Marker(model.graph, quantized).mark()
    model.graph.opset_imports[DOMAIN] = 1
    # int4 in a file needs 10, and nothing that reads Q/DQ is older.
    model.ir_version = max(model.ir_version, 10)
    return model


class _Marker:
    """Finds the nodes of the copy by the names that they have in the float model."""

    def __init__(self, graph: ir.Graph, quantized: QuantizedOnnx) -> None:
        self.graph = graph
        self.quantized = quantized
        self.nodes = {node.name: node for node in graph.all_nodes()}
        self.values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
        self.values |= {out.name: out for node in graph for out in node.outputs}

    def mark(self) -> None:
        for tensor in self.quantized.plan.tensors:
            self._quantize(tensor)
        description = self.quantized.description
        for decision in self.quantized.plan.decisions:
            if decision.kind in COMPUTE:
                node = self.nodes[description.node_of_op[decision.op].name]
                named = self._mark(node.inputs[1], "", decision.op, before=node)
                node.replace_input_with(1, named)
        for layer, bias in self.quantized.biases.items():
            found = description.bias(layer)
            assert found is not None
            (node, index), value = found
            new = add_constant(self.graph, f"{value.name}_rounded", bias.numpy())
            self.nodes[node.name].replace_input_with(index, new)

    def _quantize(self, tensor: QuantizedTensor) -> None:
        source = self.values[self.quantized.description.value_of[tensor.tensor].name]
        rounded = self.quantized.weights.get(tensor.grid) if tensor.role == "weight" else None
        marked = source
        if rounded is not None:
            marked = add_constant(self.graph, f"{source.name}_rounded", rounded.numpy())
        producer = source.producer()
        before = self._first() if producer is None else None
        new = self._mark(
            marked, tensor.grid, "", tensor=tensor.tensor, before=before, after=producer
        )
        for edge in tensor.edges:
            self._redirect(edge, new)

    def _redirect(self, edge: Edge, new: ir.Value) -> None:
        for node, index in self.quantized.description.uses[edge]:
            self.nodes[node.name].replace_input_with(index, new)

    def _first(self) -> ir.Node:
        return next(iter(self.graph))

    def _mark(
        self,
        source: ir.Value | None,
        grid: str,
        layer: str,
        *,
        tensor: str = "",
        before: ir.Node | None = None,
        after: ir.Node | None = None,
    ) -> ir.Value:
        assert source is not None
        names = {"grid": grid, "layer": layer, "tensor": tensor}
        attributes = [ir.AttrString(name, value) for name, value in names.items()]
        node = ir.Node(DOMAIN, OPERATOR, [source], attributes)
        out = node.outputs[0]
        out.name, out.shape, out.type = str(source.name), source.shape, source.type
        if before is not None:
            self.graph.insert_before(before, node)
        else:
            assert after is not None
            self.graph.insert_after(after, node)
        return out
