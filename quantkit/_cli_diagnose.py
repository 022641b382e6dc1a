"""``quantkit diagnose``: where each layer's error comes from, and changes that were tried."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_training as training
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, screen

if TYPE_CHECKING:
    from quantkit.analysis.advice import Advice
    from quantkit.analysis.diagnosis import Diagnosis
    from quantkit.recipe import Recipe

#: So many grids with outlier channels are told.
_UNEVEN = 5

Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DATA.yaml", show_default=False, help="Data to calibrate and measure on."
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, help="Measure on the first so many samples."),
]
Advise = Annotated[
    bool,
    typer.Option("--advise/--no-advise", help="Try changes of the recipe that may help."),
]
Trials = Annotated[
    int,
    typer.Option("--trials", metavar="N", min=1, help="Try so many changes at most."),
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT.json", show_default=False, help="Write all."),
]
RecipeOut = Annotated[
    Path | None,
    typer.Option(
        "--recipe-out",
        metavar="R.yaml",
        show_default=False,
        help="Write the recipe with the changes that help together.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: str
    weights: Path | None
    recipe: str
    data: Path
    samples: int
    advise: bool
    trials: int
    output: Path | None
    recipe_out: Path | None
    cpu: str
    static: bool

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        if onnx_files.is_onnx(self.model):
            raise work.UsageError(
                f"{self.model} is ONNX, and a diagnosis is of PyTorch models: give "
                "package.module:factory or a .pt2 file"
            )
        if self.recipe_out is not None and not self.advise:
            raise work.UsageError("--recipe-out writes what advice finds: leave --no-advise out")
        for path in filter(None, (self.output, self.recipe_out)):
            work.require_writable(path)


def command(
    model: option.TorchModel,
    data: Data,
    recipe: option.RecipeOption = "int8_ptq",
    samples: Samples = 64,
    advise: Advise = True,
    trials: Trials = 12,
    output: Output = None,
    recipe_out: RecipeOut = None,
    weights: option.Weights = None,
    static: option.Static = False,
    cpu: option.Cpu = "auto",
    as_json: option.Json = False,
) -> None:
    """Tell where each layer's error comes from, and try what may repair it.

    \b
    Examples:
      quantkit diagnose net:make --data calib.yaml
      quantkit diagnose net:make --data calib.yaml --recipe int8_entropy --samples 256
      quantkit diagnose net:make --data calib.yaml --no-advise -o layers.json
    """  # noqa: D301
    asked = Asked(
        model=model, weights=weights, recipe=recipe, data=data, samples=samples, advise=advise,
        trials=trials, output=output, recipe_out=recipe_out, cpu=cpu, static=static,
    )  # fmt: skip
    with screen(as_json) as show:
        _diagnose(asked, show)


def _diagnose(asked: Asked, show: Screen) -> None:
    """The command, from its options to its last line."""
    started = time.perf_counter()
    asked.check()
    recipe = work.accepted_recipe(asked.recipe, None, asked.cpu, asked.data)
    from quantkit.analysis.diagnosis import diagnose, float_parameters, leave_centering_out

    source = models.load(asked.model, asked.weights)
    assert not isinstance(source, Path)  # it would be ONNX
    data = models.open_data(asked.data, source)
    qmodel = models.prepared(source, recipe, data, [], static=asked.static)
    floating = float_parameters(qmodel)
    leave_centering_out(qmodel)
    with training.naming(asked.data):
        models.complete(qmodel, models.Seen(data=data))
        found = diagnose(qmodel, data, samples=asked.samples, floating=floating)
        seconds = time.perf_counter() - started
        few = _too_few(asked, found)
        advice = _advice(asked, found, source, recipe, data) if asked.advise and not few else None
    told = _as_data(found, advice)
    _write(asked, told, advice)
    show.json(told)
    _told(found, show, seconds)
    if advice is not None:
        _told_advice(advice, asked, show)
    elif few:
        show.line(few)
    for path in filter(None, (asked.output, asked.recipe_out)):
        show.line(f"Wrote {path}", "green")
    if asked.recipe_out is not None:
        show.line(
            f"Next: quantkit quantize {asked.model} --recipe {asked.recipe_out} --data "
            f"{asked.data} -o model.onnx", "dim", copied=True,
        )  # fmt: skip


def _too_few(asked: Asked, found: Diagnosis) -> str:
    """Why no advice can be had of these data; empty where it can, or where a recipe is wanted."""
    from quantkit.analysis.advice import LEAST_CALLS, LEAST_JUDGING

    least = LEAST_CALLS * LEAST_JUDGING
    if not asked.advise or asked.recipe_out is not None or found.samples >= least:
        return ""
    return (
        f"No advice: it is judged by samples apart, and takes {least} of them, not {found.samples}"
    )


def _advice(
    asked: Asked, found: Diagnosis, source: models.TorchSource, recipe: Recipe, data: Any
) -> Advice:
    from quantkit.analysis.advice import advise

    return advise(
        found, source, recipe, data, samples=asked.samples, trials=asked.trials,
        dynamic_shapes=None if asked.static else "batch",
    )  # fmt: skip


def _as_data(found: Diagnosis, advice: Advice | None) -> dict[str, Any]:
    """The diagnosis, and the advice beside its keys."""
    data: dict[str, Any] = json.loads(found.to_json())
    return data | {"advice": None if advice is None else advice.to_data()}


def _write(asked: Asked, told: dict[str, Any], advice: Advice | None) -> None:
    """The files that were asked for."""
    from quantkit.files import replacing

    if asked.output is not None:
        with replacing(asked.output) as temporary:
            temporary.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", "utf-8")
    if asked.recipe_out is not None and advice is not None:
        with replacing(asked.recipe_out) as temporary:
            temporary.write_text(advice.to_yaml(), "utf-8")


def _told(found: Diagnosis, show: Screen, seconds: float) -> None:
    """The table, the worst first, and channels that stand out."""
    show.line("Each layer with float inputs: SQNR of its result in dB, and what makes its error",
              "bold")  # fmt: skip
    show.table(*found.table())
    for line in _outliers(found):
        show.line(line)
    show.line(f"The model's outputs: {found.sqnr:.1f} dB")
    show.line(f"{found.samples} samples, {seconds:.0f} s", "dim")


def _outliers(found: Diagnosis) -> Iterator[str]:
    """The grids whose channels differ most."""
    from quantkit.analysis.diagnosis import times

    grids = [(layer.name, grid) for layer in found.layers for grid in layer.grids if grid.largest]
    grids.sort(key=lambda pair: pair[1].spread, reverse=True)
    for name, grid in grids[:_UNEVEN]:
        what = "weight" if grid.role == "weight" else "input"
        named = ", ".join(f"{own.channel} ({times(own.times)})" for own in grid.largest)
        more = grid.outliers - len(grid.largest)
        yield (
            f"Outlier channels of the {what} of {name}: {named}"
            + (f", {more} more" if more else "")
            + f" of {grid.channels}"
        )


def _told_advice(advice: Advice, asked: Asked, show: Screen) -> None:
    """What was tried, what helps, and all of that together."""
    show.line()
    show.line(
        f"Tried: {advice.calibrated} samples calibrate, {advice.samples} others judge; "
        f"{advice.sqnr:.1f} dB as it is", "bold",
    )  # fmt: skip
    if advice.trials:
        show.table(*advice.table())
    else:
        show.line("Nothing in the diagnosis speaks for a change.")
    if advice.untried:
        show.line(f"Not tried, --trials {asked.trials}: {'; '.join(advice.untried)}")
    show.findings(advice.findings)
    if advice.together is not None:
        show.line(f"Together: {'; '.join(advice.chosen)}: {advice.together}")
    elif advice.trials:
        show.line("None helps beyond chance.")
    show.line(f"{advice.seconds:.0f} s", "dim")
