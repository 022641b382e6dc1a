"""Fold batch-norm into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.batchnorm import NORMAL, Foldable, Normal, bias_path, foldable, set_bias
from quantkit.graph.edit import add_constant, constant, readers, set_constant
from quantkit.interfaces import Pass

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """``W' = W * f``, ``b' = (b - mean) * f + beta``, ``f = gamma / sqrt(variance + eps)``.

    Jacob et al. 2018, section 3.2. Folds where the layer's result goes nowhere else and both are
    constant; all other batch-norms stay. The graph is in evaluation mode: the running statistics
    are what is folded. The layer's node keeps what each channel's results are spread like
    (``Normal``), for passes that reckon with it.
    """

    def apply(self, graph: fx.GraphModule) -> int:
        """Fold every batch-norm that can be; returns how many."""
        folded = 0
        for node in list(graph.graph.nodes):
            if (found := foldable(graph, node)) is not None:
                _fold(graph, found)
                folded += 1
        if folded:
            graph.graph.eliminate_dead_code()
            graph.delete_all_unused_submodules()
            graph.recompile()
        return folded


def _fold(graph: fx.GraphModule, found: Foldable) -> None:
    factor, shift = _statistics(graph, found)
    weight = constant(graph, found.weight)
    assert weight is not None  # foldable has seen it
    scaled = _scaled(weight, factor, found.axis, _groups(found.layer))
    set_constant(graph, str(found.weight.target), scaled)
    _set_bias(graph, found, factor, shift, weight.dtype)
    found.layer.meta[NORMAL] = _normal(graph, found)
    found.norm.replace_all_uses_with(found.layer)
    graph.graph.erase_node(found.norm)


def _statistics(graph: fx.GraphModule, found: Foldable) -> tuple[Tensor, Tensor]:
    """Factor and shift per channel, computed in float64."""
    gamma, beta = constant(graph, found.gamma), constant(graph, found.beta)
    mean, variance = constant(graph, found.mean), constant(graph, found.variance)
    assert mean is not None  # foldable has seen both
    assert variance is not None
    factor = torch.rsqrt(variance.detach().double() + found.eps)
    if gamma is not None:
        factor = factor * gamma.detach().double()
    shift = -mean.detach().double() * factor
    return factor, shift if beta is None else shift + beta.detach().double()


def _normal(graph: fx.GraphModule, found: Foldable) -> Normal:
    """Mean beta and deviation |gamma|: what batch-norm makes of each channel."""
    gamma, beta = constant(graph, found.gamma), constant(graph, found.beta)
    mean = constant(graph, found.mean)
    assert mean is not None  # foldable has seen it
    one = torch.ones_like(mean) if gamma is None else gamma.detach().abs()
    return Normal(torch.zeros_like(mean) if beta is None else beta.detach().clone(), one)


def _scaled(weight: Tensor, factor: Tensor, axis: int, groups: int) -> Tensor:
    exact = weight.detach().double()
    ones = [1] * (weight.dim() - 2)
    if axis == 0:
        return (exact * factor.view(-1, 1, *ones)).to(weight.dtype)
    # Transposed: (in, out / groups, ...), and the channels run group by group.
    parts = exact.reshape(groups, -1, *exact.shape[1:])
    scaled = parts * factor.view(groups, 1, -1, *ones)
    return scaled.reshape(exact.shape).to(weight.dtype)


def _set_bias(
    graph: fx.GraphModule, found: Foldable, factor: Tensor, shift: Tensor, dtype: torch.dtype
) -> None:
    node = found.bias
    bias = constant(graph, node)
    folded = shift if bias is None else bias.detach().double() * factor + shift
    if node is not None and readers(graph, node) == 1:
        set_constant(graph, str(node.target), folded.to(dtype))
        return
    new = add_constant(
        graph, bias_path(graph, str(found.weight.target)), folded.to(dtype), before=found.layer
    )
    set_bias(found.layer, new)


def _groups(layer: fx.Node) -> int:
    if layer.target is aten.linear.default:
        return 1
    given: Any = layer.args[6] if len(layer.args) > 6 else layer.kwargs.get("groups", 1)
    return int(given)
