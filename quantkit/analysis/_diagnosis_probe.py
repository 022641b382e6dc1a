"""What a layer is run by itself with: its inputs' quantizers, its weight and bias both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from quantkit import numerics
from quantkit.analysis._diagnosis_counts import Peaks
from quantkit.analysis._diagnosis_noise import Noise
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.batchnorm import layer_bias
from quantkit.graph.edit import evaluate_constant
from quantkit.model import MOVING, Layer, QuantizedModel
from quantkit.reconstruction.float_layers import FloatLayer
from quantkit.reconstruction.stream import Pieces

_CONVOLUTIONS = frozenset({Kind.CONV, Kind.CONV_TRANSPOSE})


@dataclass(eq=False)
class Probe:
    """One layer, what is put in its place for a local run, and what was measured.

    Attributes:
        layer: of the model.
        kind: of operator.
        start, stop: the operators of a local run; the first is where its inputs are quantized.
        inputs: the nodes of the quantizers of its activations.
        weight: of its weight in float and on the grid; ``None`` where it is on no grid.
        bias: the node that makes the bias, and its value in the quantized model.
        both, weights, activations: noise of its result with float inputs, where weight and
            activations, the weight alone, and activations alone are on their grids.
        inside: noise of its result in the whole model.
        peaks: of the channels of its input.
    """

    layer: Layer
    kind: Kind
    start: int
    stop: int
    inputs: tuple[fx.Node, ...]
    weight: tuple[Tensor, Tensor] | None
    bias: tuple[fx.Node, Tensor] | None
    both: Noise = field(default_factory=Noise)
    weights: Noise = field(default_factory=Noise)
    activations: Noise = field(default_factory=Noise)
    inside: Noise = field(default_factory=Noise)
    peaks: Peaks = field(default_factory=Peaks)

    @property
    def axis(self) -> int | None:
        """The dimension of the result that counts output channels."""
        if self.layer.weight_value is None and self.layer.weight is None:
            return None  # a product of activations
        return 1 if self.kind in _CONVOLUTIONS else -1


def in_float(
    model: QuantizedModel, floating: Mapping[str, FloatLayer] | None
) -> dict[fx.Node, Tensor]:
    """The float values of what depends on parameters alone, by node."""
    found: dict[fx.Node, Tensor] = {}
    for node in _quantized_constants(model):
        found[node] = evaluate_constant(model.graph, node.args[0])  # type: ignore[arg-type]
    for layer in model.layers():
        own = None if floating is None else floating.get(layer.name)
        if own is None:
            continue
        if layer.weight is not None:
            found[layer.node.args[1]] = own.weight  # type: ignore[index]
        bias = layer_bias(layer.node)
        if layer.bias is not None:
            found[bias] = torch.zeros_like(layer.bias) if own.bias is None else own.bias
    return found


def _quantized_constants(model: QuantizedModel) -> Iterator[fx.Node]:
    """The quantizers whose values no input changes."""
    moving: set[fx.Node] = set()
    for node in model.graph.graph.nodes:
        if node.op == "placeholder" or moving.intersection(node.all_input_nodes):
            moving.add(node)
        elif _is_quantizer(model, node):
            yield node


def _is_quantizer(model: QuantizedModel, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return isinstance(model.graph.get_submodule(str(node.target)), FakeQuantize)


def probe_of(
    model: QuantizedModel, pieces: Pieces, layer: Layer, floating: Mapping[fx.Node, Tensor]
) -> Probe | None:
    """How a layer is run by itself; ``None`` for a layer that no input reaches."""
    node = layer.node
    if node not in pieces.index:
        return None
    inputs = [_quantizer_before(model, node.args[0])]
    if layer.weight is None:
        inputs.append(_quantizer_before(model, node.args[1]))
    own = tuple(dict.fromkeys(found for found in inputs if found is not None))
    weight = None
    if layer.weight is not None:
        current = evaluate_constant(model.graph, layer.weight_source)
        quantized = numerics.fake_quantize(current, layer.weight.qparams)
        weight = floating[node.args[1]], quantized  # type: ignore[index]
    places = [pieces.index[found] for found in own if found in pieces.index]
    bias = layer_bias(node)
    return Probe(
        layer=layer, kind=model.plan.decision(layer.name).kind,
        start=min(places, default=pieces.index[node]), stop=pieces.index[node] + 1,
        inputs=own, weight=weight,
        bias=None if layer.bias is None else (bias, layer.bias.detach()),
    )  # fmt: skip


def _quantizer_before(model: QuantizedModel, node: object) -> fx.Node | None:
    """The quantizer whose values a layer reads, behind what only moves them."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        if _is_quantizer(model, node):
            return node
        if kind_of(node) not in MOVING or not node.args:
            return None
        node = node.args[0]
    return None
