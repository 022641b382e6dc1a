"""Split ``scaled_dot_product_attention`` into the products that can run in INT8.

Captured models hold attention as one node. TensorRT fuses INT8 attention only where Q, K, V and
the softmax's output are quantized, so the two products and the softmax must be nodes of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def split_attention(module: fx.GraphModule) -> int:
    """Rewrite every attention node in place; returns how many there were."""
    found = [
        node
        for node in module.graph.nodes
        if node.target is aten.scaled_dot_product_attention.default
    ]
    for node in found:
        _split(module, node)
    if found:
        module.graph.eliminate_dead_code()
        module.recompile()
    return len(found)


def _split(module: fx.GraphModule, node: fx.Node) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    query, key, value = given["query"], given["key"], given["value"]
    emit = _Emitter(module.graph, node)
    scale = given.get("scale")
    width = int(query.meta["val"].shape[-1])
    factor = 1.0 / math.sqrt(width) if scale is None else float(scale)
    if given.get("enable_gqa", False):
        groups = int(query.meta["val"].shape[-3]) // int(key.meta["val"].shape[-3])
        key, value = (emit.repeat_heads(k, groups) for k in (key, value))
    # The query takes the factor, so that both inputs of the first product are plain tensors.
    scaled = emit(aten.mul.Tensor, query, factor)
    transposed = emit(aten.transpose.int, key, -2, -1)
    scores = emit(aten.matmul.default, scaled, transposed)
    mask = given.get("attn_mask")
    if given.get("is_causal", False):
        mask = emit.causal(scores)
    if mask is not None:
        scores = emit.masked(scores, mask)
    weights = emit(aten.softmax.int, scores, -1)
    if given.get("dropout_p", 0.0):
        weights = emit(aten.dropout.default, weights, given["dropout_p"], False)
    node.replace_all_uses_with(emit(aten.matmul.default, weights, value))
    module.graph.erase_node(node)


class _Emitter:
    """Writes nodes before a node, with the shapes and the module path of that node."""

    def __init__(self, graph: fx.Graph, before: fx.Node) -> None:
        self.graph = graph
        self.before = before

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_before(self.before):
            node = self.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        node.meta["val"] = target(*fake_args, **fake_kwargs)
        for name in ("nn_module_stack", "stack_trace"):
            if name in self.before.meta:
                node.meta[name] = self.before.meta[name]
        return node

    def size(self, node: fx.Node, dim: int) -> Any:
        """A dimension: an int, or a node where it is dynamic."""
        extent = node.meta["val"].shape[dim]
        return extent if isinstance(extent, int) else self(aten.sym_size.int, node, dim)

    def repeat_heads(self, node: fx.Node, groups: int) -> fx.Node:
        """Grouped-query attention: each key and value head serves ``groups`` query heads."""
        return node if groups == 1 else self(aten.repeat_interleave.self_int, node, groups, -3)

    def causal(self, scores: fx.Node) -> fx.Node:
        """True where a position may look: at itself and before."""
        device = scores.meta["val"].device
        rows, columns = self.size(scores, -2), self.size(scores, -1)
        ones = self(aten.ones.default, [rows, columns], dtype=torch.bool, device=device)
        return self(aten.tril.default, ones)

    def masked(self, scores: fx.Node, mask: fx.Node) -> fx.Node:
        """Scores with what may not be seen at minus infinity (or the given bias added)."""
        fake: Tensor = mask.meta["val"]
        if fake.dtype is not torch.bool:
            return self(aten.add.Tensor, scores, mask)
        # The lowest finite value: a row that is masked whole stays finite, in every runtime.
        lowest = torch.finfo(scores.meta["val"].dtype).min
        return self(aten.masked_fill.Scalar, scores, self(aten.logical_not.default, mask), lowest)
