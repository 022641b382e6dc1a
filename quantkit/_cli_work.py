"""What the commands do: read options, load, quantize, write; and show that work goes on."""

from __future__ import annotations

import inspect
import json
import math
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import typer

from quantkit import plugins
from quantkit.errors import (
    DataError,
    ExportError,
    ModelFileError,
    QuantkitError,
    RecipeError,
    TargetError,
)
from quantkit.hardware import compute_capability
from quantkit.interfaces import ExportForm, Finding, Severity, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantkit._cli_options import Shapes
    from quantkit.data import Batch, Data
    from quantkit.model import QuantizedModel
    from quantkit.recipe import Recipe

    Source: TypeAlias = nn.Module | torch.export.ExportedProgram

#: Wrong usage, of whichever copy of click Typer brings.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


def make_target(name: str, gpu: str | None, cpu: str) -> Target:
    """A target with the options that it has."""
    kind = plugins.find("targets", name, Target)
    known = inspect.signature(kind).parameters
    options = {"cpu": cpu} if "cpu" in known else {}
    if gpu is not None:
        if "compute_capability" not in known:
            raise UsageError(f"the target {name} uses no GPU: leave --gpu out")
        major, minor = compute_capability(gpu)
        options["compute_capability"] = f"{major}.{minor}"
    try:
        return kind(**options)
    except QuantkitError:
        raise
    except ValueError as error:
        raise TargetError(str(error)) from error


def optional_target(name: str | None, gpu: str | None, cpu: str) -> Target | None:
    """The target, where one is named."""
    if name is None and gpu is not None:
        raise UsageError("--gpu says which GPU a target has: give --target as well")
    return None if name is None else make_target(name, gpu, cpu)


def accepted_recipe(
    name: str, target: Target | None, cpu: str, data: Path | None, *, any_data: bool = False
) -> Recipe:
    """A recipe that the target can run, and for which there is data if it needs any."""
    with working("loading"):
        from quantkit.workflow import resolve_recipe
    recipe = resolve_recipe(name, target=target, cpu=cpu)
    if data is None and not any_data and needs_data(recipe):
        raise DataError(
            f"recipe {recipe.name} quantizes activations and needs calibration data; give --data "
            "DATA.yaml, or --recipe int8_weight_only"
        )
    return recipe


def require_form(recipe: Recipe, form: ExportForm) -> None:
    """Refuse, before any work, a grid that the form has no way to write."""
    if form != "tensorrt":
        return
    specs = [spec for s in recipe.schemes() for spec in (s.weights, s.activations) if spec]
    asymmetric = next((spec for spec in specs if not spec.symmetric), None)
    if asymmetric is not None:
        raise RecipeError(
            f"recipe {recipe.name}: {asymmetric} has no form that TensorRT takes (it wants "
            "zero-point 0); use --recipe int8_ptq, or --form onnxruntime"
        )


def warnings_of(recipe: Recipe, target: Target | None, form: ExportForm, cpu: str) -> list[Finding]:
    """What the target runs other than the recipe says; without one, the target of the form."""
    if target is None:
        target = make_target("onnxruntime" if form == "onnxruntime" else "tensorrt_rtx", None, cpu)
    found = target.refusals(recipe.schemes())
    return [finding for finding in found if finding.severity is Severity.WARNING]


def needs_data(recipe: Recipe) -> bool:
    """Whether activations are calibrated."""
    return any(scheme.activations is not None for scheme in recipe.schemes())


def where_it_runs(recipe: Recipe) -> dict[str, list[Finding]]:
    """What each target has against a recipe."""
    return {
        name: plugins.find("targets", name, Target)().refusals(recipe.schemes())
        for name in plugins.names("targets")
    }


def require_together(given: dict[str, object], judged: dict[str, object]) -> None:
    """Options that mean something only together; those of ``judged`` need all of ``given``."""
    absent = [name for name, value in given.items() if value is None]
    present = [name for name, value in (given | judged).items() if value is not None]
    if absent and present:
        raise UsageError(f"{present[0]} needs {absent[0]} as well")


