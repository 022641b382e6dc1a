"""``quantize_onnx`` and its steps: the way in for float ONNX files."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quantkit import distributed, nvtx, plugins
from quantkit.calibrating import Checkpoint, choose, gather
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.graph.abstract import COMPUTE, Kind
from quantkit.graph.placement import place
from quantkit.graph.plan import Placement
from quantkit.interfaces import (
    BlockRounding,
    Calibrator,
    LayerRounding,
    Rounding,
    Statistic,
    Target,
)
from quantkit.onnx.calibrating import OnnxRunner
from quantkit.onnx.describing import OnnxDescription, describe_onnx
from quantkit.onnx.folding import apply_passes
from quantkit.onnx.lower import minimum_opset
from quantkit.onnx.quantized import QuantizedOnnx, planned
from quantkit.onnx.reading import read_onnx
from quantkit.recipe import Override, Recipe
from quantkit.workflow import resolve_recipe


def quantize_onnx(
    model: Path | str | ir.Model,
    recipe: str | Path | Recipe = "int8_ptq",
    *,
    calibration: Iterable[Any] | None = None,
    target: Target | str | None = None,
    cpu: str = "auto",
    float_layers: Mapping[str, str] | None = None,
) -> QuantizedOnnx:
    """A float ONNX model with the grids of a recipe, ready to export; ``model`` is not changed.

    Args:
        model: a file, or a model in memory.
        recipe: a name (see ``quantkit recipes``), a path to a YAML file, or a ``Recipe``.
        calibration: an iterable of input batches: tensors, tuples, or dicts by the file's names.
            Not needed where the recipe quantizes weights only.
        target: where the model is to run; what it cannot run is refused before any work.
        cpu: the processor to deploy to, for recipes that depend on it: ``auto`` is this one.
        float_layers: layers to leave in float beside those of the recipe, each with the reason.

    Raises:
        RecipeError: the recipe is unknown or malformed, has a pass that ONNX files have no form
            of, or ``target`` cannot run it.
        ModelFileError: the file cannot be read, or is not one of a float32 model.
        DataError: the calibration data are empty, misshapen, or hold NaN or infinity.

    Example:
        >>> import torch
        >>> x = ir.val("x", ir.DataType.FLOAT, ["N", 32])
        >>> w = ir.val("w", const_value=ir.tensor(torch.randn(32, 16).numpy(), name="w"))
        >>> node = ir.node("MatMul", [x, w], name="fc")
        >>> graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], name="small",
        ...                  opset_imports={"": 18})
        >>> quantized = quantize_onnx(
        ...     ir.Model(graph, ir_version=10), calibration=[torch.randn(8, 32)]
        ... )
        >>> quantized.plan.quantized
        ('fc',)
    """
    resolved = resolve_recipe(recipe, target=target, cpu=cpu)
    prepared = prepare_onnx(model, resolved, float_layers=float_layers)
    if prepared.observers:
        if calibration is None:
            raise DataError(
                f"recipe {resolved.name} quantizes activations and needs calibration data; pass "
                "calibration=batches, or use a weight-only recipe"
            )
        calibrate_onnx(prepared, calibration)
    round_onnx_weights(prepared)
    return prepared


@nvtx.phase("plan")
def prepare_onnx(
    model: Path | str | ir.Model,
    recipe: str | Path | Recipe,
    *,
    float_layers: Mapping[str, str] | None = None,
) -> QuantizedOnnx:
    """Read a model, run the recipe's passes, and plan: weights have grids, activations not yet.

    Raises:
        RecipeError: as ``quantize_onnx``, or ``float_layers`` names what the model has not.
        ModelFileError: as ``quantize_onnx``.
    """
    recipe = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe)
    specs = [s for scheme in recipe.schemes() for s in (scheme.weights, scheme.activations) if s]
    read = read_onnx(model, opset=minimum_opset(specs))
    apply_passes(read, [choice.name for choice in recipe.passes])
    description = describe_onnx(read.graph)
    reasons = dict(float_layers or {})
    extra = tuple(Override(module=glob.escape(name), scheme=None) for name in reasons)
    plan = place(
        description.graph, recipe.model_copy(update={"overrides": (*recipe.overrides, *extra)})
    )
    # Not the plan's decisions: an add is none once the layer before it is in float.
    known = [op.name for op in description.graph.ops if op.kind in COMPUTE or op.kind is Kind.ADD]
    if unknown := [name for name in reasons if name not in known]:
        raise RecipeError(
            f"float_layers names {unknown[0]!r}, which is no layer of the model; there are: "
            f"{', '.join(known)[:300]}"
        )
    plan = planned(plan, description, reasons, ignored={str(o) for o in extra})
    _need_float32(plan, description)
    calibrators = [
        plugins.find("calibrators", chosen.name, Calibrator)(**chosen.settings)
        for chosen in (recipe.calibrator, recipe.weight_calibrator)
    ]
    return QuantizedOnnx(read, description, plan, recipe, *calibrators)


def _need_float32(plan: Placement, description: OnnxDescription) -> None:
    """Refuse, before any data run, tensors that Q/DQ could not be written for."""
    for tensor in plan.tensors:
        dtype = description.value_of[tensor.tensor].dtype
        if dtype not in {None, ir.DataType.FLOAT}:
            raise ModelFileError(
                f"{tensor.tensor} is {str(dtype).lower()} in the model, and Q/DQ is written in "
                "float32; export the model in float32"
            )


@nvtx.phase("calibrate")
def calibrate_onnx(
    model: QuantizedOnnx,
    calibration: Iterable[Any] | None = None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
    keep: Iterable[Statistic] = (),
) -> None:
    """Run batches through the float model in ONNX Runtime, and give activations their grids.

    Arguments and errors are those of ``quantkit.calibrate``: batches stream, none is kept.
    """
    observe_onnx(model, calibration, statistics=statistics, checkpoint=checkpoint, keep=keep)
    grids = choose(list(model.observers.values()))
    for qparams in grids:
        # Those of the process that leads: another kind of processor may round otherwise.
        distributed.of_lead(qparams.scale)
        distributed.of_lead(qparams.zero_point)
    model.grids.update(zip(model.observers, grids, strict=True))


def observe_onnx(
    model: QuantizedOnnx,
    calibration: Iterable[Any] | None,
    *,
    statistics: Sequence[Path] = (),
    checkpoint: Checkpoint | None = None,
    keep: Iterable[Statistic] = (),
) -> int:
    """Fill the model's observers, from data or files, as `quantkit.calibrating.gather`."""
    runner = OnnxRunner(model.model, model.observed, model.observers)
    return gather(runner, calibration, statistics=statistics, checkpoint=checkpoint, keep=keep)


@nvtx.phase("round")
def round_onnx_weights(model: QuantizedOnnx) -> None:
    """Put weights and biases on their grids by the recipe's rounding; activations have theirs."""
    chosen = model.recipe.rounding
    kind = plugins.find_any("rounding", chosen.name, (Rounding, LayerRounding, BlockRounding))
    if not issubclass(kind, Rounding):
        raise RecipeError(
            f"the rounding {chosen.name} learns from layers' inputs, which ONNX files have no way "
            "for; quantize the PyTorch model that the file was made of, or set rounding: nearest"
        )
    model.round_weights(kind(**chosen.settings))
