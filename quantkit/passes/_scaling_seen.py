"""Run a captured graph over data and keep of some tensors what scales are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.batches import Call
from quantkit.passes._scaling_maths import Seen
from quantkit.reconstruction.moments import held_out

#: Vectors of each tensor that errors are computed on.
ROWS = 1024

#: Of one call, the shape of each tensor and the value of each number, by node.
Shapes = dict[fx.Node, Any]


@torch.no_grad()
def look(
    module: fx.GraphModule, sources: Sequence[fx.Node], calls: Sequence[Call], *, seed: int = 0
) -> tuple[dict[fx.Node, Seen], Shapes]:
    """What the data show of each tensor, and the sizes that the first call has in the graph.

    Magnitudes are those of all calls but the ones held out, vectors are of these: a channel that
    few samples wake, scaled up by what was seen of it, then shows what it does to the others.

    Args:
        module: captured, in evaluation mode.
        sources: nodes of tensors.
        calls: the data.
        seed: of the vectors that are drawn where there are many.
    """
    generator = torch.Generator().manual_seed(seed)
    told = {i for i in range(len(calls)) if held_out(i)} or set(range(len(calls)))
    seen = {i for i in range(len(calls)) if not held_out(i)}
    most = max(ROWS // max(len(told), 1), 1)
    kept: dict[fx.Node, _Kept] = {source: _Kept() for source in sources}
    shapes: Shapes = {}
    for i, call in enumerate(calls):
        rows = most if i in told else 0
        _Looking(module, kept, shapes, rows, i in seen, generator).run(
            *_flat(module, call), enable_io_processing=False
        )
    return {s: k.seen() for s, k in kept.items() if k.rows and k.count}, shapes


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

    def see(self, x: Tensor) -> None:
        """Take in the magnitudes of a tensor."""
        flat = x.detach().float().reshape(-1, x.shape[-1])
        if not len(flat):
            return
        magnitude = flat.abs()
        largest, total = magnitude.amax(0), magnitude.double().sum(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self.total = total if self.total is None else self.total + total
        self.count += len(flat)

    def draw(self, x: Tensor, most: int, generator: torch.Generator) -> None:
        """Keep some of its vectors."""
        flat = x.detach().float().reshape(-1, x.shape[-1])
        if len(flat) > most:
            flat = flat[torch.randperm(len(flat), generator=generator)[:most]]
        if len(flat):
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
        rows: int,
        seen: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(module)
        self._kept, self._shapes, self._rows, self._generator = kept, shapes, rows, generator
        self._seen = seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept:
            if self._seen:
                self._kept[n].see(value)
            if self._rows:
                self._kept[n].draw(value, self._rows, self._generator)
        if n not in self._shapes:
            self._shapes[n] = value.shape if isinstance(value, Tensor) else value
        return value
