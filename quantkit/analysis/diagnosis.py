"""What quantization does to each layer of a model, and how its grids fit the values.

Each layer is run with float inputs, so that its error is its own: with weight and activations on
their grids, with the weight alone, and with the activations alone. Beside that the whole model
runs on its grids, which tells where errors add up. Nothing of a call is kept but sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from quantkit.analysis._diagnosis_counts import Counts, Peaks
from quantkit.analysis._diagnosis_probe import Probe
from quantkit.analysis._diagnosis_run import Runs, on_grids
from quantkit.analysis._diagnosis_told import times as times
from quantkit.analysis._diagnosis_values import Diagnosis as Diagnosis
from quantkit.analysis._diagnosis_values import GridUse as GridUse
from quantkit.analysis._diagnosis_values import LayerDiagnosis as LayerDiagnosis
from quantkit.analysis._diagnosis_values import Outlier as Outlier
from quantkit.batches import Call
from quantkit.errors import DataError, RecipeError
from quantkit.graph.abstract import Kind
from quantkit.graph.edit import evaluate_constant
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calls_of
from quantkit.numerics import fake_quantize
from quantkit.progress import track
from quantkit.recipe import CENTER
from quantkit.reconstruction.float_layers import FloatLayer
from quantkit.reconstruction.stream import sample_count


def diagnose(
    model: QuantizedModel,
    data: Iterable[Any],
    *,
    samples: int = 64,
    floating: Mapping[str, FloatLayer] | None = None,
) -> Diagnosis:
    """What quantization does to each layer, on some samples; the model does not change.

    Takes about seven float runs over the samples. Padding of sentences is left out where the
    inputs hold a mask.

    Args:
        model: calibrated. Where its recipe rounds weights to the nearest, its weights are still
            those of the float model; else give these as ``floating``.
        data: batches of inputs; the first samples are taken.
        samples: how many.
        floating: what `float_parameters` has said before the weights were rounded.

    Raises:
        RecipeError: nothing of the model is quantized, or it was centered (see
            `leave_centering_out`).
        DataError: there are no samples, or the model is not calibrated.
        ValueError: the weights were rounded by what learns from data, and ``floating`` is absent.

    Example:
        >>> import quantkit
        >>> from torch import nn
        >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
        >>> found = diagnose(quantkit.quantize(net, "int8_ptq", calibration=[x]), [x])
        >>> [layer.name for layer in found.layers]
        ['0', '2']
        >>> found.layers[1].activations[0].low
        0.0
    """
    _require(model, floating)
    calls = calls_of(model.capture, data, samples)
    if not calls:
        raise DataError("a diagnosis is made on data, and there are none; give some")
    return _diagnosed(model, calls, floating)


def float_parameters(model: QuantizedModel) -> dict[str, FloatLayer]:
    """Copies of the weights and biases of the quantized layers, before they are rounded.

    Args:
        model: as ``prepare`` makes it, before ``round_weights``.
    """
    found = {}
    for layer in model.layers():
        if layer.weight is not None:
            weight = evaluate_constant(model.graph, layer.weight_source).detach().clone()
            bias = None if layer.bias is None else layer.bias.detach().clone()
            found[layer.name] = FloatLayer(weight, bias)
    return found


def leave_centering_out(model: QuantizedModel) -> None:
    """Let what is still to be done to a prepared model leave its tensors where they are.

    The pass ``center`` shifts a tensor and changes no code of its grid. So a diagnosis of the grids
    before is one of those behind, and there the float model's tensors can be compared with.

    Args:
        model: as ``prepare`` makes it. It is not to be deployed then.
    """
    kept = tuple(choice for choice in model.recipe.passes if choice.name != CENTER)
    model.recipe = model.recipe.model_copy(update={"passes": kept})


def _require(model: QuantizedModel, floating: Mapping[str, FloatLayer] | None) -> None:
    """Refuse what has nothing to tell."""
    if any(name == "centers" for name, _ in model.named_children()):
        raise RecipeError(
            f"recipe {model.recipe.name}: center has shifted the tensors of this model away from "
            "those in float; call leave_centering_out(prepared) before the model is completed: "
            "its grids have the same codes"
        )
    if not model.plan.quantized:
        raise RecipeError(
            f"recipe {model.recipe.name} quantizes nothing of this model, so there is nothing to "
            "diagnose; `quantkit quantize` lists why"
        )
    idle = next((name for name, q in model.quantizers.items() if not q.calibrated), None)
    if idle is not None:
        raise DataError(
            f"tensor {idle!r} has no grid yet; calibrate the model before it is diagnosed"
        )
    if floating is None and _all_on_grids(model):
        raise ValueError(
            "the model's weights lie on their grids already, so what rounding them costs cannot "
            "be seen; pass floating=float_parameters(model), taken before round_weights"
        )


def _all_on_grids(model: QuantizedModel) -> bool:
    """Whether there are weights, and quantizing changes none of them."""
    known = [(layer, layer.weight) for layer in model.layers() if layer.weight is not None]
    for layer, quantizer in known:
        weight = evaluate_constant(model.graph, layer.weight_source)
        if not torch.equal(fake_quantize(weight, quantizer.qparams), weight):
            return False
    return bool(known)


def _diagnosed(
    model: QuantizedModel, calls: Sequence[Call], floating: Mapping[str, FloatLayer] | None
) -> Diagnosis:
    samples = 0
    with on_grids(model), torch.no_grad():
        runs = Runs(model, floating)
        for call in track(calls, "diagnosing"):
            values = runs.pieces.start(call)
            samples += sample_count(values)
            runs.run(values)
        layers = tuple(_layer(runs, probe) for probe in runs.probes)
    others = [counts.use() for module, counts in runs.counts.items() if module not in runs.read]
    noises = [noise.relative for noise in runs.outputs]
    return Diagnosis(
        recipe=model.recipe.name, samples=samples, noise=sum(noises), layers=layers,
        others=tuple(use for use in others if use is not None),
    )  # fmt: skip


def _layer(runs: Runs, probe: Probe) -> LayerDiagnosis:
    found = [runs.counts[runs.module(node)].use(probe.peaks) for node in probe.inputs]
    found.append(_of_weight(probe))
    return LayerDiagnosis(
        name=probe.layer.name,
        kind=str(probe.kind),
        noise=probe.both.relative,
        weights_noise=None if probe.weight is None else probe.weights.relative,
        activations_noise=probe.activations.relative if probe.inputs else None,
        mean_share=probe.both.mean_share,
        model_noise=probe.inside.relative,
        grids=tuple(use for use in found if use is not None),
    )


def _of_weight(probe: Probe) -> GridUse | None:
    quantizer = probe.layer.weight
    if probe.weight is None or quantizer is None:
        return None
    counts, peaks = Counts(quantizer.name, "weight", quantizer.qparams), Peaks()
    counts.update(probe.weight[0])
    peaks.update(probe.weight[0], _OUTPUTS.get(probe.kind, -1))
    return counts.use(peaks)


#: The dimension of a weight that counts output channels; of others the last.
_OUTPUTS = {Kind.CONV: 0, Kind.CONV_TRANSPOSE: 1, Kind.LINEAR: 0}
