"""Move what all values of a channel have in common on to the layer behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.batches import Call
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.batchnorm import NORMAL, Normal
from quantkit.graph.edit import constant
from quantkit.interfaces import DataPass
from quantkit.passes._biases import bias_value, put_bias
from quantkit.passes._equalization import read_constant
from quantkit.passes._links import Link, groups_of, limit_of, links_of, set_limit
from quantkit.recipe import Recipe
from quantkit.reconstruction.layers import form_of


@dataclass(frozen=True, kw_only=True)
class AbsorbBias(DataPass):
    """``b1' = b1 - c``, ``b2' = b2 + W2 c``: a channel that never comes near 0 has a lower range.

    High-bias absorption: Nagel et al. 2019 (arXiv:1906.04721), section 4.1.3. ``relu(z - c)`` is
    ``relu(z) - c`` only where ``z`` is ``c`` or more. The paper takes what all but 0.1 % of a
    normal variable exceed, three deviations below the mean of batch-norm. Here ``c`` is the least
    ``z`` that calibration data show, or the paper's where that is less: the result is the same
    on those data to rounding error, and may differ on others where ``z`` is lower than any of them.

    Only where no zero padding lies between (it stands for 0, not for ``c``), and where batch-norm
    was folded, by `fold_batchnorm`. Equalizing raises biases, so run it behind `equalize`.

    Attributes:
        samples: of the calibration data, to see the least values on.
        deviations: how many below the mean ``c`` lies at most.
    """

    samples: int = 256
    deviations: float = 3.0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.deviations < 0:
            raise ValueError(
                f"samples must be 1 or more and deviations 0 or more, got {self.samples}, "
                f"{self.deviations}"
            )

    def apply(self, graph: fx.GraphModule, recipe: Recipe, calls: Sequence[Call]) -> int:
        """Absorb; returns from how many layers."""
        candidates = {
            link.first: (link, c)
            for link in links_of(graph)
            if NORMAL in link.first.meta and _carries(graph, link)
            if bool((c := _typical(link, self.deviations)).any())
        }
        least = _least(graph, {node: link.axis for node, (link, _) in candidates.items()}, calls)
        changed = 0
        for node, (link, typical) in candidates.items():
            # Rounding of z must not push it below c.
            seen = least[node].double() * (1.0 - 1e-6)
            c = torch.minimum(typical.to(seen.device), seen).clamp(min=0.0)
            for clip in link.clips:
                c = torch.minimum(c, limit_of(graph, clip).flatten())
            if bool(c.any()):
                _absorb(graph, link, c)
                changed += 1
        if changed:
            graph.recompile()
        return changed


def _typical(link: Link, deviations: float) -> Tensor:
    normal: Normal = link.first.meta[NORMAL]
    return (normal.mean.double() - deviations * normal.std.double()).clamp(min=0.0)


def _carries(graph: fx.GraphModule, link: Link) -> bool:
    """Whether a constant in a channel reaches every output of the readers as it is."""
    for node in link.between:
        name, kind = operator_name(node), kind_of(node)
        if kind is Kind.PAD or (kind is Kind.AVERAGE_POOL and name.startswith("avg_pool")):
            return False  # zeros from outside, which some average pools count
    for reader in link.readers:
        weight = constant(graph, reader.node.args[1])
        form = None if weight is None else form_of(reader.node, weight)
        if form is None or any(form.padding):
            return False
    return True


class _Least(fx.Interpreter):
    """Runs the graph and keeps the least value of each channel of some nodes."""

    def __init__(self, module: fx.GraphModule, axes: dict[fx.Node, int]) -> None:
        super().__init__(module)
        self._axes = axes
        self.least: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if n in self._axes:
            rows = value.movedim(self._axes[n], 0).flatten(1).amin(1)
            self.least[n] = torch.minimum(self.least[n], rows) if n in self.least else rows
        return value


@torch.no_grad()
def _least(
    graph: fx.GraphModule, axes: dict[fx.Node, int], calls: Sequence[Call]
) -> dict[fx.Node, Tensor]:
    """The least value that calls show of each channel of nodes, ``(channels,)``."""
    run = _Least(graph, axes)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    for args, kwargs in calls if axes else ():
        flat = pytree.tree_leaves(args)
        flat += [kwargs[name] for name in names[len(flat) :] if name in kwargs]
        run.run(*flat, enable_io_processing=False)
    return run.least


def _absorb(graph: fx.GraphModule, link: Link, c: Tensor) -> None:
    """Take ``c`` from the first layer, and add what the readers make of it to theirs."""
    first = link.first
    weight = constant(graph, first.args[1])
    assert weight is not None  # a link has seen it
    lowered = bias_value(graph, first, weight) - c
    put_bias(graph, first, first.args[1], lowered.to(weight.dtype))  # type: ignore[arg-type]
    for clip in link.clips:
        set_limit(graph, clip, link, limit_of(graph, clip).flatten() - c)
    normal: Normal = first.meta[NORMAL]
    first.meta[NORMAL] = Normal(normal.mean - c.to(normal.mean.dtype), normal.std)
    for reader in link.readers:
        node, source = reader.node, reader.node.args[1]
        read = constant(graph, source)
        assert read is not None
        assert isinstance(source, fx.Node)
        added = read_constant(read, c, groups_of(node), reader.repeat)
        raised = bias_value(graph, node, read) + added
        put_bias(graph, node, source, raised.to(read.dtype))
