"""A captured model run piece by piece over kept samples: of each only what is still to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.batches import Call
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import QuantizedModel
from quantkit.reconstruction.padding import real_positions

#: The values of one call, by the node that made them.
Values = dict[fx.Node, Any]
Quantize: TypeAlias = Callable[[FakeQuantize, Tensor], Tensor]


class Pieces:
    """The operators of a model in order, without those that depend on parameters alone.

    Those are computed anew where they are read, so that a weight that has changed is seen.

    Attributes:
        nodes: the operators that depend on inputs.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self._module = model.graph
        moving: dict[fx.Node, None] = {}
        for node in model.graph.graph.nodes:
            if node.op == "placeholder" or any(n in moving for n in node.all_input_nodes):
                moving[node] = None
        self.nodes: tuple[fx.Node, ...] = tuple(n for n in moving if n.op != "output")
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self._last = {n: max((self._place(u) for u in n.users), default=-1) for n in self.nodes}

    def _place(self, node: fx.Node) -> int:
        return len(self.nodes) if node.op == "output" else self.index.get(node, -1)

    def start(self, call: Call) -> Values:
        """The model's inputs as values of its first operators."""
        args, kwargs = call
        ordered = {name: kwargs[name] for name in self.model.capture.kwargs if name in kwargs}
        flat = pytree.tree_leaves((args, ordered))
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        return dict(zip(inputs, flat, strict=True))

    def run(
        self,
        values: Values,
        start: int,
        stop: int,
        *,
        quantized: bool,
        constants: Values | None = None,
        instead: Mapping[fx.Node, Any] | None = None,
        quantize: Quantize | None = None,
    ) -> Values:
        """Run the operators from ``start`` up to ``stop``.

        Args:
            values: of one call, as they are before ``start``; not changed.
            start: index into ``nodes``.
            stop: the same.
            quantized: on the grids, or in float.
            constants: what depends on parameters alone, filled as it is needed: share it between
                calls while no parameter changes.
            instead: what to take for some nodes, such as the weights that are being learned.
            quantize: what to do in place of a quantizer, given it and the float values.
        """
        now = dict(values)
        found = {} if constants is None else constants
        for place in range(start, stop):
            node = self.nodes[place]
            if instead is not None and node in instead:
                now[node] = instead[node]
            elif node.op != "placeholder":
                now[node] = self._compute(node, now, found, quantized, instead or {}, quantize)
            for read in node.all_input_nodes:
                if self._last.get(read, place + 1) <= place:
                    now.pop(read, None)
        return now

    def live(self, place: int) -> list[fx.Node]:
        """The values that exist before operator ``place`` and are read there or later."""
        return [n for n in self.nodes[:place] if self._last[n] >= place]

    def _compute(
        self,
        node: fx.Node,
        now: Values,
        constants: Values,
        quantized: bool,
        instead: Mapping[fx.Node, Any],
        quantize: Quantize | None = None,
    ) -> Any:
        def value(read: fx.Node) -> Any:
            if read in now:
                return now[read]
            if read in instead:
                return instead[read]
            if read not in constants:
                constants[read] = self._compute(read, {}, constants, quantized, instead)
            return constants[read]

        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self._module.get_submodule(owner) if owner else self._module, name)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            module = self._module.get_submodule(str(node.target))
            if isinstance(module, FakeQuantize):
                x: Any = args[0]
                if not (quantized and module.calibrated):
                    return x
                return module(x) if quantize is None else quantize(module, x)
            return module(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class Stream:
    """Kept samples on their way through a model, in float and on the grids side by side.

    Memory is what is alive at one place of the model, of all samples, twice.

    Attributes:
        pieces: the model's operators.
        place: the operator that comes next.
        floating, quantized: the values of each call.
        real: of each call, which positions of its sequences are no padding; ``None``: all.
    """

    def __init__(self, model: QuantizedModel, calls: Sequence[Call]) -> None:
        self.pieces = Pieces(model)
        self.place = 0
        self.floating = [self.pieces.start(call) for call in calls]
        self.real = [real_positions(named(values)) for values in self.floating]
        self.quantized = [dict(values) for values in self.floating]

    @torch.no_grad()
    def ahead(self, stop: int) -> list[Values]:
        """The float values before ``stop``, of each call; the stream stays where it is."""
        constants: Values = {}
        return [
            self.pieces.run(v, self.place, stop, quantized=False, constants=constants)
            for v in self.floating
        ]

    @torch.no_grad()
    def move(self, stop: int, floating: list[Values]) -> None:
        """Go on to ``stop``; ``floating`` is what `ahead` gave, before weights were changed."""
        constants: Values = {}
        self.quantized = [
            self.pieces.run(v, self.place, stop, quantized=True, constants=constants)
            for v in self.quantized
        ]
        self.floating = floating
        self.place = stop


def named(inputs: Values) -> dict[str, Any]:
    """The inputs of a call by their names."""
    return {str(node.target): value for node, value in inputs.items()}


def sample_count(values: Values) -> int:
    """How many samples a call's values are of."""
    return max(
        (v.shape[0] for v in values.values() if isinstance(v, Tensor) and v.dim()), default=1
    )
