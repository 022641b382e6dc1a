"""Go through a quantized model layer by layer beside the float one, to correct each in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit import numerics, sums
from quantkit.batches import Call
from quantkit.errors import DataError, RecipeError
from quantkit.graph.batchnorm import OUTPUT_AXIS, kept, layer_bias
from quantkit.graph.edit import constant
from quantkit.model import Layer, QuantizedModel
from quantkit.passes._biases import put_bias
from quantkit.passes._links import clip_behind
from quantkit.passes._moments import Moments, Sums
from quantkit.progress import track
from quantkit.reconstruction.blocks import blocks_of
from quantkit.reconstruction.float_layers import float_constants
from quantkit.reconstruction.padding import real_positions, without_padding
from quantkit.reconstruction.stream import Pieces, Values, named


@dataclass(frozen=True)
class Seen:
    """A layer, and what it puts out behind the quantized layers before it.

    Attributes:
        layer: of the model.
        moments: of its results in float and on the grids.
        bias: its bias, ``(channels,)`` float64; zeros for none.
        float_weight: its weight before rounding.
    """

    layer: Layer
    moments: Moments
    bias: Tensor
    float_weight: Tensor


@torch.no_grad()
def walk(model: QuantizedModel, calls: Sequence[Call], name: str) -> Iterator[Seen]:
    """Each layer that the plan quantizes and that can have a bias, in the order of execution.

    What was changed of a layer when the next is asked for, that and all behind it see. Between
    blocks of the model only what is alive there is kept, of all samples, twice.

    Args:
        model: its weights are rounded, and their float values were kept.
        calls: the data.
        name: of the pass, for messages.

    Raises:
        DataError: there are no calls.
        RecipeError: the float weights were not kept, or batch-norm was kept for training.
    """
    constants = _float_constants(model, calls, name)
    training = model.training
    model.eval()
    model.simulate()
    pieces = Pieces(model)
    floating = [pieces.start(call) for call in calls]
    quantized = [dict(values) for values in floating]
    real = [real_positions(named(values)) for values in floating]
    place = 0
    spans = blocks_of(model, pieces)
    try:
        for span in track(spans, name, total=len(spans)):
            for layer in span.layers:
                if (axis := channel_axis(layer)) is None:
                    continue
                moments = _moments(pieces, layer, axis, place, floating, quantized, real, constants)
                before = layer_bias(layer.node)
                yield Seen(layer, moments, _bias(layer, moments), constants[layer.weight_source])
                after = layer_bias(layer.node)
                if after is not before:  # in float it has the bias that it had
                    none = torch.zeros_like(_value(model, after))
                    constants[after] = constants.get(before, none)
            _advance(pieces, floating, place, span.stop, constants)
            _advance(pieces, quantized, place, span.stop, None)
            place = span.stop
    finally:
        model.train(training)


def _float_constants(model: QuantizedModel, calls: Sequence[Call], name: str) -> Values:
    if not calls:
        raise DataError(f"{name} looks at calibration data; pass at least one batch")
    if kept(model.graph):
        raise RecipeError(
            f"{name} changes biases, and those of kept batch-norms are computed; fold batch-norm: "
            f"passes [fold_batchnorm, {name}]"
        )
    constants = float_constants(model)
    if constants is None:
        raise RecipeError(
            f"{name} compares with the float weights, which rounding has overwritten; name it in "
            "the recipe's passes before weights are rounded, so that they are kept"
        )
    return dict(constants)


def channel_axis(layer: Layer) -> int | None:
    """The dimension of a layer's result that a bias runs along; ``None`` where it has none."""
    if layer.node.target not in OUTPUT_AXIS or layer.weight_value is None:
        return None
    value = layer.node.meta["val"]
    if layer.node.target is torch.ops.aten.linear.default:
        return int(value.dim()) - 1
    return 1 if value.dim() == layer.weight_value.dim() else None


def _moments(
    pieces: Pieces,
    layer: Layer,
    axis: int,
    place: int,
    floating: list[Values],
    quantized: list[Values],
    reals: list[Tensor | None],
    constants: Values,
) -> Moments:
    found, fresh, node = Sums(_window(pieces, layer)), Values(), layer.node
    stop = pieces.index[node] + 1
    for one, other, real in zip(floating, quantized, reals, strict=True):
        f = pieces.run(one, place, stop, quantized=False, constants=constants)[node]
        q = pieces.run(other, place, stop, quantized=True, constants=fresh)[node]
        # Padding counts for nothing. What is left has its features last, as it had before.
        f, q = without_padding(f, real), without_padding(q, real)
        found.add(f, q, min(axis, f.dim() - 1))
    return found.moments()


def _window(pieces: Pieces, layer: Layer) -> tuple[Tensor, Tensor] | None:
    """What all that reads a layer's result clips it at."""
    return clip_behind(pieces.model.graph, layer.node)


def _advance(
    pieces: Pieces, values: list[Values], start: int, stop: int, constants: Values | None
) -> None:
    """Take each call to ``stop``, one by one, so that few are in memory twice."""
    known: Values = {} if constants is None else constants
    for index, now in enumerate(values):
        values[index] = pieces.run(now, start, stop, quantized=constants is None, constants=known)


def _bias(layer: Layer, moments: Moments) -> Tensor:
    if layer.bias is None:
        return torch.zeros_like(moments.mean_f)
    return layer.bias.detach().double()


def _value(model: QuantizedModel, node: fx.Node) -> Tensor:
    value = constant(model.graph, node)
    assert value is not None
    return value


def on_sums_grid(layer: Layer, bias: Tensor, factor: Tensor | None = None) -> Tensor:
    """A bias on the grid of the integer sums that it joins; as it is where there is none.

    Where the sums have no room for it, NaN.

    Args:
        layer: of the model.
        bias: ``(channels,)``, float64.
        factor: on the scales of the layer's weights, which the sums then have too.
    """
    activation, weight = layer.activation, layer.weight
    if activation is None or weight is None or not activation.calibrated:
        return bias
    step = sums.bias_step(activation, weight, bias)
    if step is None:
        return bias
    if factor is not None and step.numel() == factor.numel():
        step = (step.double() * factor).float()
    rounded = numerics.round_to_multiple(bias.float(), step)
    return torch.where(rounded.abs() < step * 2.0**30, rounded, torch.nan).double()


def store_bias(model: QuantizedModel, layer: Layer, bias: Tensor) -> None:
    """Put a bias into a layer; one is made where there is none."""
    assert layer.weight_value is not None
    put_bias(model.graph, layer.node, layer.weight_source, bias.to(layer.weight_value.dtype))
