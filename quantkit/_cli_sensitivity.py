"""``quantkit sensitivity``: what each layer costs when it alone is quantized."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_training as training
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, screen
from quantkit.errors import DataError

if TYPE_CHECKING:
    from quantkit.analysis.sensitivity import Metric, Sensitivity
    from quantkit.model import QuantizedModel

Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DATA.yaml", show_default=False, help="Data to calibrate and judge by."
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, help="The first so many samples of --data."),
]
Grouping = Annotated[
    Literal["layer", "block"],
    typer.Option("--by", metavar="WHAT", help="What is quantized at a time: layer, or block."),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="Try this too, beside the recipe's own: w4a8, w4a4, w4 (weights alone), float.",
    ),
]
Evaluate = Annotated[
    Path | None,
    typer.Option("--evaluate", metavar="EVAL.yaml", help="Data for a metric: slow, a run each."),
]
Measure = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        show_default=False,
        help="Of --evaluate: accuracy (if there are labels), agreement (if not), spearman, mse, or "
        "package.module:function of outputs and labels.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="OUT.json", show_default=False, help="Write all, for mix."
    ),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="OUT.png", help="Draw a bar a layer (or OUT.svg).")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: str
    weights: Path | None
    recipe: str
    data: Path
    samples: int
    by: Literal["layer", "block"]
    formats: tuple[str, ...]
    evaluate: Path | None
    metric: str | None
    output: Path | None
    plot: Path | None
    cpu: str
    static: bool

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        if onnx_files.is_onnx(self.model):
            raise work.UsageError(
                f"{self.model} is ONNX, and sensitivities are of PyTorch models: give "
                "package.module:factory or a .pt2 file"
            )
        if self.metric is not None and self.evaluate is None:
            raise work.UsageError("--metric needs --evaluate as well")
        for path in filter(None, (self.output, self.plot)):
            work.require_writable(path)
        if self.plot is not None:
            from quantkit.benching.plot import require_drawable

            require_drawable(self.plot)


def command(
    model: option.TorchModel,
    data: Data,
    recipe: option.RecipeOption = "int8_ptq",
    format: Formats = None,
    by: Grouping = "layer",
    samples: Samples = 64,
    evaluate: Evaluate = None,
    metric: Measure = None,
    output: Output = None,
    plot: Plot = None,
    weights: option.Weights = None,
    static: option.Static = False,
    cpu: option.Cpu = "auto",
    as_json: option.Json = False,
) -> None:
    """Tell what each layer costs at the model's outputs when it alone is quantized.

    \b
    Examples:
      quantkit sensitivity net:make --data calib.yaml
      quantkit sensitivity net.pt2 --data calib.yaml --format w4a8 -o layers.json
      quantkit sensitivity net.pt2 --data calib.yaml --by block --plot blocks.png
    """  # noqa: D301
    asked = Asked(
        model=model, weights=weights, recipe=recipe, data=data, samples=samples, by=by,
        formats=tuple(format or ()), evaluate=evaluate, metric=metric, output=output, plot=plot,
        cpu=cpu, static=static,
    )  # fmt: skip
    with screen(as_json) as show:
        _sensitivity(asked, show)


def _sensitivity(asked: Asked, show: Screen) -> None:
    """The command, from its options to its last line."""
    started = time.perf_counter()
    asked.check()
    recipe = work.accepted_recipe(asked.recipe, None, asked.cpu, asked.data)
    from quantkit.analysis.formats import named_formats
    from quantkit.analysis.sensitivity import sensitivity
    from quantkit.files import replacing
    from quantkit.model_calibration import calls_of

    formats = named_formats(recipe, asked.formats)
    source = models.load(asked.model, asked.weights)
    assert not isinstance(source, Path)  # it would be ONNX
    data = models.open_data(asked.data, source)
    qmodel = models.prepared(source, recipe, data, [], static=asked.static)
    with training.naming(asked.data):
        calls = calls_of(qmodel.capture, data, asked.samples)
    metric = None if asked.evaluate is None else _metric(asked, asked.evaluate, qmodel)
    found = sensitivity(qmodel, calls, by=asked.by, metric=metric, formats=formats)
    if asked.output is not None:
        with replacing(asked.output) as temporary:
            temporary.write_text(found.to_json(), encoding="utf-8")
    if asked.plot is not None:
        from quantkit.analysis.bars import save_bars

        save_bars(found, asked.plot)
    show.json(json.loads(found.to_json()))
    _told(found, asked, show, time.perf_counter() - started)


def _metric(asked: Asked, path: Path, qmodel: QuantizedModel) -> Metric:
    """What judges the model beside SQNR: by labels where there are any."""
    from quantkit.recovering.metrics import find_metric, outputs_of

    data = models.open_data(path, None)
    labelled = data.spec.label is not None
    found = find_metric(
        asked.metric or ("accuracy" if labelled else "agreement"), labelled=labelled
    )
    if found.labelled and asked.metric is not None and not labelled:
        raise DataError(
            f"{path}: names no column of labels, and {found.name} reads them; add label"
        )
    with work.working("running the float model"), training.naming(path):
        reference = outputs_of(training.float_model(qmodel), data, labelled=labelled)
        found.of(reference, reference)  # what does not fit is told before hours of work
    return lambda model: found.of(outputs_of(model, data, labelled=labelled), reference)


def _told(found: Sensitivity, asked: Asked, show: Screen, seconds: float) -> None:
    """The table, the worst last: it is what a terminal shows."""
    from quantkit.analysis.losses import decibels

    head, rows = found.table()
    show.line(f"SQNR of the outputs in dB with one {found.by} quantized", "bold")
    show.table(head, rows)
    if found.float_metric is not None:
        show.line(f"The float model's metric: {found.float_metric:.2f}")
    totals = [f"{c} {decibels(found.together(c)):.1f} dB" for c in found.columns]
    show.line(f"All together, predicted: {', '.join(totals)}")
    show.line(
        f"{found.samples} samples, {seconds:.0f} s, {found.runs:.1f} times a float run over them",
        "dim",
    )
    for path in filter(None, (asked.output, asked.plot)):
        show.line(f"Wrote {path}", "green")
    if asked.output is not None:
        show.line(f"Next: quantkit mix {asked.output} --size 60% -o mixed.yaml", "dim")
