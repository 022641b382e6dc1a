"""Biases in the forms that ONNX Runtime fuses into integer products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from quantkit.onnx.edit import add_constant


def integer_biases(graph: ir.Graph) -> int:
    """Write the bias of a Gemm between Q/DQ as int32: ONNX Runtime fuses no other into integers.

    The bias is a multiple of ``s_x * s_w`` already (see ``round_weights``), so nothing is rounded.
    Returns how many were written.
    """
    changed = 0
    for node in list(graph):
        if node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        bias, producers = node.inputs[2], [_dequantizer(v) for v in node.inputs[:2]]
        if bias.const_value is None or any(p is None for p in producers):
            continue
        step = _step([p for p in producers if p is not None])
        floats = bias.const_value.numpy().astype(np.float64)
        if step is None or floats.ndim != 1 or step.size not in {1, floats.size}:
            continue
        values = np.rint(floats / step)
        if np.abs(values).max(initial=0) >= 2.0**31:
            continue
        step = step if step.size > 1 else step[0]
        stored = add_constant(graph, f"{bias.name}_quantized", values.astype(np.int32))
        scale = add_constant(graph, f"{bias.name}_scale", np.asarray(step, dtype=np.float32))
        zero = add_constant(
            graph, f"{bias.name}_zero_point", np.zeros(np.shape(step), dtype=np.int32)
        )
        attributes = {"axis": 0} if np.ndim(step) else {}
        # Layers may share a bias, each with a step of its own: names follow the integers'.
        name = str(stored.name)
        dequantize = ir.node("DequantizeLinear", [stored, scale, zero], attributes,
                             name=f"{name}/DequantizeLinear")  # fmt: skip
        dequantize.outputs[0].name = name.replace("_quantized", "_dequantized")
        graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])
        changed += 1
    return changed


def widen_biases(graph: ir.Graph) -> int:
    """Give the bias behind a MatMul of three dimensions the shape (1, 1, N).

    ONNX Runtime turns MatMul and a bias of shape (N,) into a Gemm in float; of this shape, into an
    integer product. Returns how many were changed.
    """
    changed = 0
    for node in list(graph):
        if node.op_type != "Add":
            continue
        for index, bias in enumerate(node.inputs):
            other = node.inputs[1 - index]
            product = other.producer() if other is not None else None
            if bias is None or bias.const_value is None or product is None:
                continue
            ranks = len(product.outputs[0].shape or ()), len(bias.shape or ())
            if product.op_type != "MatMul" or ranks != (3, 1):
                continue
            wide = bias.const_value.numpy()[None, None]
            node.replace_input_with(index, add_constant(graph, f"{bias.name}_wide", wide))
            changed += 1
    return changed


def _step(dequantizers: list[ir.Node]) -> np.ndarray[Any, Any] | None:
    """``s_x * s_w``; ``None`` where a product's sums are not of integers, or not of one step."""
    scales = []
    for node in dequantizers:
        scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if scale is None or scale.const_value is None or zero is None:
            return None
        if zero.dtype not in {ir.DataType.INT8, ir.DataType.UINT8}:
            return None
        scales.append(scale.const_value.numpy())
    if scales[0].size != 1 or scales[1].ndim > 1:
        return None
    return np.asarray(scales[0] * scales[1], dtype=np.float32).reshape(-1)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value, past what moves values."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return node
        if node.op_type not in {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}:
            return None
        value = node.inputs[0]
    return None
