"""What is compared: the precisions of one model, and what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from quantkit import batches as batches_of
from quantkit.benching import inputs as model_inputs
from quantkit.benching.inputs import Arrays, Input
from quantkit.benching.sources import FloatProgram, GivenFile, Half, Quantized, Variant, holds_qdq
from quantkit.errors import DataError, ModelFileError
from quantkit.graph.capture import capture, recapture
from quantkit.loading import load_model, require_finite
from quantkit.program.reading import read_program
from quantkit.recipe import Recipe
from quantkit.workflow import quantize, resolve_recipe
from quantkit.workflow_onnx import quantize_onnx

#: A model, or a file: ``.pt2`` or ``.onnx``, or ``package.module:factory``.
Model: TypeAlias = nn.Module | torch.export.ExportedProgram | Path | str


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs of one call, where there are no data.

    Attributes:
        args: by order.
        kwargs: by name.
    """

    args: tuple[Tensor, ...] = ()
    kwargs: Mapping[str, Tensor] | None = None

    @property
    def call(self) -> batches_of.Call | None:
        """As a call; ``None`` where there are none."""
        return (self.args, dict(self.kwargs or {})) if self.args or self.kwargs else None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The precisions of one model, the first of which is the reference.

    Attributes:
        variants: as files.
        inputs: what all of them take.
        example: of some samples.
    """

    variants: tuple[Variant, ...]
    inputs: tuple[Input, ...]
    example: Arrays


def subject_of(
    models: Sequence[Model],
    recipes: Sequence[str | Path | Recipe],
    data: Iterable[Any] | None,
    examples: Examples,
    folder: Path,
    samples: int,
) -> Subject:
    """One model, quantized by each recipe; or several files as they are.

    Args:
        models: one, or the paths of several files.
        recipes: for one model alone.
        data: to calibrate with, and whose first samples runs are timed on.
        examples: where there are no data.
        folder: for files.
        samples: how many the example is to hold, if there are so many.

    Raises:
        QuantkitError: a model, a recipe or the data are not to be used; before any is calibrated.
    """
    if not models:
        raise ModelFileError("there is no model to compare; give one, or several files")
    if len(models) > 1:
        if recipes:
            raise ModelFileError(
                f"recipes quantize one model, and there are {len(models)}; give one, or leave the "
                "recipes out to compare files as they are"
            )
        paths = [_path(model) for model in models]
        variants = _as_they_are(paths)
        takes = _inputs_of(paths[0])
        return Subject(
            variants=variants, inputs=takes, example=_example(takes, data, examples, samples)
        )
    chosen = [resolve_recipe(recipe) for recipe in recipes]
    _require_apart(chosen)
    (model,) = models
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        return _of_onnx(Path(model), chosen, data, examples, folder, samples)
    if isinstance(model, str | Path) and not recipes and _is_quantized_program(Path(model)):
        path = Path(model)
        takes = _inputs_of(path)
        example = _example(takes, data, examples, samples)
        return Subject(variants=_as_they_are([path]), inputs=takes, example=example)
    loaded = load_model(str(model)) if isinstance(model, str | Path) else model
    return _of_pytorch(loaded, chosen, data, examples, folder, samples)


def _of_pytorch(
    model: nn.Module | torch.export.ExportedProgram,
    recipes: Sequence[Recipe],
    data: Iterable[Any] | None,
    examples: Examples,
    folder: Path,
    samples: int,
) -> Subject:
    args, kwargs = _first_call(model, data, examples)
    program = _program(model, args, kwargs)
    takes = model_inputs.inputs_of_program(program)
    given = Examples(args=args, kwargs=kwargs)
    example = _example(takes, data, given, samples)
    own = FloatProgram(program, _made(folder / "float"))
    variants: list[Variant] = [own, Half(own, folder / "float")]
    for recipe in recipes:
        qmodel = quantize(
            model, recipe, calibration=data, example_inputs=args, example_kwargs=kwargs
        )
        variants.append(Quantized(qmodel, _made(folder / recipe.name)))
    return Subject(variants=tuple(variants), inputs=takes, example=example)


def _of_onnx(
    path: Path,
    recipes: Sequence[Recipe],
    data: Iterable[Any] | None,
    examples: Examples,
    folder: Path,
    samples: int,
) -> Subject:
    takes = model_inputs.inputs_of_onnx(path)
    example = _example(takes, data, examples, samples)
    quantized = holds_qdq(path)
    name = path.stem if quantized else "float"
    own = GivenFile(path, name, quantized)
    variants: list[Variant] = [own] if quantized else [own, Half(own, _made(folder / "float"))]
    for recipe in recipes:
        made = quantize_onnx(path, recipe, calibration=data)
        variants.append(Quantized(made, _made(folder / recipe.name)))
    return Subject(variants=tuple(variants), inputs=takes, example=example)


def _as_they_are(paths: Sequence[Path]) -> tuple[Variant, ...]:
    """Files of the user's, called by their stems where these differ."""
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    return tuple(
        GivenFile(path, name, holds_qdq(path)) for path, name in zip(paths, names, strict=True)
    )


def _path(model: Model) -> Path:
    if isinstance(model, str | Path) and Path(model).suffix in {".onnx", ".pt2"}:
        return Path(model)
    raise ModelFileError(
        f"{model if isinstance(model, str | Path) else type(model).__name__}: several models are "
        "compared as files; give .onnx or .pt2 files, or one model with recipes"
    )


def _inputs_of(path: Path) -> tuple[Input, ...]:
    if path.suffix == ".onnx":
        return model_inputs.inputs_of_onnx(path)
    return model_inputs.inputs_of_program(read_program(path).program)


def _is_quantized_program(path: Path) -> bool:
    return path.suffix == ".pt2" and holds_qdq(path)


def _first_call(
    model: nn.Module | torch.export.ExportedProgram, data: Iterable[Any] | None, examples: Examples
) -> batches_of.Call:
    """Inputs to capture a model with."""
    if examples.call is not None:
        return examples.call
    if isinstance(model, torch.export.ExportedProgram):
        args, kwargs = model.example_inputs or ((), {})
        return tuple(args), dict(kwargs)
    if data is None:
        raise DataError(
            "the model is captured with example inputs, and there are none; give data, or example "
            "inputs such as --input-shape 1,3,32,32"
        )
    return next(batches_of.as_batches(data))


def _program(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
) -> torch.export.ExportedProgram:
    """The float model as its author wrote it; a module is captured in evaluation mode."""
    if isinstance(model, torch.export.ExportedProgram):
        return model
    require_finite(model, type(model).__name__)
    modes = {part: part.training for part in model.modules()}
    try:
        found = capture(model.eval(), args, kwargs)
    finally:
        for part, training in modes.items():
            part.training = training
    return recapture(found.module, found.args, found.kwargs, found.dynamic_shapes)


def _example(
    takes: Sequence[Input], data: Iterable[Any] | None, examples: Examples, samples: int
) -> Arrays:
    if data is not None:
        return model_inputs.first_samples(data, takes, samples)
    if examples.call is not None:
        return model_inputs.named_call(examples.call, [given.name for given in takes])
    return model_inputs.made_up(takes)


def _require_apart(recipes: Sequence[Recipe]) -> None:
    names = [recipe.name for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the recipe {twice} is given twice; name each once")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
