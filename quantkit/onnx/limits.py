"""Upper limits, one a channel, before a quantizer: gone where the grid implies them.

They come of clips that the pass ``equalize`` has scaled: ``Min(Relu(x), limits)``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from quantkit.onnx.clips import _grid as grid_of
from quantkit.onnx.edit import add_constant

Array: TypeAlias = np.ndarray[Any, Any]


def limits_in_integers(graph: ir.Graph, *, move: bool) -> int:
    """Remove a Min with a constant before quantizers that saturate below it; returns how many.

    ``quantize(min(x, c)) = min(quantize(x), quantize(c))``, so where the grid does not imply the
    limit, the Min may stand behind the quantizer, of integers. ONNX Runtime fuses a convolution
    with the quantizer that follows it, and with no Min between.

    Args:
        graph: with Q/DQ.
        move: whether to move those that are needed: for ONNX Runtime, and uint8 alone.
    """
    changed = 0
    for node in list(graph):
        found = _limits(node)
        quantizers = [use.node for use in node.outputs[0].uses()] if found else []
        if found is None or not quantizers or node.outputs[0].is_graph_output():
            continue
        if any(q.op_type != "QuantizeLinear" for q in quantizers):
            continue
        source, limits = found
        codes = [_codes(q, limits) for q in quantizers]
        needed = [q for q, c in zip(quantizers, codes, strict=True) if c is None or not _ends(c)]
        movable = all(c is not None and c.dtype == np.uint8 for c in codes) and not any(
            q.outputs[0].is_graph_output() for q in quantizers
        )
        if needed and not (move and movable):
            continue
        for quantizer, code in zip(quantizers, codes, strict=True):
            quantizer.replace_input_with(0, source)
            if quantizer in needed:
                assert code is not None
                _limit_behind(graph, quantizer, code)
        graph.remove(node, safe=True)
        changed += 1
    return changed


def _limits(
    node: ir.Node,
) -> tuple[ir.Value, Array] | None:
    """What a Min limits, and its constant."""
    if node.op_type != "Min" or node.domain or len(node.inputs) != 2:
        return None
    source, limit = node.inputs
    if source is None or limit is None or limit.const_value is None:
        return None
    return source, limit.const_value.numpy()


def _codes(quantizer: ir.Node, limits: Array) -> Array | None:
    """The limits on a quantizer's grid; ``None`` where that is not one 8-bit grid a tensor."""
    zero = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    grid = grid_of(quantizer)
    if grid is None or zero is None or zero.const_value is None:
        return None
    scale, middle, low, high = grid
    steps = np.rint(limits.astype(np.float32) / np.float32(scale)) + middle
    codes: Array = np.clip(steps, low, high).astype(zero.const_value.numpy().dtype)
    return codes


def _ends(codes: Array) -> bool:
    return bool((codes == np.iinfo(codes.dtype).max).all())


def _limit_behind(graph: ir.Graph, quantizer: ir.Node, codes: Array) -> None:
    output = quantizer.outputs[0]
    limit = add_constant(graph, f"{output.name}_limit", codes)
    node = ir.node("Min", [output, limit], name=f"{quantizer.name}/Min")
    node.outputs[0].name = f"{output.name}_limited"
    node.outputs[0].shape, node.outputs[0].type = output.shape, ir.TensorType(ir.DataType.UINT8)
    readers = [(use.node, use.idx) for use in output.uses() if use.node is not node]
    graph.insert_after(quantizer, node)
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])
