"""Run a captured graph over data and keep of some tensors what scales are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.batches import Call
from quantkit.passes._scaling_maths import Seen

#: Vectors of each tensor that errors are computed on.
ROWS = 1024

#: Of one call, the shape of each tensor and the value of each number, by node.
Shapes = dict[fx.Node, Any]


@torch.no_grad()
def look(
    module: fx.GraphModule, sources: Sequence[fx.Node], calls: Sequence[Call], *, seed: int = 0
) -> tuple[dict[fx.Node, Seen], Shapes]:
    """What the data show of each tensor, and the sizes that the first call has in the graph.

    Args:
        module: captured, in evaluation mode.
        sources: nodes of tensors.
        calls: the data.
        seed: of the vectors that are drawn where there are many.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(ROWS // max(len(calls), 1), 1)
    kept: dict[fx.Node, _Kept] = {source: _Kept() for source in sources}
    shapes: Shapes = {}
    for call in calls:
        _Looking(module, kept, shapes, most, generator).run(
            *_flat(module, call), enable_io_processing=False
        )
    return {source: k.seen() for source, k in kept.items() if k.rows}, shapes


def _flat(module: fx.GraphModule, call: Call) -> list[Tensor]:
    """The inputs of a call in the order of the graph's placeholders."""
    args, kwargs = call
    names = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
    return [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]


class _Kept:
    """What is kept of one tensor, call by call."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.largest: Tensor | None = None
        self.total: Tensor | None = None
        self.count = 0

    def add(self, x: Tensor, most: int, generator: torch.Generator) -> None:
        flat = x.detach().float().reshape(-1, x.shape[-1])
        if not len(flat):
            return
        magnitude = flat.abs()
        largest, total = magnitude.amax(0), magnitude.double().sum(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.total = total if self.total is None else self.total + total
        self.count += len(flat)
        if len(flat) > most:
            flat = flat[torch.randperm(len(flat), generator=generator)[:most]]
        self.rows.append(flat.clone())

    def seen(self) -> Seen:
        assert self.largest is not None
        assert self.total is not None
        return Seen(torch.cat(self.rows), self.largest, (self.total / self.count).float())


class _Looking(fx.Interpreter):
    """Runs the graph, keeps what is asked for, and notes sizes."""

    def __init__(
        self,
        module: fx.GraphModule,
        kept: dict[fx.Node, _Kept],
        shapes: Shapes,
        most: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(module)
        self._kept, self._shapes, self._most, self._generator = kept, shapes, most, generator

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept:
            self._kept[n].add(value, self._most, self._generator)
        if n not in self._shapes:
            self._shapes[n] = value.shape if isinstance(value, Tensor) else value
        return value
