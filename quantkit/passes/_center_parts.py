"""What one operator makes of an input that is shifted by a constant: bounds, borders, sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name

aten = torch.ops.aten

#: Where each clip keeps its bounds: positions of the lower and of the upper one, or the bounds.
_BOUNDS: dict[Any, tuple[Any, Any]] = {
    aten.relu.default: (0.0, None),
    aten.relu6.default: (0.0, 6.0),
}
_GIVEN: dict[Any, tuple[int | None, int | None, Any, Any]] = {
    aten.hardtanh.default: (1, 2, -1.0, 1.0),
    aten.clamp.default: (1, 2, None, None),
    aten.clamp_min.default: (1, None, None, None),
    aten.clamp_max.default: (None, 1, None, None),
}


def bounds(node: fx.Node) -> tuple[float | None, float | None] | None:
    """The bounds of a ReLU or clip, ``None`` for an end that is open; ``None`` for no such node."""
    if node.target in _BOUNDS:
        return _BOUNDS[node.target]
    if node.target not in _GIVEN:
        return None
    *positions, low, high = _GIVEN[node.target]
    found = []
    for position, name, default in zip(positions, ("min", "max"), (low, high), strict=True):
        name = f"{name}_val" if node.target is aten.hardtanh.default else name
        value = None if position is None else argument(node, position, name, default)
        if value is not None and not isinstance(value, (int, float)):
            return None  # known only at run time
        found.append(None if value is None else float(value))
    return found[0], found[1]


def shift_bounds(node: fx.Node, shift: float) -> None:
    """Let a ReLU or clip of ``x`` clip ``x - shift`` to the same values, shifted."""
    found = bounds(node)
    assert found is not None  # what is shifted has bounds that are known
    low, high = (None if bound is None else bound - shift for bound in found)
    node.target = aten.clamp.default
    node.args, node.kwargs = (node.args[0], low, high), {}


def carries(node: fx.Node) -> bool:
    """Whether ``f(x - shift) = f(x) - shift``: it moves or averages the values of its first input.

    A clip and a pad with zeros do once their constants are shifted as well.
    """
    kind = kind_of(node)
    if kind is Kind.RELU:
        return bounds(node) is not None
    if kind is Kind.AVERAGE_POOL:
        return not counts_borders(node) or _bordered_plainly(node)
    return kind in {Kind.MOVE, Kind.SLICE, Kind.UPSAMPLE, Kind.MAX_POOL, Kind.PAD}


def counts_borders(node: fx.Node) -> bool:
    """Whether an average pool counts zeros around its input, or divides by another number."""
    if not operator_name(node).startswith("avg_pool"):
        return False
    if argument(node, 6, "divisor_override", None) is not None:
        return True
    padding = argument(node, 3, "padding", 0)
    amounts = padding if isinstance(padding, (list, tuple)) else [padding]
    around = any(bool(amount) for amount in amounts)
    return around and bool(argument(node, 5, "count_include_pad", True))


def _bordered_plainly(node: fx.Node) -> bool:
    """Whether padding the input first and then averaging it is the same."""
    rounded_up = bool(argument(node, 4, "ceil_mode", False))
    return not rounded_up and argument(node, 6, "divisor_override", None) is None


def adds(node: fx.Node) -> bool:
    """Whether a node adds two tensors as they are."""
    plain = node.target is aten.add.Tensor and node.kwargs.get("alpha", 1) == 1
    return bool(plain and len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args))


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument by its position or name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def pads(node: fx.Node, taps: Sequence[int]) -> list[int]:
    """The zeros that a convolution or pool puts around its input, as ``constant_pad_nd`` has them.

    Args:
        node: the convolution or average pool.
        taps: of a convolution's kernel, one number a dimension.
    """
    if kind_of(node) is Kind.AVERAGE_POOL:
        dims = int(operator_name(node).removeprefix("avg_pool")[0])
        ends = [(extent, extent) for extent in _each(argument(node, 3, "padding", 0), dims)]
        return [amount for pair in reversed(ends) for amount in pair]
    padding, dilation = argument(node, 4, "padding", 0), argument(node, 5, "dilation", 1)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(_each(dilation, len(taps)), taps, strict=True)]
        ends = [(extent // 2, extent - extent // 2) for extent in whole]
    else:
        each = _each(0 if padding == "valid" else padding, len(taps))
        ends = [(extent, extent) for extent in each]
    return [amount for pair in reversed(ends) for amount in pair]


def unpad(node: fx.Node, dims: int) -> None:
    """Let a convolution or average pool put nothing around its input."""
    plain: dict[Any, Any] = {
        aten.conv1d.padding: aten.conv1d.default,
        aten.conv2d.padding: aten.conv2d.default,
        aten.conv3d.padding: aten.conv3d.default,
    }
    position = 3 if kind_of(node) is Kind.AVERAGE_POOL else 4
    node.target = plain.get(node.target, node.target)
    if len(node.args) > position:
        node.update_arg(position, [0] * dims)
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "padding"}


def input_sums(kind: Kind, weight: Tensor) -> Tensor:
    """What a layer's output gains where each of its inputs is 1: its weights summed over inputs.

    Args:
        kind: of the layer.
        weight: ``(out, in / groups, ...)`` of a convolution, ``(out, in)`` of a linear layer,
            ``(..., in, out)`` of a product.

    Returns:
        float64: ``(out,)``, or ``(..., 1, out)`` of a product with several matrices.

    Example:
        >>> input_sums(Kind.LINEAR, torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [3.0, 7.0]
    """
    exact = weight.detach().double()
    if kind is Kind.MATMUL:
        return exact.sum(dim=-2, keepdim=exact.dim() > 2)
    return exact.flatten(1).sum(dim=1)


def _each(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * dims if len(values) == 1 else values
