"""``quantize`` and its steps: prepare, calibrate, round the weights, correct what that costs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quantkit import batches, hardware, numerics, nvtx, plugins
from quantkit.errors import DataError, RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.graph.aten import Description, describe
from quantkit.graph.attention import split_attention
from quantkit.graph.capture import Capture, DynamicShapes, capture
from quantkit.graph.centering import planned_to_shift
from quantkit.graph.edit import evaluate_constant
from quantkit.graph.functionalize import functionalize
from quantkit.graph.placement import place
from quantkit.graph.regions import STUB, seen_by_stubs
from quantkit.interfaces import (
    BlockRounding,
    Calibrator,
    DataPass,
    Finding,
    LayerRounding,
    ModelPass,
    Pass,
    Rounding,
    Severity,
    Target,
)
from quantkit.keeping import Judge, parted
from quantkit.loading import require_finite
from quantkit.model import QuantizedModel, insert_quantizers
from quantkit.model_calibration import calibrate, calls_of
from quantkit.recipe import PlugIn, Recipe, read_recipe
from quantkit.reconstruction.float_layers import float_constants, forget_float, keep_float
from quantkit.reconstruction.layers import set_weight
from quantkit.reconstruction.steps import reconstruct
from quantkit.settling import make_room_for_bias, round_bias

T = TypeVar("T")

#: The kinds of passes and roundings that a recipe may name.
PASSES = (Pass, DataPass, ModelPass)
ROUNDINGS = (Rounding, LayerRounding, BlockRounding)


def quantize(
    model: nn.Module | torch.export.ExportedProgram,
    recipe: str | Path | Recipe = "int8_ptq",
    *,
    example_inputs: tuple[Any, ...] | None = None,
    calibration: Iterable[Any] | None = None,
    statistics: Sequence[Path] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
    target: Target | str | None = None,
    cpu: str = "auto",
    checkpoint: Path | str | None = None,
) -> QuantizedModel:
    """A quantized copy of ``model``, calibrated and ready to export or to train.

    Args:
        model: a module, or a program that ``torch.export`` made.
        recipe: a name (see ``quantkit recipes``), a path to a YAML file, or a ``Recipe``.
        example_inputs: positional inputs as a tuple; the first batch of ``calibration`` if absent.
        calibration: an iterable of input batches: tensors, tuples, or dicts of keyword inputs.
            Not needed where the recipe quantizes weights only.
        statistics: files that ``quantkit calibrate`` wrote of this model, to be merged: the data
            do not run then, and ``calibration`` serves only recipes that judge by the outputs.
        example_kwargs: keyword inputs.
        dynamic_shapes: see ``graph.capture.capture``.
        target: where the model is to run; what it cannot run is refused before any work.
        cpu: the processor to deploy to, for recipes that depend on it: ``auto`` is this one.
        checkpoint: a file for a rounding that learns, see `round_weights`.

    Raises:
        RecipeError: the recipe is unknown or malformed, or ``target`` cannot run it; or there is a
            checkpoint, and its rounding learns nothing.
        CaptureError: the model does not export.
        DataError: the calibration data are empty, misshapen, or hold NaN or infinity.
        ModelFileError: the statistics or the checkpoint are not readable, or of another model.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        >>> batches = [torch.randn(8, 64) for _ in range(4)]
        >>> qmodel = quantize(model, calibration=batches)
        >>> qmodel.plan.quantized
        ('0', '2')
    """
    resolved = resolve_recipe(recipe, target=target, cpu=cpu)
    if checkpoint is not None:
        require_learning(resolved)
    samples, again = calibration, calibration
    captured = isinstance(model, torch.export.ExportedProgram)
    if example_inputs is None and example_kwargs is None and not (captured and statistics):
        if calibration is None:
            raise DataError(
                "neither example_inputs nor calibration batches were given; pass one of them"
            )
        example_inputs, example_kwargs, samples = _first_batch(calibration)
    if samples is not None and (needed := samples_needed(resolved)):
        again, samples = _readable_again(samples, needed)
    prepared = prepare(
        model, resolved, example_inputs=example_inputs or (), example_kwargs=example_kwargs,
        dynamic_shapes=dynamic_shapes, calibration=again,
    )  # fmt: skip
    if any(True for _ in prepared.of_role("activation")):
        if samples is None and not statistics:
            raise DataError(
                f"recipe {resolved.name} quantizes activations and needs calibration data; pass "
                "calibration=batches, or use a weight-only recipe"
            )
        calibrate(prepared, samples, statistics=statistics)
    round_weights(prepared, again, checkpoint=checkpoint)
    correct(prepared, again)
    return prepared


def resolve_recipe(
    recipe: str | Path | Recipe, *, target: Target | str | None = None, cpu: str = "auto"
) -> Recipe:
    """The recipe of a name or path, fitted to the processor, and accepted by the target.

    Raises:
        RecipeError: it is unknown, malformed, names a plug-in that is not there, or ``target``
            cannot run it; the message says which recipe to use instead.
    """
    found = recipe if isinstance(recipe, Recipe) else _find_recipe(recipe)
    hardware.named_cpu(cpu)  # a misspelt name is refused also where no grid depends on it
    weights = [s.weights for s in (found.scheme, *(o.scheme for o in found.overrides)) if s]
    if any(w is not None and w.bits_without_vnni is not None for w in weights):
        found = found.with_weight_bits(hardware.weight_bits(hardware.named_cpu(cpu)))
    for calibrator in (found.calibrator, found.weight_calibrator):
        _plugin("calibrators", calibrator, Calibrator)
    _any_plugin("rounding", found.rounding, ROUNDINGS)
    for choice in found.passes:
        _any_plugin("passes", choice, PASSES)
    for finding in refusals(found, target):
        if finding.severity is Severity.ERROR:
            raise RecipeError(f"recipe {found.name}: {finding.why} {finding.fix}")
    return found


def refusals(recipe: Recipe, target: Target | str | None) -> list[Finding]:
    """What ``target`` cannot run of a recipe; nothing where there is no target."""
    if target is None:
        return []
    if isinstance(target, str):
        target = plugins.find("targets", target, Target)()
    return target.refusals(recipe.schemes())


def prepare(
    model: nn.Module | torch.export.ExportedProgram,
    recipe: str | Path | Recipe,
    *,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
    calibration: Iterable[Any] | None = None,
) -> QuantizedModel:
    """Capture a copy of ``model``, run the recipe's passes, and put quantizers where they belong.

    ``model`` itself is not changed. Weights have their grids afterwards; activations pass through
    unchanged until ``calibrate``. ``calibration`` (which can be read again) is for passes that look
    at data.
    """
    recipe = recipe if isinstance(recipe, Recipe) else resolve_recipe(recipe)
    captured = transformed(
        model, recipe, example_inputs=example_inputs, example_kwargs=example_kwargs,
        dynamic_shapes=dynamic_shapes, calibration=calibration,
    )  # fmt: skip
    return planned(captured, recipe, seen_by_stubs(model) if isinstance(model, nn.Module) else {})


def transformed(
    model: nn.Module | torch.export.ExportedProgram,
    recipe: Recipe,
    *,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
    calibration: Iterable[Any] | None = None,
) -> Capture:
    """The first half of `prepare`: a captured copy of ``model`` that the passes have run over."""
    require_finite(model, type(model).__name__)
    with nvtx.phase("capture"), _evaluating(model):
        captured = capture(model, example_inputs, example_kwargs, dynamic_shapes=dynamic_shapes)
    # torch.export shares parameters with the model: passes must not change the user's.
    with warnings.catch_warnings():
        # PyTorch says this of a class of its own: nothing a user can act on.
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)
        module = copy.deepcopy(captured.module)
    functionalize(module)
    split_attention(module)
    with nvtx.phase("passes"):
        for choice in recipe.passes:
            found = _any_plugin("passes", choice, PASSES)
            if isinstance(found, Pass):
                found.apply(module)
            elif isinstance(found, DataPass):
                calls = _calls(captured, calibration, found.samples, choice.name)
                found.apply(module, recipe, calls)
    return replace(captured, module=module)


@nvtx.phase("plan")
def planned(
    captured: Capture, recipe: Recipe, seen: Mapping[str, tuple[Tensor, Tensor]]
) -> QuantizedModel:
    """The second half of `prepare`: quantizers where the plan says; ``seen``: ranges by stubs."""
    description = describe(captured.module)
    plan = place(description.graph, recipe)
    if recipe.centers:
        plan = planned_to_shift(plan, description)
    insert_quantizers(
        captured.module, description, plan,
        _plugin("calibrators", recipe.calibrator, Calibrator),
        _plugin("calibrators", recipe.weight_calibrator, Calibrator),
    )  # fmt: skip
    prepared = QuantizedModel(captured, plan, recipe).eval()
    _begin_with_stubs(prepared, description, seen)
    return prepared


def _begin_with_stubs(
    model: QuantizedModel, description: Description, seen: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Give the tensors behind stubs the grids of what the stubs have seen in training."""
    quantizers = model.quantizers
    for tensor in model.plan.tensors:
        path = str(description.node_of_value[tensor.tensor].meta.get(STUB))
        if path in seen and tensor.spec.axis is None:
            _begin_with(quantizers[tensor.grid], path, *seen[path])


