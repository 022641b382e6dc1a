"""Round the weights of a whole model, block by block, each told what those before it have done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from quantkit.batches import Call
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import BlockRounding, LayerRounding
from quantkit.model import Layer, QuantizedModel
from quantkit.progress import track
from quantkit.reconstruction.block import Block
from quantkit.reconstruction.blocks import Span, blocks_of
from quantkit.reconstruction.checkpoint import account, begun, learned_tensors
from quantkit.reconstruction.damping import UNTOLD, damped, trusted
from quantkit.reconstruction.descent import quickly
from quantkit.reconstruction.layers import (
    Form,
    form_of,
    gathered,
    own_weight,
    set_weight,
    spread,
)
from quantkit.reconstruction.moments import Moments, moments_of
from quantkit.reconstruction.problem import LayerProblem
from quantkit.reconstruction.stream import Stream, Values


def reconstruct(
    model: QuantizedModel,
    rounding: LayerRounding | BlockRounding,
    calls: Sequence[Call],
    *,
    checkpoint: Path | None = None,
) -> None:
    """Round every weight that the plan quantizes, from the model's beginning to its end.

    Inputs are those of the prefix that is quantized already, beside those of the float model.
    Between blocks only what is alive there is kept, of all samples.

    Args:
        model: calibrated; its weights are those of the float model.
        rounding: learns one layer at a time, or one block.
        calls: checked; all are kept in memory.
        checkpoint: a file that is written after each block; where it is there, the blocks that it
            holds are taken from it, and the result is that of a run that was not ended.

    Raises:
        DataError: there are no samples.
        ExportError: the checkpoint cannot be written.
        ModelFileError: the checkpoint is not readable, or of another run.
        RecipeError: a weight is computed from others, or several layers read it.
    """
    if not calls:
        raise DataError("a rounding that learns needs calibration data; pass at least one batch")
    _require_own_weights(model)
    training = model.training
    model.eval()
    model.simulate()
    stream = Stream(model, calls)
    spans = blocks_of(model, stream.pieces)
    try:
        done = None
        if checkpoint is not None:
            expected = [learned_tensors(stream.pieces, span) for span in spans]
            done = begun(checkpoint, account(model, rounding, calls), expected)
        for number, span in enumerate(track(spans, "rounding weights", total=len(spans))):
            floating = stream.ahead(span.stop)
            if done is None or not done.restore(number, learned_tensors(stream.pieces, span)):
                _round_block(stream, span, rounding, floating)
                if done is not None:
                    done.add(learned_tensors(stream.pieces, span))
            stream.move(span.stop, floating)
    finally:
        model.train(training)


def _round_block(
    stream: Stream,
    span: Span,
    rounding: LayerRounding | BlockRounding,
    floating: Sequence[Values],
) -> None:
    """Each layer of a block, and then, if the rounding is one of blocks, all together.

    Args:
        stream: at the beginning of the block.
        span: the block.
        rounding: learns one layer at a time, or one block.
        floating: the float values behind the block, of each call.
    """
    first = rounding.first if isinstance(rounding, BlockRounding) else rounding
    whole = {layer.name: own_weight(layer).detach().clone() for layer in span.layers}
    _round_layers(stream, span, first, whole)
    if isinstance(rounding, BlockRounding):
        rounding.round(Block(stream, span, floating, whole))


def _require_own_weights(model: QuantizedModel) -> None:
    """Refuse what would be rounded twice, each time for other inputs, or cannot be rounded."""
    readers: dict[int, str] = {}
    for layer in model.layers():
        if layer.weight is None:
            continue
        other = readers.setdefault(id(own_weight(layer)), layer.name)
        if other != layer.name:
            raise RecipeError(
                f"{other} and {layer.name} read one weight, which can learn its rounding for one "
                "of them alone; set rounding: nearest, or leave them in float by an override"
            )


def _round_layers(
    stream: Stream, span: Span, rounding: LayerRounding | None, whole: Mapping[str, Tensor]
) -> None:
    """Each layer of a block in turn; to nearest without a rounding, or without matrices.

    Args:
        stream: at the beginning of the block.
        span: the block.
        rounding: of layers.
        whole: the float weights, by layer.
    """
    floating: Values = {layer.weight_source: whole[layer.name] for layer in span.layers}
    for layer in span.layers:
        problem = None if rounding is None else problem_of(stream, layer, dict(floating))
        if problem is not None and rounding is not None:
            _apply(layer, problem, rounding)
        else:
            assert layer.weight is not None
            set_weight(layer, layer.weight(whole[layer.name]))


def problem_of(stream: Stream, layer: Layer, float_constants: Values) -> LayerProblem | None:
    """What a rounding is told of a layer; ``None`` for a form that it has no matrices of.

    Its moments are trusted as far as samples that are held out tell (`damping`).

    Args:
        stream: at the beginning of the layer's block.
        layer: of the block.
        float_constants: the float weights of the block, by the nodes that read them.
    """
    assert layer.weight is not None
    weight = float_constants[layer.weight_source]
    form = form_of(layer.node, weight)
    if form is None:
        return None
    seen, unseen = moments_of(stream, layer, form, float_constants)
    problem = _problem(layer, form, weight, seen)
    if not unseen.count:
        return damped(problem.alone, UNTOLD)
    return trusted(problem, _problem(layer, form, weight, unseen), quickly)


def _problem(layer: Layer, form: Form, weight: Tensor, moments: Moments) -> LayerProblem:
    assert layer.weight is not None
    quantized, crossed, floating = moments.means()
    qparams = layer.weight.qparams
    step, zero_point = spread(qparams, form.shape)
    return LayerProblem(
        name=layer.name,
        weight=form.matrices(weight.detach().float()),
        step=form.matrices(step),
        zero_point=form.matrices(zero_point),
        spec=qparams.spec,
        quantized=quantized,
        crossed=crossed,
        floating=floating,
        shared=form.shared(qparams.spec),
    )


def _apply(layer: Layer, problem: LayerProblem, rounding: LayerRounding) -> None:
    """Let a rounding have the layer, and keep what it found."""
    assert layer.weight is not None
    weight = own_weight(layer)
    form = form_of(layer.node, weight)
    assert form is not None
    integers, step = rounding.round(problem)
    layer.weight.set_qparams(gathered(form.weight(step), layer.weight.qparams))
    # By the grid's own arithmetic, so that simulation finds the same values again.
    with torch.no_grad():
        set_weight(
            layer, layer.weight(form.weight(problem.values(integers, step)).to(weight.dtype))
        )
