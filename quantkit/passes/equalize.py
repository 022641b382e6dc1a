"""Even out the channels between two layers, so that one grid serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from quantkit.graph.batchnorm import NORMAL, Normal, layer_bias
from quantkit.graph.edit import constant, set_constant
from quantkit.interfaces import Pass
from quantkit.passes._equalization import (
    Joint,
    columns_multiplied,
    equalized,
    rows_divided,
    strongest,
)
from quantkit.passes._links import Link, clip_behind, groups_of, limit_of, links_of, set_limit

#: Scales nearer to 1 than this (in relative terms) are no reason to touch a layer.
_NOTHING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """``W1' = W1 / s``, ``b1' = b1 / s``, ``W2' = W2 * s``, one ``s`` a channel between the two.

    Cross-layer equalization: Nagel et al. 2019 (arXiv:1906.04721), section 4.1, over all pairs of
    convolutions and linear layers in turn until no scale moves. Between them may be what treats
    each channel by itself; a ReLU6 becomes ``clamp(relu(x), max=6 / s)``, so the result is the
    same to rounding error. Run it behind `fold_batchnorm`.

    It is for weights with one scale a tensor, above all those of depthwise convolutions, whose
    channels differ most. Where each output channel has a scale of its own (`int8_ptq`), evening out
    weights gains nothing and the ranges of activations spread: leave it out there.

    Attributes:
        criterion: what is made equal to the largest weights that read a channel. ``weights``: the
            largest weights that make it (equation 11). ``both``: the geometric mean of those and of
            what the channel's values reach, three deviations from their mean by the batch-norm
            that was folded, since the values share a grid too; of layers without one, the weights.
        bound: scales lie between ``1 / bound`` and ``bound``.
    """

    criterion: Literal["weights", "both"] = "both"
    bound: float = 1e3

    def __post_init__(self) -> None:
        if self.criterion not in {"weights", "both"}:
            raise ValueError(f"criterion must be weights or both, got {self.criterion!r}")
        if not self.bound > 1.0:
            raise ValueError(f"bound must be above 1, got {self.bound}")

    def apply(self, graph: fx.GraphModule) -> int:
        """Equalize; returns how many links between layers were changed."""
        links = list(links_of(graph))
        found = [
            (link, scale)
            for link, scale in zip(links, self._scales(graph, links), strict=True)
            if float(scale.log().abs().max()) > _NOTHING
        ]
        for link, scale in found:
            _divide_first(graph, link, scale)
            for reader in link.readers:
                _scale_weight(graph, reader.node, columns=scale, repeat=reader.repeat)
        if found:
            graph.recompile()
        return len(found)

    def _scales(self, graph: fx.GraphModule, links: Sequence[Link]) -> list[Tensor]:
        layers: dict[fx.Node, int] = {}
        for link in links:
            for node in (link.first, *(reader.node for reader in link.readers)):
                layers.setdefault(node, len(layers))
        matrices = [strongest(_weight(graph, node), groups_of(node)) for node in layers]
        joints = [
            Joint(
                first=layers[link.first],
                readers=tuple((layers[r.node], r.repeat) for r in link.readers),
                reach=_reach(graph, link) if self.criterion == "both" else None,
            )
            for link in links
        ]
        return equalized(matrices, joints, bound=self.bound)


def _weight(graph: fx.GraphModule, layer: fx.Node) -> Tensor:
    value = constant(graph, layer.args[1])
    assert value is not None  # a link has seen it
    return value


def _reach(graph: fx.GraphModule, link: Link) -> Tensor | None:
    """The largest value of each channel at three deviations, behind ReLU and limits.

    ``None`` where no batch-norm was folded.
    """
    normal: Normal | None = link.first.meta.get(NORMAL)
    if normal is None:
        return None
    mean, spread = normal.mean.double(), 3.0 * normal.std.double()
    high, low = mean + spread, mean - spread
    if (clip := clip_behind(graph, link.first)) is not None:
        low, high = torch.maximum(low, clip[0]), torch.minimum(high, clip[1])
    return torch.maximum(high, -low).clamp(min=0.0)


def _divide_first(graph: fx.GraphModule, link: Link, scale: Tensor) -> None:
    """Divide what the first layer puts out, and the limits behind it."""
    first, bias = link.first, layer_bias(link.first)
    _scale_weight(graph, first, rows=scale)
    if (value := constant(graph, bias)) is not None:
        set_constant(graph, str(bias.target), (value.detach().double() / scale).to(value.dtype))
    if NORMAL in first.meta:
        normal: Normal = first.meta[NORMAL]
        factor = (1.0 / scale).to(normal.mean.dtype)
        first.meta[NORMAL] = Normal(normal.mean * factor, normal.std * factor)
    for clip in link.clips:
        set_limit(graph, clip, link, limit_of(graph, clip).flatten() / scale)


def _scale_weight(
    graph: fx.GraphModule,
    layer: fx.Node,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    repeat: int = 1,
) -> None:
    weight, source = _weight(graph, layer), layer.args[1]
    assert isinstance(source, fx.Node)
    matrix: Any = weight.detach().double()
    matrix = matrix.reshape(groups_of(layer), -1, *weight.shape[1:])
    if rows is not None:
        matrix = rows_divided(matrix, rows)
    if columns is not None:
        matrix = columns_multiplied(matrix, columns, repeat)
    set_constant(graph, str(source.target), matrix.reshape(weight.shape).to(weight.dtype))
