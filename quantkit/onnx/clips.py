"""ReLU and Clip before a quantizer: gone where the grid implies them, in integers elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from quantkit.onnx.edit import add_constant


def remove_implied_clips(graph: ir.Graph) -> int:
    """Remove a ReLU or Clip before a quantizer that saturates at the same bounds anyway.

    ``quantize(clip(x)) = quantize(x)`` for every x exactly where both bounds quantize to the ends
    of the grid. A Clip whose lower bound alone is needed becomes a ReLU. Returns how many changed.
    """
    changed = 0
    for node in list(graph):
        if not _clips(node):
            continue
        quantizers = [use.node for use in node.outputs[0].uses()]
        if node.outputs[0].is_graph_output() or not quantizers:
            continue
        if any(q.op_type != "QuantizeLinear" for q in quantizers):
            continue
        bounds = _bounds(node)
        if bounds is None:
            continue
        low, high = bounds
        grids = [_grid(q) for q in quantizers]
        low_implied = all(g is not None and _ends(g, low, first=True) for g in grids)
        high_implied = high is None or all(
            g is not None and _ends(g, high, first=False) for g in grids
        )
        if low_implied and high_implied:
            source = node.inputs[0]
            assert source is not None
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)
        elif high_implied and node.op_type == "Clip" and low == 0:
            relu = ir.node("Relu", [node.inputs[0]], name=node.name)
            relu.metadata_props.update(node.metadata_props)
            relu.outputs[0].name = node.outputs[0].name
            relu.outputs[0].shape, relu.outputs[0].type = (
                node.outputs[0].shape,
                node.outputs[0].type,
            )
            graph.insert_before(node, relu)
            node.outputs[0].replace_all_uses_with(relu.outputs[0])
            graph.remove(node, safe=True)
        else:
            continue
        changed += 1
    return changed


def clip_in_integers(graph: ir.Graph) -> int:
    """Move a ReLU or Clip that the grid does not imply behind its quantizer.

    ``quantize(clip(x)) = clip(quantize(x))`` with the bounds quantized. ONNX Runtime fuses a
    convolution with the quantizer that follows it, but with no ReLU between unless the zero-point
    is the grid's lowest. Only for uint8, of which it has a Clip. Returns how many were moved.
    """
    moved = 0
    for node in list(graph):
        if not _clips(node) or node.outputs[0].is_graph_output():
            continue
        quantizers = [use.node for use in node.outputs[0].uses()]
        if not quantizers or any(q.op_type != "QuantizeLinear" for q in quantizers):
            continue
        grids = [_grid(q) for q in quantizers]
        bounds = _bounds(node)
        if bounds is None or any(grid is None or grid[2] != 0 for grid in grids):
            continue
        if any(q.outputs[0].is_graph_output() for q in quantizers):
            continue
        source = node.inputs[0]
        assert source is not None
        for quantizer, grid in zip(quantizers, grids, strict=True):
            assert grid is not None
            _clip_behind(graph, quantizer, grid, bounds)
            quantizer.replace_input_with(0, source)
        graph.remove(node, safe=True)
        moved += 1
    return moved


def keep_clips(graph: ir.Graph) -> int:
    """Write a ReLU or Clip before a quantizer to FP8 or int4 as Max and Min.

    ONNX Runtime (1.32) takes every zero-point of 0 there for the lowest of the grid: it leaves out
    a ReLU, and does not load a file with a Clip. Returns how many were rewritten.
    """
    rewritten = 0
    for node in list(graph):
        readers = [use.node for use in node.outputs[0].uses()] if _clips(node) else []
        bounds = _bounds(node) if readers else None
        if bounds is None or not any(_to_other_format(reader) for reader in readers):
            continue
        value, old = node.inputs[0], node.outputs[0]
        for operator, bound in zip(("Max", "Min"), bounds, strict=True):
            if bound is None or not np.isfinite(bound):
                continue
            limit = add_constant(graph, f"{old.name}_{operator}", np.array(bound, np.float32))
            new = ir.node(operator, [value, limit], name=node.name)
            new.metadata_props.update(node.metadata_props)
            graph.insert_before(node, new)
            value = new.outputs[0]
            value.name = f"{old.name}_{operator.lower()}"
            value.shape, value.type = old.shape, old.type
        assert value is not None
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        rewritten += 1
    return rewritten


def _clips(node: ir.Node) -> bool:
    return node.op_type in {"Relu", "Clip"} and not node.domain


def _to_other_format(quantize: ir.Node) -> bool:
    """Whether a node quantizes, and to a format other than 8-bit integers."""
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    known = {ir.DataType.INT8, ir.DataType.UINT8}
    return quantize.op_type == "QuantizeLinear" and zero is not None and zero.dtype not in known


def _clip_behind(
    graph: ir.Graph,
    quantizer: ir.Node,
    grid: tuple[float, int, int, int],
    bounds: tuple[float, float | None],
) -> None:
    output = quantizer.outputs[0]
    inputs: list[ir.Value | None] = [output]
    for name, bound in zip(("min", "max"), bounds, strict=True):
        if bound is None or not np.isfinite(bound):
            inputs.append(None)
            continue
        array = np.array(_quantized(grid, bound), dtype=np.uint8)
        inputs.append(add_constant(graph, f"{output.name}_{name}", array))
    clip = ir.node("Clip", inputs, name=f"{quantizer.name}/Clip")
    clip.outputs[0].name = f"{output.name}_clipped"
    clip.outputs[0].shape, clip.outputs[0].type = output.shape, ir.TensorType(ir.DataType.UINT8)
    readers = [(use.node, use.idx) for use in output.uses() if use.node is not clip]
    graph.insert_after(quantizer, clip)
    for reader, index in readers:
        reader.replace_input_with(index, clip.outputs[0])


def _bounds(node: ir.Node) -> tuple[float, float | None] | None:
    """The bounds of a ReLU or Clip; ``None`` where they are known only at run time."""
    if node.op_type == "Relu":
        return 0.0, None
    values: list[float | None] = [None, None]
    for position in (1, 2):
        bound = node.inputs[position] if len(node.inputs) > position else None
        if bound is None:
            continue
        if bound.const_value is None:
            return None
        values[position - 1] = float(bound.const_value.numpy().item())
    low, high = values
    return (-np.inf if low is None else low), high


def _grid(quantize: ir.Node) -> tuple[float, int, int, int] | None:
    """Scale, zero-point and ends of a per-tensor quantizer."""
    scale, zero = quantize.inputs[1], quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if scale is None or zero is None or scale.const_value is None or zero.const_value is None:
        return None
    array = zero.const_value.numpy()
    if array.size != 1 or array.dtype not in (np.int8, np.uint8):
        return None
    ends = np.iinfo(array.dtype)
    return float(scale.const_value.numpy().item()), int(array.item()), int(ends.min), int(ends.max)


def _ends(grid: tuple[float, int, int, int], bound: float, *, first: bool) -> bool:
    """Whether a bound quantizes to the first (or last) point of the grid."""
    if not np.isfinite(bound):
        return True
    q = _quantized(grid, bound)
    return q <= grid[2] if first else q >= grid[3]


def _quantized(grid: tuple[float, int, int, int], bound: float) -> int:
    scale, zero, low, high = grid
    q = np.rint(np.float32(bound) / np.float32(scale)) + zero
    return int(np.clip(q, low, high))
