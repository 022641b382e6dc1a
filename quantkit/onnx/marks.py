"""Mark a captured graph for export: each quantizer becomes one node that ONNX export carries over.

The dynamo exporter knows no format below 8 bits, and no form of Q/DQ but its own. So the graph is
exported in float with a custom node where each quantizer stands; ``onnx.lower`` then writes
Q/DQ there, in the form that the target wants.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.onnx.ops
from torch import Tensor, fx

from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.edit import add_constant, evaluate_constant
from quantkit.model import LAYER
from quantkit.model import TENSOR as NODE_TENSOR

DOMAIN = "quantkit"
OPERATOR = "Mark"
#: Where a Q or DQ in a file keeps the plan's name for its tensor.
TENSOR = "quantkit.tensor"


def mark(x: Tensor, grid: str, layer: str, tensor: str = "") -> Tensor:
    """``x`` through a node that names the grid it is put on, or the layer that reads it.

    Args:
        x: any tensor.
        grid: empty where it names a layer.
        layer: empty where it names a grid.
        tensor: the plan's name of ``x``, where it is put on a grid.
    """
    attributes: dict[
        str,
        int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool],
    ] = {"grid": grid, "layer": layer, "tensor": tensor}
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}", [x], attributes, dtype=x.dtype, shape=x.shape, version=1
    )


def marked(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph (sharing its parameters) with marks in place of quantizers.

    The second input of every layer gets a mark of its own with the layer's name, so that the ONNX
    node can be given that name whatever the exporter makes of the operator.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(module.graph, mapping))
    graph._codegen = copy.copy(module.graph._codegen)
    computed: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.op == "call_module":
            quantizer = module.get_submodule(str(node.target))
            if isinstance(quantizer, FakeQuantize):
                new = _replace(graph, node, quantizer.name)
                if quantizer.observer is None and new.args[0].op != "get_attr":  # type: ignore[union-attr]
                    computed.append(new)
    for node in module.graph.nodes:
        name = node.meta.get(LAYER)
        if name is not None:
            copied = mapping[node]
            with graph.inserting_before(copied):
                named = graph.call_function(mark, (copied.args[1], "", name))
            copied.update_arg(1, named)
    result = fx.GraphModule(module, graph)
    for new in computed:
        _store_weight(result, new)
    graph.eliminate_dead_code()
    result.recompile()
    return result


def _replace(graph: fx.Graph, node: fx.Node, grid: str) -> fx.Node:
    with graph.inserting_before(node):
        new = graph.call_function(mark, (node.args[0], grid, "", node.meta.get(NODE_TENSOR, "")))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return new


def _store_weight(module: fx.GraphModule, marked: fx.Node) -> None:
    """A weight that the model computes (of two parameters, say) becomes a constant of its own.

    The exporter would write the computation: the file would hold the weight in float.
    """
    source = marked.args[0]
    assert isinstance(source, fx.Node)
    value = evaluate_constant(module, source).contiguous()
    path = f"quantkit_weights_{marked.name}"
    marked.update_arg(0, add_constant(module, path, value, before=marked))
