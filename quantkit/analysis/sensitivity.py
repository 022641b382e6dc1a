"""How much each layer, or each block, costs at the model's outputs when it alone is quantized.

To first order the errors of different layers add up at the outputs, and as they are nearly
independent their powers do. So a table of what each layer costs alone, in each of some formats,
predicts what any mixture costs: see `quantkit.analysis.mixed`.

What it costs to find out: one float run over the samples, another in which the values travel with
the layer that is tried, and for each layer and format a run of the rest of the model. That is
about ``2 + formats * layers / 2`` float runs; `Sensitivity.runs` tells exactly, in operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from quantkit.analysis._alone import Alone, isolated
from quantkit.analysis._prices import Price, price_of, unquantized
from quantkit.analysis._suffixes import Suffixes, baseline
from quantkit.analysis.formats import Format, named_formats
from quantkit.analysis.losses import By, Loss, Part
from quantkit.analysis.losses import Sensitivity as Sensitivity
from quantkit.batches import Call
from quantkit.errors import DataError, RecipeError
from quantkit.graph.edit import evaluate_constant
from quantkit.model import QuantizedModel
from quantkit.numerics import fake_quantize
from quantkit.progress import track
from quantkit.reconstruction.stream import Pieces

Metric: TypeAlias = Callable[[nn.Module], float]


def sensitivity(
    model: QuantizedModel,
    calls: Sequence[Call],
    *,
    by: By = "layer",
    metric: Metric | None = None,
    formats: Sequence[str | Format] = (),
) -> Sensitivity:
    """What each layer (or block) costs at the outputs, when it alone is quantized.

    The inputs and the weight of a layer count as its own, and so does the skip branch of the
    residual add that fuses into it; weights are rounded to the nearest. Both products of an
    attention are one layer. Grids of activations are those that the recipe's calibrator finds for
    ``calls`` (one that tries others at the outputs goes by the error of each tensor here). The
    model itself does not change, and need not be calibrated.

    Args:
        model: as ``prepare`` makes it, or ``quantize`` with ``rounding: nearest``, which leaves the
            weights to their quantizers: they are those of the float model.
        calls: inputs as ``model_calibration.calls_of`` makes them, a few samples each; kept.
        by: what is quantized at a time.
        metric: judges the model as well, once in float and for every part and format; the larger
            the better. Each is a whole run over the metric's data.
        formats: beside the recipe's own, by name (`named_formats`).

    Raises:
        RecipeError: a format is unknown, or nothing is quantized.
        DataError: there are no samples, or no output is of floats.
        ValueError: the weights were rounded by what learns from data.

    Example:
        >>> import quantkit
        >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
        >>> model = quantkit.prepare(net, "int8_ptq", example_inputs=(x,))
        >>> found = sensitivity(model, [((x,), {})], formats=["w4a8"])
        >>> found.columns, [part.name for part in found.parts]
        (('int8_ptq', 'w4a8'), ['0', '2'])
    """
    if not calls:
        raise DataError("sensitivities are measured on data, and there are none; give some")
    chosen = tuple(
        f if isinstance(f, Format) else named_formats(model.recipe, [f])[0] for f in formats
    )
    _require_measurable(model)
    alone = isolated(model, chosen, by)
    pieces = Pieces(alone.model)
    with torch.no_grad():
        known = baseline(alone, pieces, calls)
        if not known.outputs[0]:
            raise DataError("no output of the model is of floats, so there is nothing to judge by")
        alone.calibrate()
        suffixes = Suffixes(alone, pieces, calls, known)
        in_float = None if metric is None else metric(alone.model)
        measured = _measured(alone, suffixes, metric, chosen)
    parts = _parts(alone, known.macs, measured, chosen, in_float)
    return Sensitivity(
        recipe=model.recipe, formats=chosen, by=by, parts=parts, samples=known.samples,
        float_metric=in_float, runs=suffixes.runs,
        other_bytes=unquantized(alone.model, alone.description, alone.units),
    )  # fmt: skip


def _require_measurable(model: QuantizedModel) -> None:
    """Refuse what has nothing to measure, or no float weights any more."""
    if not model.plan.quantized:
        raise RecipeError(
            f"recipe {model.recipe.name} quantizes nothing of this model, so no layer is "
            "sensitive; `quantkit quantize` lists why"
        )
    layers = [layer for layer in model.layers() if layer.weight is not None]
    for layer in layers:
        assert layer.weight is not None
        weight = evaluate_constant(model.graph, layer.weight_source)
        if not bool((fake_quantize(weight, layer.weight.qparams) == weight).all()):
            return
    if layers:
        raise ValueError(
            "the model's weights lie on their grids already, so what rounding them costs cannot "
            "be seen; give the model that prepare makes, before round_weights"
        )


def _measured(
    alone: Alone, suffixes: Suffixes, metric: Metric | None, formats: Sequence[Format]
) -> Mapping[tuple[int, int], tuple[float, float | None]]:
    """Noise and metric of each unit in each format."""
    found: dict[tuple[int, int], tuple[float, float | None]] = {}
    order = sorted(range(len(alone.units)), key=lambda u: alone.start(u, suffixes.pieces))
    for unit in track(order, "quantizing one at a time"):
        suffixes.move(unit)
        for number in range(len(formats) + 1):
            if (unit, number) not in alone.plans:
                continue
            alone.switch(unit, number, True)
            value = None if metric is None else metric(alone.model)
            found[unit, number] = suffixes.noise(), value
            alone.switch(unit, number, False)
    return found


def _parts(
    alone: Alone,
    macs: Mapping[str, int],
    measured: Mapping[tuple[int, int], tuple[float, float | None]],
    formats: Sequence[Format],
    float_metric: float | None,
) -> tuple[Part, ...]:
    parts = []
    for index, unit in enumerate(alone.units):
        nothing = _loss(0.0, float_metric, price_of(alone.description, unit, None, {}, macs))
        losses: list[Loss | None] = []
        for number in range(len(formats) + 1):
            plan = alone.plans.get((index, number))
            if plan is not None:
                price = price_of(alone.description, unit, plan, alone.schemes[index, number], macs)
                losses.append(_loss(*measured[index, number], price))
            elif number > 0 and formats[number - 1].scheme is None:
                losses.append(nothing)
            else:
                losses.append(None)
        parts.append(
            Part(name=unit.name, layers=unit.layers, losses=tuple(losses), in_float=nothing)
        )
    return tuple(parts)


def _loss(noise: float, metric: float | None, price: Price) -> Loss:
    return Loss(
        noise=noise, metric=metric, weight_bytes=price.weight_bytes,
        bit_operations=price.bit_operations,
    )  # fmt: skip
