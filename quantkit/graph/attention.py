"""Split ``scaled_dot_product_attention`` into the products that can run in INT8.

Captured models hold attention as one node. TensorRT fuses INT8 attention only where Q, K, V and
the softmax's output are quantized, so the two products and the softmax must be nodes of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.edit import Emitter

aten = torch.ops.aten


def split_attention(module: fx.GraphModule) -> int:
    """Rewrite every attention node in place; returns how many there were.

    The results are those of the node to float error, but for a row whose mask hides every key:
    there the split attention gives the mean of all values (as transformers' own code does), the
    node zeros.
    """
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
    emit = Emitter(module.graph, node)
    scale = given.get("scale")
    width = int(query.meta["val"].shape[-1])
    factor = 1.0 / math.sqrt(width) if scale is None else float(scale)
    if given.get("enable_gqa", False):
        groups = int(query.meta["val"].shape[-3]) // int(key.meta["val"].shape[-3])
        key, value = (_repeat_heads(emit, k, groups) for k in (key, value))
    # The query takes the factor, so that both inputs of the first product are plain tensors.
    scaled = emit(aten.mul.Tensor, query, factor)
    transposed = emit(aten.transpose.int, key, -2, -1)
    scores = emit(aten.matmul.default, scaled, transposed)
    mask = given.get("attn_mask")
    if given.get("is_causal", False):
        mask = _causal(emit, scores)
    if mask is not None:
        scores = _masked(emit, scores, mask)
    weights = emit(aten.softmax.int, scores, -1)
    if given.get("dropout_p", 0.0):
        weights = emit(aten.dropout.default, weights, given["dropout_p"], False)
    node.replace_all_uses_with(emit(aten.matmul.default, weights, value))
    module.graph.erase_node(node)


def _repeat_heads(emit: Emitter, heads: fx.Node, groups: int) -> fx.Node:
    """Grouped-query attention: each key and value head serves ``groups`` query heads."""
    return heads if groups == 1 else emit(aten.repeat_interleave.self_int, heads, groups, -3)


def _causal(emit: Emitter, scores: fx.Node) -> fx.Node:
    """True where a position may look: at itself and before."""
    device = scores.meta["val"].device
    extents = [emit.size(scores, -2), emit.size(scores, -1)]
    return emit(
        aten.tril.default, emit(aten.ones.default, extents, dtype=torch.bool, device=device)
    )


def _masked(emit: Emitter, scores: fx.Node, mask: fx.Node) -> fx.Node:
    """Scores with what may not be seen at minus infinity (or the given bias added)."""
    fake: Tensor = mask.meta["val"]
    if fake.dtype is not torch.bool:
        return emit(aten.add.Tensor, scores, mask)
    # The lowest finite value: a row that is masked whole stays finite, in every runtime.
    lowest = torch.finfo(scores.meta["val"].dtype).min
    return emit(aten.masked_fill.Scalar, scores, emit(aten.logical_not.default, mask), lowest)
