"""Guards against what ONNX Runtime's optimizer would make of a right file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantkit.onnx.edit import add_constant

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: What ONNX Runtime looks through, or takes out, between a layer and a quantizer.
_PASSED = frozenset({"Relu", "Clip", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})


def keep_in_float(graph: ir.Graph) -> int:
    """Put a no-op behind each layer with float weights that stands between Q/DQ.

    ONNX Runtime (1.32, ``WeightBiasQuantization``) quantizes the weights of such a layer on its
    own, and runs it in integers: not what was planned, nor what was simulated. It does so only
    where a quantizer follows; the maximum with the lowest float is no change to any value.
    Returns how many were guarded.
    """
    guarded = 0
    for node in list(graph):
        if node.op_type not in _LAYERS or node.domain or not _dequantized(node.inputs[0]):
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or not _quantized(node.outputs[0]):
            continue
        _guard(graph, node)
        guarded += 1
    return guarded


def separate_weights(graph: ir.Graph) -> int:
    """Give each layer integers of its own where several read one quantized weight.

    ONNX Runtime (1.32) rearranges a weight for its first reader and, in exact mode, does not load
    the file for the second; files for TensorRT are checked there too. Returns how many copies
    were made.
    """
    copies = 0
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or any(_array(v) is None for v in node.inputs):
            continue
        for use in list(node.outputs[0].uses())[1:]:
            inputs = [add_constant(graph, str(v.name), _array(v)) for v in node.inputs if v]
            copy = ir.node(
                "DequantizeLinear", inputs, dict(node.attributes.items()),
                name=f"{node.name}_copy",
            )  # fmt: skip
            old, new = node.outputs[0], copy.outputs[0]
            new.name = str(inputs[0].name).replace("_quantized", "_dequantized")
            new.shape, new.type = old.shape, old.type
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, new)
            copies += 1
    return copies


def _array(value: ir.Value | None) -> ir.TensorProtocol | None:
    """A copy of a constant, to be named anew."""
    if value is None or value.const_value is None:
        return None
    return ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype)


def _guard(graph: ir.Graph, node: ir.Node) -> None:
    old = node.outputs[0]
    lowest = add_constant(graph, f"{old.name}_lowest", np.array(np.finfo(np.float32).min))
    guard = ir.node("Max", [old, lowest], name=f"{node.name}/keep_in_float")
    new = guard.outputs[0]
    new.name, new.shape, new.type = f"{old.name}_float", old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    guard.replace_input_with(0, old)
    graph.insert_after(node, guard)


def _dequantized(value: ir.Value | None) -> bool:
    """Whether a tensor comes from a dequantizer, at most moved."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type not in {*_PASSED, "MaxPool", "Slice", "Pad"}:
            return False
        value = node.inputs[0]
    return False


def _quantized(value: ir.Value) -> bool:
    """Whether a quantizer reads a tensor, at most moved or clipped."""
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            return True
        if use.node.op_type in _PASSED and _quantized(use.node.outputs[0]):
            return True
    return False
