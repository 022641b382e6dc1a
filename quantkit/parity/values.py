"""The tensors inside a model that a plan knows by name, while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

from quantkit import batches as batches_of
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import LAYER, TENSOR, QuantizedModel

Kind: TypeAlias = Literal["layer", "activation"]
#: By kind and the plan's name.
Values: TypeAlias = dict[tuple[Kind, str], np.ndarray]


class Interior:
    """A model whose layers' results and activations behind quantizers can be read.

    Args:
        model: as it is to run: quantizers on for the simulation, off for the float model.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self.model = model
        self._known: dict[fx.Node, tuple[Kind, str]] = {}
        for node in model.graph.graph.nodes:
            if (layer := node.meta.get(LAYER)) is not None:
                self._known[node] = ("layer", layer)
            elif (tensor := node.meta.get(TENSOR)) is not None and self._moves(node):
                self._known.setdefault(node, ("activation", tensor))

    def _moves(self, node: fx.Node) -> bool:
        """Whether a quantizer is one of activations: a weight's has no observer."""
        module = self.model.graph.get_submodule(str(node.target))
        return isinstance(module, FakeQuantize) and module.observer is not None

    def names(self, kind: Kind) -> frozenset[str]:
        """All names of one kind."""
        return frozenset(name for found, name in self._known.values() if found == kind)

    def run(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Values:
        """Every known tensor of one call."""
        captured = self.model.capture
        names = captured.input_names[: len(captured.args)]
        args, kwargs = batches_of.bind_inputs(args, kwargs, names)
        reader = _Reader(self.model.graph, self._known)
        self.model.eval()
        with torch.no_grad():
            ordered = [kwargs[name] for name in captured.kwargs if name in kwargs]
            reader.run(*args, *ordered)
        return reader.values


class _Reader(fx.Interpreter):
    """Runs a graph, and keeps the tensors of some nodes."""

    def __init__(self, module: fx.GraphModule, known: Mapping[fx.Node, tuple[Kind, str]]) -> None:
        super().__init__(module)
        self._known = known
        self.values: Values = {}

    def run_node(self, n: fx.Node) -> Any:
        """As the base does."""
        result = super().run_node(n)
        if n in self._known and isinstance(result, Tensor):
            self.values.setdefault(self._known[n], result.detach().float().cpu().numpy())
        return result
