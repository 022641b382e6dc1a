"""A block as a rounding sees it: its layers, its inputs from both prefixes, and its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit.errors import RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import Layer
from quantkit.numerics import QParams
from quantkit.reconstruction.blocks import Span
from quantkit.reconstruction.layers import own_weight, set_weight
from quantkit.reconstruction.moments import held_out
from quantkit.reconstruction.stream import Pieces, Quantize, Stream, Values, sample_count


@dataclass(frozen=True)
class BlockLayer:
    """One layer of a block.

    Attributes:
        name: the plan's.
        weight: the float weight.
        rounded: the weight as it lies on the grid now, to begin with.
        qparams: the grid.
        bias: as it is in the model; ``None`` where there is none.
    """

    name: str
    weight: Tensor
    rounded: Tensor
    qparams: QParams
    bias: Tensor | None


class Block:
    """A piece of the model between two places, and all samples at both.

    Args:
        stream: at the block's beginning.
        span: the block.
        floating: the float values behind it, of each call.
        weights: the float weights of its layers, which lie on their grids already.

    Attributes:
        name: the path that its layers have in common.
        layers: those whose weights are to be rounded.
        activations: the quantizers of activations that are read within and nowhere else, by name.
        seen: the numbers of the calls to learn from.
        told: those of the calls to judge by, which no rounding has learned from; where there are
            too few calls for that, all.
    """

    def __init__(
        self,
        stream: Stream,
        span: Span,
        floating: Sequence[Values],
        weights: Mapping[str, Tensor],
    ) -> None:
        if span.output is None:
            raise RecipeError(
                f"the block {span.name} hands on several tensors, so there is no one result to "
                "rebuild; set rounding: adaround, which learns one layer at a time"
            )
        self.name = span.name
        self._stream, self._span = stream, span
        self._output: fx.Node = span.output
        self._layers = {layer.name: layer for layer in span.layers}
        self.layers = tuple(_seen(layer, weights[layer.name]) for layer in span.layers)
        self._targets = [values[self._output] for values in floating]
        self.activations = own_quantizers(stream.pieces, span)
        self.seen = [i for i in range(len(floating)) if not held_out(i)]
        self.told = [i for i in range(len(floating)) if held_out(i)] or self.seen

    def batches(self, samples: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Numbers of ``seen`` calls that hold about so many samples, ``steps`` times, by chance.

        Calls of one batch have one shape.
        """
        shapes = {index: tuple(self._targets[index].shape[1:]) for index in self.seen}
        for _ in range(steps):
            drawn = torch.randperm(len(self.seen), generator=generator).tolist()
            order = [self.seen[number] for number in drawn]
            chosen: list[int] = []
            count = 0
            for index in order:
                if shapes[index] == shapes[order[0]] and count < samples:
                    chosen.append(index)
                    count += sample_count(self._stream.floating[index])
            yield chosen

    def target(self, calls: Sequence[int]) -> Tensor:
        """What the float model makes of these calls here."""
        return torch.cat([self._targets[index] for index in calls])

    def inputs(self, calls: Sequence[int], *, quantized: bool) -> Values:
        """What comes in, from the prefix on its grids or from that in float."""
        source = self._stream.quantized if quantized else self._stream.floating
        return _joined([source[index] for index in calls])

    def run(
        self,
        inputs: Values,
        weights: Mapping[str, Tensor],
        biases: Mapping[str, Tensor] | None = None,
        quantize: Quantize | None = None,
    ) -> Tensor:
        """The block's result with these weights (by layer, on their grids already).

        Gradients flow to weights and biases.

        Args:
            inputs: from `inputs`.
            weights: one for each of ``layers``.
            biases: for some of them, in place of the model's.
            quantize: what to do in place of an activation's quantizer.
        """
        instead: Values = {}
        for name, value in weights.items():
            read = self._layers[name].node.args[1]
            assert isinstance(read, fx.Node)
            instead[read] = value
        for name, bias in (biases or {}).items():
            node = self._layers[name].node
            read = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            assert isinstance(read, fx.Node)  # a layer of `layers` with a bias
            instead[read] = bias
        values = self._stream.pieces.run(
            inputs, self._span.start, self._span.stop,
            quantized=True, instead=instead, quantize=quantize,
        )  # fmt: skip
        result = values[self._output]
        assert isinstance(result, Tensor)
        return result

    def set_weight(self, name: str, values: Tensor, qparams: QParams | None = None) -> None:
        """Keep what was learned for a layer: values on its grid, or on another of the same form."""
        layer = self._layers[name]
        assert layer.weight is not None
        if qparams is not None:
            layer.weight.set_qparams(qparams)
        set_weight(layer, layer.weight(values.to(own_weight(layer).dtype)))

    def set_bias(self, name: str, values: Tensor) -> None:
        """Keep a bias that was learned."""
        bias = self._layers[name].bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(values)


def own_quantizers(pieces: Pieces, span: Span) -> dict[str, FakeQuantize]:
    """The quantizers of activations all of whose uses lie within, by name."""
    inside: dict[str, bool] = {}
    for place, node in enumerate(pieces.nodes):
        if node.op == "call_module":
            within = span.start <= place < span.stop
            inside[str(node.target)] = inside.get(str(node.target), True) and within
    modules = (pieces.model.graph.get_submodule(path) for path, own in inside.items() if own)
    return {q.name: q for q in modules if isinstance(q, FakeQuantize) and q.observer is not None}


def _seen(layer: Layer, weight: Tensor) -> BlockLayer:
    assert layer.weight is not None
    rounded = own_weight(layer).detach().clone()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    return BlockLayer(layer.name, weight, rounded, layer.weight.qparams, bias)


def _joined(parts: Sequence[Values]) -> Values:
    """Values of several calls as those of one; what is no tensor of samples is that of the first.

    Sizes that were read of an input (a dynamic batch) become those of the whole.
    """
    counts = [sample_count(part) for part in parts]
    whole: Values = {}
    for node, first in parts[0].items():
        if isinstance(first, Tensor) and first.dim() and first.shape[0] == counts[0]:
            whole[node] = torch.cat([part[node] for part in parts])
        elif isinstance(first, int) and first == counts[0]:
            whole[node] = sum(counts)
        else:
            whole[node] = first
    return whole
