"""Small edits of an ONNX graph that its rewrites share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """A new initializer."""
    tensor = ir.Tensor(array, name=name)
    shape = ir.Shape(array.shape)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
