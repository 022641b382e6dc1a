"""``quantkit report``: one page that tells what was done to a model, and what to change."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, count, screen, size

if TYPE_CHECKING:
    from quantkit.interfaces import Target
    from quantkit.reporting.report import Report

Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DATA.yaml", show_default=False, help="Data to calibrate and judge by."
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="OUT.html", show_default=False, help="The page to write."
    ),
]
JsonOutput = Annotated[
    Path | None,
    typer.Option("--json-out", metavar="OUT.json", help="Write the same content as JSON."),
]
Evaluate = Annotated[
    Path | None,
    typer.Option("--evaluate", metavar="EVAL.yaml", help="Data for accuracy, by its labels."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="NAME", help="Ask these alone; by default all that read ONNX."
    ),
]
Without = Annotated[
    str,
    typer.Option(
        "--without", metavar="NAME,…", show_default=False,
        help="Leave out: latency, sensitivity, diagnosis, profile …",
    ),
]  # fmt: skip
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, help="Judge by the first so many of --data."),
]
Advise = Annotated[
    int,
    typer.Option(
        "--advise", metavar="N", min=0, help="Try at most N changes of the recipe, as diagnose."
    ),
]
Batches = Annotated[
    list[int] | None,
    typer.Option("--batch", metavar="N", min=1, help="Samples a timed run; by default 1 and 32."),
]

#: Which targets have a GPU's generation as an option.
_OF_GPUS: Final = "compute_capability"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: str
    weights: Path | None
    recipe: str
    data: Path
    evaluate: Path | None
    targets: tuple[str, ...]
    gpu: str | None
    cpu: str
    samples: int
    without: tuple[str, ...]
    advise: int
    batches: tuple[int, ...]
    output: Path
    json_output: Path | None

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        onnx_files.refuse_options(self.model, {"--weights": self.weights})
        for path in filter(None, (self.output, self.json_output)):
            work.require_writable(path)
        if self.output.suffix == ".json":
            raise work.UsageError(
                f"-o {self.output} is the page: give a name that ends in .html, and --json-out "
                "for JSON"
            )


def command(
    model: option.Model,
    data: Data,
    output: Output,
    recipe: option.RecipeOption = "int8_ptq",
    weights: option.Weights = None,
    evaluate: Evaluate = None,
    target: Targets = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    samples: Samples = 64,
    batch: Batches = None,
    without: Without = "",
    advise: Advise = 0,
    json_out: JsonOutput = None,
    as_json: option.Json = False,
) -> None:
    """Quantize a model, look at it from all sides, and write what came of it as one HTML file.

    \b
    Examples:
      quantkit report net:make --data calib.yaml --batch 1 -o report.html
      quantkit report net.pt2 --data calib.yaml --evaluate eval.yaml --without latency -o a.html
      quantkit report float.onnx --data calib.yaml --without latency,profile -o b.html
    """  # noqa: D301
    asked = Asked(
        model=model, weights=weights, recipe=recipe, data=data, evaluate=evaluate,
        targets=tuple(target or ()), gpu=gpu, cpu=cpu, samples=samples,
        without=tuple(name.strip() for name in without.split(",") if name.strip()),
        advise=advise, batches=tuple(batch or ()), output=output, json_output=json_out,
    )  # fmt: skip
    with screen(as_json) as show:
        found = _made(asked, show)
        found.save(asked.output)
        if asked.json_output is not None:
            found.save(asked.json_output)
        show.json(json.loads(found.to_json()))
        _told(found, asked, show)


def _made(asked: Asked, show: Screen) -> Report:
    """The report, from the options."""
    asked.check()
    targets = _targets(asked)
    recipe = work.accepted_recipe(asked.recipe, None, asked.cpu, asked.data)
    from quantkit.reporting.report import report
    from quantkit.reporting.section import require_known

    require_known(asked.without)
    source = models.load(asked.model, asked.weights)
    data = models.open_data(asked.data, source)
    evaluation = None if asked.evaluate is None else models.open_data(asked.evaluate, source)
    return report(
        source, recipe, calibration=data, evaluation=evaluation, targets=targets,
        samples=asked.samples, without=asked.without, trials=asked.advise,
        batches=asked.batches or None, name=asked.model, tell=_tell,
    )  # fmt: skip


def _targets(asked: Asked) -> dict[str, Target | None]:
    """The targets by name; a GPU is for those alone that build for one.

    Those that read programs, not ONNX, have to be asked for.
    """
    import inspect

    from quantkit import plugins
    from quantkit.interfaces import Target

    made: dict[str, Target | None] = {}
    for name in asked.targets or plugins.names("targets"):
        known = inspect.signature(plugins.find("targets", name, Target)).parameters
        gpu = asked.gpu if asked.targets or _OF_GPUS in known else None
        place = work.make_target(name, gpu, asked.cpu)
        made[name] = place if asked.targets or place.reads == "onnx" else None
    return made


def _tell(title: str) -> None:
    """What is being made, for whoever watches."""
    if sys.stderr.isatty():
        print(f"{title} …", file=sys.stderr)


def _told(found: Report, asked: Asked, show: Screen) -> None:
    """The findings that matter, and what was written."""
    from quantkit.interfaces import Finding, Severity

    findings = [
        Finding(severity=Severity(f["severity"]), code=f["code"], where=f["layer"], why=f["why"],
                fix=f["fix"])
        for f in found.findings
        if f["severity"] != Severity.INFO
    ]  # fmt: skip
    show.findings(findings, every_one=False)
    for section in found.failed:
        print(f"warning: section {section.name} failed: {section.why}", file=sys.stderr)
    totals = found.summary["findings"]
    show.line(
        f"{found.summary['quantized']} of {count(found.summary['layers'], 'layer')} quantized; "
        f"{count(totals['error'], 'error')}, {count(totals['warning'], 'warning')}",
        "bold",
    )
    written = size(asked.output.stat().st_size)
    show.line(f"Wrote {asked.output}: {written}, in {found.seconds:.0f} s", "green")
    if asked.json_output is not None:
        show.line(f"Wrote {asked.json_output}", "green")
