"""``quantkit recover``: the cheapest recipe that loses no more than is allowed."""

from __future__ import annotations

import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_recover_lines import Lines
from quantkit._cli_show import Screen, screen, size
from quantkit.interfaces import Target

if TYPE_CHECKING:
    from quantkit.data import DataSpec
    from quantkit.recipe import Recipe
    from quantkit.recovering.report import Recovery

_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def parse_time(text: str) -> float:
    """Seconds of a time such as ``30m``, ``1h30m`` or ``90s``.

    Example:
        >>> parse_time("30m"), parse_time("1h30m"), parse_time("90")
        (1800.0, 5400.0, 90.0)
    """
    match = _TIME.fullmatch(text.replace(" ", ""))
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    found = 3600.0 * hours + 60.0 * minutes + seconds
    if found <= 0.0:
        raise typer.BadParameter(f"--time-limit {text!r} is no time: write 90s, 30m or 1h30m")
    return found


def _points(value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise typer.BadParameter(f"{value:g} is not 0 or more: give points, such as 0.5")
    return value


Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="DATA.yaml",
        show_default=False,
        help="Calibration data; without --holdout the first half calibrates, the rest judges.",
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT.yaml", help="The recipe to write.")
]
Holdout = Annotated[
    Path | None,
    typer.Option(
        "--holdout", metavar="HOLD.yaml", help="Data to judge by, none of which is in --data."
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        show_default=False,
        help="accuracy (if there are labels), agreement with the float model (if not), spearman, "
        "mse, or package.module:function of outputs and labels.",
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option(
        "--max-drop", metavar="X", callback=_points, help="Points of the metric to lose at most."
    ),
]
TimeLimit = Annotated[
    str, typer.Option("--time-limit", metavar="TIME", help="Such as 90s, 30m or 1h30m.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NAME",
        help="Let the recipe change in this as well: per_channel (weights).",
    ),
]
SkipSteps = Annotated[
    list[str] | None, typer.Option("--skip", metavar="STEP", help="Leave a step out, by its name.")
]
Train = Annotated[
    Path | None,
    typer.Option("--train", metavar="TRAIN.yaml", help="Training data, for the last step."),
]
Labels = Annotated[bool, typer.Option("--labels", help="Learn from the labels of --train as well.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", metavar="FILE.json", help="Write what was measured after each candidate."
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Repeat nothing that --checkpoint holds, if it is there.")
]
Onnx = Annotated[
    Path | None, typer.Option("--onnx", metavar="OUT.onnx", help="Write the best model as well.")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: str
    weights: Path | None
    recipe: str
    data: Path
    holdout: Path | None
    metric: str | None
    max_drop: float
    seconds: float
    allow: tuple[str, ...]
    skip: tuple[str, ...]
    train: Path | None
    labels: bool
    output: Path
    onnx: Path | None
    checkpoint: Path | None
    resume: bool
    place: Target | None
    cpu: str
    static: bool

    def check(self) -> None:
        """Refuse, before any work, what means nothing, cannot be written or is not there."""
        onnx_files.refuse_options(self.model, {"--weights": self.weights, "--static": self.static})
        if onnx_files.is_onnx(self.model) and self.train is not None:
            raise work.UsageError(
                f"{self.model} is ONNX, and training needs the PyTorch model: leave --train out"
            )
        if self.labels and self.train is None:
            raise work.UsageError("--labels are those of --train: give that as well")
        if self.resume and self.checkpoint is None:
            raise work.UsageError("--resume goes on from the file of --checkpoint: give that too")
        written = (self.output, self.onnx, self.checkpoint)
        for path in filter(None, written):
            work.require_writable(path)

    @property
    def calibration(self) -> Path:
        """Where the rows that calibrate are declared, if the data are split."""
        return self.output.with_suffix(".calibration.yaml")

    def command(self, found: Recovery) -> str:
        """What makes the best model anew."""
        verb = "finetune" if found.trained else "quantize"
        data = self.data if found.calibration is None else self.calibration
        words: list[object] = ["quantkit", verb, self.model, "--recipe", self.output]
        words += ["--data", data]
        if found.trained:
            words += ["--train", self.train, *(["--labels"] if self.labels else [])]
        if self.weights is not None:
            words += ["--weights", self.weights]
        if self.static:
            words.append("--static")
        if self.cpu != "auto":
            words += ["--cpu", self.cpu]
        return shlex.join([*map(str, words), "-o", str(self.output.with_suffix(".onnx"))])


def command(
    model: option.Model,
    data: Data,
    output: Output = Path("recovered.yaml"),
    recipe: option.RecipeOption = "int8_ptq",
    holdout: Holdout = None,
    metric: Metric = None,
    max_drop: MaxDrop = 0.5,
    time_limit: TimeLimit = "30m",
    allow: Allow = None,
    skip: SkipSteps = None,
    train: Train = None,
    labels: Labels = False,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    onnx: Onnx = None,
    weights: option.Weights = None,
    static: option.Static = False,
    target: option.AnyTarget = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    as_json: option.Json = False,
) -> int:
    """Find the cheapest recipe that loses no more accuracy than is allowed.

    Remedies are tried in the order of what they cost: calibrators, equalization, bias correction,
    learned rounding, mixed precision, training. Each is judged on data that do not calibrate. The
    first that is good enough is written, else the best; then it exits with 1.

    \b
    Examples:
      quantkit recover net:make --data calib.yaml --max-drop 0.5
      quantkit recover net.pt2 --data calib.yaml --holdout hold.yaml --time-limit 10m
      quantkit recover float.onnx --recipe int8_cpu --data calib.yaml -o cpu.yaml --onnx best.onnx
    """  # noqa: D301
    asked = Asked(
        model=model, weights=weights, recipe=recipe, data=data, holdout=holdout, metric=metric,
        max_drop=max_drop, seconds=parse_time(time_limit), allow=tuple(allow or ()),
        skip=tuple(skip or ()), train=train, labels=labels, output=output, onnx=onnx,
        checkpoint=checkpoint, resume=resume, place=work.optional_target(target, gpu, cpu),
        cpu=cpu, static=static,
    )  # fmt: skip
    with screen(as_json) as show:
        found = _recover(asked, show)
    return 0 if found.met else 1


def _recover(asked: Asked, show: Screen) -> Recovery:
    """The command, from its options to its last line."""
    asked.check()
    recipe = work.accepted_recipe(asked.recipe, asked.place, asked.cpu, asked.data)
    work.require_form(recipe, recipe.target)
    show.warnings(work.warnings_of(recipe, asked.place, recipe.target, asked.cpu))
    source = models.load(asked.model, asked.weights)
    lines = Lines(show, recipe)
    # Under the name that the file gives it, so that the model tells that one.
    named = recipe.model_copy(update={"name": asked.output.stem})
    found = _search(asked, source, named, lines)
    told = asked.command(found)
    written = _write(asked, found, told)
    lines.result(found, written, told)
    show.json({**found.as_json(), "output": str(asked.output), "command": told})
    return found


def _search(asked: Asked, source: models.Source, recipe: Recipe, lines: Lines) -> Recovery:
    from quantkit.qat.metrics import cross_entropy
    from quantkit.recovering.recover import recover

    held_out = None if asked.holdout is None else models.open_data(asked.holdout, source)
    return recover(
        source, recipe, calibration=models.open_data(asked.data, source), holdout=held_out,
        metric=asked.metric, max_drop=asked.max_drop, time_limit=asked.seconds,
        allow=asked.allow, skip=asked.skip,
        train=None if asked.train is None else models.open_data(asked.train, source),
        loss=cross_entropy if asked.labels else None,
        dynamic_shapes=None if asked.static else "batch", cpu=asked.cpu,
        checkpoint=asked.checkpoint, resume=asked.resume, keep_model=asked.onnx is not None,
        on_start=lines.start, on_attempt=lines.attempt,
    )  # fmt: skip


def _write(asked: Asked, found: Recovery, told: str) -> dict[Path, str]:
    """The recipe, the data that it needs if they were split, and the model if it is wanted."""
    from quantkit.files import replacing

    with replacing(asked.output) as temporary:
        temporary.write_text(found.to_yaml(told), encoding="utf-8")
    written = {asked.output: ", ".join(found.best.changes) or "the recipe as it is"}
    if found.calibration is not None:
        with replacing(asked.calibration) as temporary:
            temporary.write_text(_as_yaml(found.calibration, asked.calibration), encoding="utf-8")
        written[asked.calibration] = f"the {found.calibration.limit} rows that calibrate"
    if asked.onnx is not None and found.model is not None:
        taken = models.write(found.model, asked.onnx, found.recipe.target, plan=None, state=None)
        written[asked.onnx] = size(taken)
    return written


def _as_yaml(spec: DataSpec, path: Path) -> str:
    """A data file; a source in the file system is found from where the file lies."""
    import yaml

    source = Path(spec.source)
    if source.exists():
        spec = spec.model_copy(update={"source": os.path.relpath(source, path.parent)})
    data = spec.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(data, sort_keys=False))