def require_file(path: Path) -> None:
    """Tell before slow imports that there is no such file."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give an ONNX file, as quantize writes it")


def require_writable(path: Path) -> None:
    """Tell before any work, not after an hour of it, that the result could not be written."""
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; give the name of a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written ({error.strerror}); choose a folder that exists and that "
            "you may write to"
        ) from error


def load(source: str, weights: Path | None) -> Source:
    """The float model."""
    from quantkit.loading import load_model

    with working(f"loading {source}"):
        return load_model(source, weights)


def load_reference(source: str, weights: Path | None) -> Source | Path:
    """The float model, or the path of its ONNX file."""
    if not source.endswith(".onnx"):
        return load(source, weights)
    if weights is not None:
        raise UsageError(f"{source} holds its own weights: leave --weights out")
    require_file(Path(source))
    return Path(source)


def open_data(path: Path, model: Source | Path | None) -> Data | CountedBatches:
    """The batches of a data file, whose inputs have names that ``model`` knows."""
    from torch import nn

    from quantkit.data import load_data_spec

    spec = load_data_spec(path)
    if isinstance(model, nn.Module):
        _require_names(path, list(spec.inputs), model)
    opened = spec.open()
    if opened.rows == 0:
        raise DataError(f"{path}: {spec.source} has no row; give data with at least one")
    return opened if opened.rows is None else CountedBatches(opened)


class CountedBatches:
    """Batches whose number is known, so that a progress bar has an end."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._data)

    def __len__(self) -> int:
        return math.ceil((self._data.rows or 0) / self._data.spec.batch_size)


def quantize(
    model: Source,
    recipe: Recipe,
    batches: Data | CountedBatches | None,
    shapes: Shapes,
    *,
    static: bool,
) -> QuantizedModel:
    """The steps of ``quantkit.quantize``, each shown while it runs."""
    from torch import nn

    from quantkit.batches import as_batches
    from quantkit.workflow import calibrate, prepare, round_weights

    args, kwargs = _examples(shapes)
    if batches is not None and not shapes:
        args, kwargs = next(as_batches(batches))
    if not (args or kwargs) and isinstance(model, nn.Module):
        raise DataError(
            "the model is captured with example inputs, and there are none; give --data, or "
            "--input-shape 1,3,32,32"
        )
    with working("capturing the model"):
        qmodel = prepare(
            model, recipe, example_inputs=args, example_kwargs=kwargs,
            dynamic_shapes=None if static else "batch",
        )  # fmt: skip
    if batches is not None and any(True for _ in qmodel.of_role("activation")):
        calibrate(qmodel, batches)
    with working("rounding weights"):
        round_weights(qmodel)
    return qmodel


def write(
    model: QuantizedModel, output: Path, form: ExportForm, *, plan: Path | None, state: Path | None
) -> None:
    """The ONNX file, and what else was asked for."""
    from quantkit.files import replacing
    from quantkit.onnx.export import export_onnx

    with working("writing ONNX"):
        export_onnx(model, output, form=form)
    if plan is not None:
        with replacing(plan) as temporary:
            temporary.write_text(json.dumps(json.loads(model.plan.to_json()), indent=2) + "\n")
    if state is not None:
        model.save(state)


def bytes_of(model: Source) -> int:
    """How much a float model's weights take."""
    from quantkit.loading import weight_bytes

    return weight_bytes(model)


def bytes_on_disk(path: Path) -> int:
    """The size of an ONNX file, with the files that hold weights of it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    beside = {
        path.with_name(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (path, *beside))


def _examples(shapes: Shapes) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Inputs of these shapes; their values do not matter."""
    import torch

    # Zeros: whole numbers are mostly indices, and 0 is one in every table.
    made = [(name, torch.zeros(sizes, dtype=getattr(torch, kind))) for name, sizes, kind in shapes]
    by_order = tuple(value for name, value in made if name is None)
    return by_order, {name: value for name, value in made if name is not None}


def _require_names(path: Path, names: list[str], model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise DataError(
            f"{path}: {type(model).__name__}.forward has no input {unknown[0]!r}; name the inputs "
            f"as it does: {', '.join(parameters)}"
        )


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on standard error while one step runs; nothing where nobody watches."""
    from rich.console import Console

    if getattr(signal.getsignal(signal.SIGINT), "came", None):  # of the handler in cli
        raise KeyboardInterrupt  # a library whose import it interrupted has swallowed it
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield
