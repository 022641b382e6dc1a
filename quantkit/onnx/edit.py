"""Small edits of an ONNX graph that its rewrites share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """A new initializer of this name, or of the next free one: a model may have such a parameter.

    Args:
        graph: where it is registered.
        name: what it is called if nothing else is.
        array: a numpy array or scalar, or a tensor of ONNX IR.

    Example:
        >>> graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
        >>> [add_constant(graph, "fc.weight_scale", np.ones(2)).name for _ in range(2)]
        ['fc.weight_scale', 'fc.weight_scale_1']
    """
    taken = {*graph.initializers, *(value.name for value in graph.inputs)}
    free, count = name, 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    own = isinstance(array, ir.TensorProtocol)
    tensor: ir.TensorProtocol = array if own else ir.Tensor(np.asarray(array))
    tensor.name = free
    shape = ir.Shape(tensor.numpy().shape)
    value = ir.Value(name=free, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