def _begin_with(quantizer: FakeQuantize, path: str, low: Tensor, high: Tensor) -> None:
    """The grid of a range, and an observer that goes on from it."""
    try:
        qparams = numerics.choose_qparams(low.reshape(()), high.reshape(()), quantizer.spec)
    except ValueError as error:
        raise DataError(
            f"QuantStub {path} has seen NaN or infinity in training; look for them in the data, or "
            "make the stub anew"
        ) from error
    quantizer.set_qparams(qparams)
    if quantizer.observer is not None:
        quantizer.observer.begin_with(low, high)


@nvtx.phase("round")
def round_weights(
    model: QuantizedModel,
    calibration: Iterable[Any] | None = None,
    *,
    checkpoint: Path | str | None = None,
) -> None:
    """Put the weights on their grids by the recipe's rounding, and the biases on the accumulator's.

    Integer runtimes hold a bias as a multiple of ``s_x * s_w``, the step of the sums it is added
    to. A bias that is one already is the same in simulation and in every engine; it moves by half
    a step of a 32-bit sum at most.

    A rounding that learns is kept only where the model's outputs on held-out calls are no worse
    than with weights rounded to nearest (`keeping`).

    Args:
        model: calibrated, where its activations are quantized.
        calibration: batches that can be read again, for roundings that learn from data.
        checkpoint: a file that is written after each block. Where it is there, the run goes on
            behind the last block that it holds, and the result is the same to the bit, on the same
            machine. It is bound to the model, the data and the rounding, and it stays.

    Raises:
        DataError: the rounding learns from data, and there are none.
        ExportError: the checkpoint cannot be written.
        ModelFileError: the checkpoint is not readable, or of another run; it stays as it was.
        RecipeError: it cannot round a weight that is computed from others; or there is a
            checkpoint, and it learns nothing.
    """
    if checkpoint is not None:
        require_learning(model.recipe)
    choice = model.recipe.rounding
    rounding = _any_plugin("rounding", choice, ROUNDINGS)
    if any(p.reads_float_weights for p in _passes(model.recipe) if isinstance(p, ModelPass)):
        keep_float(model)
    with torch.no_grad():
        for layer in model.layers():
            if layer.weight is not None:
                make_room_for_bias(layer)
    if isinstance(rounding, (LayerRounding, BlockRounding)):
        calls = _calls(model.capture, calibration, rounding.samples, choice.name)
        path = None if checkpoint is None else Path(checkpoint)
        with Judge.of(model, parted(calls)[1]).over(model, choice.name):
            reconstruct(model, rounding, calls, checkpoint=path)
    with torch.no_grad():
        for layer in model.layers():
            if layer.weight is None:
                continue
            if isinstance(rounding, Rounding):
                weight = evaluate_constant(model.graph, layer.weight_source)
                rounded = rounding.round(weight, layer.weight.qparams)
                if not torch.equal(rounded, layer.weight(weight)):
                    set_weight(layer, rounded)
            round_bias(layer)


