"""Fold batch-norm into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.edit import add_constant, constant, has_constant, readers, set_constant
from quantkit.interfaces import Pass

aten = torch.ops.aten

#: The dimension of each layer's weight that counts output channels.
_OUTPUT_AXIS: dict[Any, int] = {
    aten.conv1d.default: 0,
    aten.conv2d.default: 0,
    aten.conv3d.default: 0,
    aten.conv1d.padding: 0,
    aten.conv2d.padding: 0,
    aten.conv3d.padding: 0,
    aten.linear.default: 0,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
}


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(Pass):
    """``W' = W * f``, ``b' = (b - mean) * f + beta``, ``f = gamma / sqrt(variance + eps)``.

    Jacob et al. 2018, section 3.2. Folds where the layer's result goes nowhere else and both are
    constant; all other batch-norms stay. The graph is in evaluation mode: the running statistics
    are what is folded.
    """

    def apply(self, graph: fx.GraphModule) -> int:
        """Fold every batch-norm that can be; returns how many."""
        folded = 0
        for node in list(graph.graph.nodes):
            if node.target is aten.batch_norm.default and _fold(graph, node):
                folded += 1
        if folded:
            graph.graph.eliminate_dead_code()
            graph.delete_all_unused_submodules()
            graph.recompile()
        return folded


def _fold(graph: fx.GraphModule, norm: fx.Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or len(layer.users) != 1:
        return False
    axis = _OUTPUT_AXIS.get(layer.target)
    weight_node = layer.args[1] if len(layer.args) > 1 else None
    weight = constant(graph, weight_node)
    if axis is None or weight is None or not isinstance(weight_node, fx.Node):
        return False
    if readers(graph, weight_node) != 1:
        return False  # a weight that another layer shares
    if layer.target is aten.linear.default and _rank(norm) != 2:
        return False  # batch-norm counts channels on dimension 1, a linear layer on the last
    bias_node = _bias(layer)
    statistics = _statistics(graph, norm)
    if statistics is None or (bias_node is not None and constant(graph, bias_node) is None):
        return False
    factor, shift = statistics
    path = str(weight_node.target)
    set_constant(graph, path, _scaled(weight, factor, axis, _groups(layer)))
    _set_bias(graph, layer, path, factor, shift)
    norm.replace_all_uses_with(layer)
    graph.graph.erase_node(norm)
    return True


def _statistics(graph: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Factor and shift per channel, computed in float64; ``None`` where they are not constant."""
    if norm.args[5]:
        return None
    gamma, beta = constant(graph, norm.args[1]), constant(graph, norm.args[2])
    mean, variance = constant(graph, norm.args[3]), constant(graph, norm.args[4])
    if mean is None or variance is None:
        return None
    given = [n for n in norm.args[1:3] if n is not None]
    if len(given) != sum(t is not None for t in (gamma, beta)):
        return None
    factor = torch.rsqrt(variance.detach().double() + float(norm.args[7]))  # type: ignore[arg-type]
    if gamma is not None:
        factor = factor * gamma.detach().double()
    shift = -mean.detach().double() * factor
    return factor, shift if beta is None else shift + beta.detach().double()


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
    graph: fx.GraphModule, layer: fx.Node, weight_path: str, factor: Tensor, shift: Tensor
) -> None:
    node = _bias(layer)
    bias, weight = constant(graph, node), constant(graph, layer.args[1])
    assert weight is not None  # the caller has just set it
    folded = shift if bias is None else bias.detach().double() * factor + shift
    if bias is not None and readers(graph, node) == 1:
        set_constant(graph, str(node.target), folded.to(weight.dtype))
        return
    path = f"{weight_path.rpartition('.')[0]}.bias".lstrip(".")
    if path == weight_path or has_constant(graph, path):
        path = f"{weight_path}_folded_bias"
    new = add_constant(graph, path, folded.to(weight.dtype), before=layer)
    if "bias" in layer.kwargs:
        layer.update_kwarg("bias", new)
    else:
        layer.args = (*layer.args[:2], new, *layer.args[3:])


def _bias(layer: fx.Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")


def _groups(layer: fx.Node) -> int:
    if layer.target is aten.linear.default:
        return 1
    given: Any = layer.args[6] if len(layer.args) > 6 else layer.kwargs.get("groups", 1)
    return int(given)


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)
