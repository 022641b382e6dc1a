"""The mean of each channel that a layer reads, from what batch-norm has learned: no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.batchnorm import NORMAL, Normal
from quantkit.passes._links import is_clip, limit_of
from quantkit.passes._normal import clipped_mean

_SAME_MEAN = frozenset({Kind.AVERAGE_POOL, Kind.UPSAMPLE})
_COPIES = frozenset({"dropout", "feature_dropout", "contiguous", "clone", "alias"})


def expected_mean(module: fx.GraphModule, node: Any) -> Tensor | None:
    """``E`` of each channel of a node's value, ``(channels,)`` float64; ``None`` where unknown.

    Known are results of layers that batch-norm was folded into, these behind a ReLU or ReLU6, and
    what adds, averages or joins known ones. Borders that are padded are left out of account.
    """
    if not isinstance(node, fx.Node):
        return None
    if NORMAL in node.meta:
        normal: Normal = node.meta[NORMAL]
        return normal.mean.double()
    name, kind = operator_name(node), kind_of(node)
    if kind is Kind.RELU:
        return _clipped(module, node)
    if kind is Kind.ADD and len(node.all_input_nodes) == 2 and not node.kwargs:
        parts = [expected_mean(module, n) for n in node.all_input_nodes]
        return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
    if kind is Kind.CONCAT:
        return _joined(module, node)
    same = node.op == "call_module" or kind in _SAME_MEAN or name in _COPIES
    if same or _lays_flat(node):
        return expected_mean(module, node.args[0]) if node.args else None
    return None


def _clipped(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Of a normal variable alone: behind a ReLU, a limit, or both."""
    low: float | None = None
    high: Tensor | None = None
    current: Any = node
    while kind_of(current) is Kind.RELU:
        name = operator_name(current)
        if is_clip(current):
            limit = limit_of(module, current).flatten()
            high = limit if high is None else torch.minimum(high, limit)
            limited_alone = name == "clamp" and (len(current.args) < 2 or current.args[1] is None)
            low = low if limited_alone else 0.0
        elif name == "relu":
            low = 0.0
        else:
            return None
        current = current.args[0]
    if NORMAL not in current.meta:
        return None
    normal: Normal = current.meta[NORMAL]
    return clipped_mean(normal.mean, normal.std, low, high)


def _joined(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = [expected_mean(module, part) for part in node.all_input_nodes]
    known = [part for part in parts if part is not None]
    return torch.cat(known) if dim == 1 and len(known) == len(parts) else None


def _lays_flat(node: fx.Node) -> bool:
    """Whether ``(N, C, 1, 1)`` becomes ``(N, C)``: one element a channel."""
    source = node.args[0] if node.args else None
    if kind_of(node) is not Kind.MOVE or not isinstance(source, fx.Node):
        return False
    before, after = source.meta["val"].shape, node.meta["val"].shape
    return len(after) == 2 and len(before) > 2 and all(size == 1 for size in before[2:])