@nvtx.phase("correct")
def correct(model: QuantizedModel, calibration: Iterable[Any] | None = None) -> None:
    """Run the recipe's passes over the quantized model: what rounding has cost, they win back.

    A correction that does not help the model's outputs on held-out calls is taken back (`keeping`).

    Args:
        model: calibrated, its weights rounded.
        calibration: batches that can be read again.

    Raises:
        DataError: a pass looks at data, and there are none.
    """
    for choice in model.recipe.passes:
        found = _any_plugin("passes", choice, PASSES)
        if not isinstance(found, ModelPass):
            continue
        calls = _calls(model.capture, calibration, found.samples, choice.name)
        constants = float_constants(model) if found.reads_float_weights else None
        if not calls or constants is None:
            found.apply(model, calls)
            continue
        seen, told = parted(calls)
        with Judge.of(model, told, constants).over(model, choice.name):
            found.apply(model, seen)
    forget_float(model)


def require_learning(recipe: Recipe) -> None:
    """Refuse to keep a checkpoint where there is nothing to go on with.

    Raises:
        RecipeError: the recipe's rounding takes each weight by itself.
    """
    if isinstance(_any_plugin("rounding", recipe.rounding, ROUNDINGS), Rounding):
        raise RecipeError(
            f"recipe {recipe.name}: its rounding, {recipe.rounding.name}, learns nothing, so "
            "nothing is lost where it is ended; leave the checkpoint out"
        )


