"""What the commands check before they work, and how they show that work goes on."""

from __future__ import annotations

import inspect
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from quantkit import plugins
from quantkit._cli_process import leads
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
    from quantkit.recipe import Recipe

#: Wrong usage, of whichever copy of click Typer brings.
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])


def make_target(name: str, gpu: str | None, cpu: str, **others: object) -> Target:
    """A target with the options that it has, and ``others``, which it must have."""
    kind = plugins.find("targets", name, Target)
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = others | ({"cpu": cpu} if "cpu" in known else {})
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


def require_checkpoint(
    option: str,
    save: Path | None,
    data: Path | None,
    statistics: Sequence[Path] | None,
    resume: bool,
) -> None:
    """Options that mean something only where data are run, and what is seen is written."""
    if resume and save is None:
        raise UsageError(f"--resume goes on from the file of {option}: give that as well")
    if (resume or (save and option != "-o")) and (data is None or statistics):
        given = "--resume" if resume else option
        raise UsageError(f"{given} is of a run over --data: give that, and no --statistics")


def require_file(path: Path, give: str = "one that quantize writes, .onnx or .pt2") -> None:
    """Tell before slow imports that there is no such file, and what to give instead."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give {give}")


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


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on standard error while one step runs; nothing where nobody watches."""
    from rich.console import Console

    if getattr(signal.getsignal(signal.SIGINT), "came", None):  # of the handler in cli
        raise KeyboardInterrupt  # a library whose import it interrupted has swallowed it
    console = Console(stderr=True)
    if not (console.is_terminal and leads()):
        yield
        return
    with console.status(text):
        yield