def samples_needed(recipe: Recipe) -> int:
    """How many samples of the calibration data its passes and rounding look at, beside ranges."""
    steps = _passes(recipe)
    steps.append(_any_plugin("rounding", recipe.rounding, ROUNDINGS))
    return max((int(getattr(step, "samples", 0)) for step in steps), default=0)


def _passes(recipe: Recipe) -> list[Any]:
    """The passes of a recipe, with its settings."""
    return [_any_plugin("passes", choice, PASSES) for choice in recipe.passes]


def _calls(
    captured: Capture, calibration: Iterable[Any] | None, samples: int, step: str
) -> list[batches.Call]:
    """What one step looks at."""
    if samples == 0:
        return []
    if calibration is None:
        raise DataError(
            f"{step} looks at calibration data, and there are none; pass calibration=batches, or "
            "take it out of the recipe"
        )
    return calls_of(captured, calibration, samples)


def _readable_again(
    calibration: Iterable[Any], samples: int
) -> tuple[Iterable[Any], Iterable[Any]]:
    """The first samples, to be read several times, and all data; of an iterator they are kept."""
    if not isinstance(calibration, Iterator):
        return calibration, calibration
    kept: list[Any] = []
    count = 0
    for args, kwargs in batches.as_batches(calibration):
        kept.append(args if args else kwargs)
        count += max((x.shape[0] for x in (*args, *kwargs.values()) if x.dim()), default=1)
        if count >= samples:
            break
    return kept, chain(kept, calibration)


def _find_recipe(recipe: str | Path) -> Recipe:
    if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        return read_recipe(Path(recipe))
    return read_recipe(plugins.recipe_path(recipe))


def _plugin(folder: str, choice: PlugIn, base: type[T]) -> T:
    """A plug-in with the recipe's settings."""
    return _made(plugins.find(folder, choice.name, base), choice)


def _any_plugin(folder: str, choice: PlugIn, bases: Sequence[type]) -> Any:
    """A plug-in of one of several bases with the recipe's settings."""
    return _made(plugins.find_any(folder, choice.name, bases), choice)


def _made(kind: type[T], choice: PlugIn) -> T:
    try:
        return kind(**choice.settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{choice.name} does not take the settings {choice.settings}: {error}; "
            f"see the fields of {kind.__module__}.{kind.__name__}"
        ) from error


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Capture sees the model in evaluation mode; each part then gets its own mode back."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _first_batch(
    calibration: Iterable[Any],
) -> tuple[tuple[Any, ...], dict[str, Any], Iterable[Any]]:
    """The first batch as example inputs, and all batches, also of an iterator read once."""
    source = batches.as_batches(calibration)
    first = next(source)
    args, kwargs = first
    if not isinstance(calibration, Iterator):
        return args, kwargs, calibration
    rest = (a if a else kw for a, kw in source)
    return args, kwargs, chain([args if args else kwargs], rest)
