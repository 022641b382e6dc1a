"""``quantkit bench``: latency, memory, size and accuracy of one model in many runtimes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import screen

if TYPE_CHECKING:
    import torch

    from quantkit.benching.report import BenchReport
    from quantkit.benching.subject import Model

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        show_default=False,
        help="A .pt2 file, package.module:factory, or a float .onnx file; or several files, "
        "compared as they are with the first.",
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", metavar="NAME|FILE", help="Quantize by it; once for each recipe."),
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="EVAL.yaml",
        help="Judge the outputs on these data, not on --data; with labels by accuracy as well.",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=0, help="Samples to judge the outputs by.")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="A runtime, such as eager, inductor, onnxruntime; by default all that are here.",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="NAME", help="cpu or cuda; by default those that are here."),
]
Batches = Annotated[
    list[int] | None,
    typer.Option("--batch", metavar="N", min=1, help="Samples a run; by default 1 and 32."),
]
Repeats = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Turns of each row.")]
Seconds = Annotated[
    float,
    typer.Option("--seconds", metavar="X", min=0.1, help="Time for the turns of a row, at most."),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", metavar="X", min=1.0, help="Seconds to build, to load, or a turn."),
]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=1, help="Of the processor, for each run.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="OUT.json", help="Write all figures, every time too."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="OUT.png", help="Draw the latencies (or OUT.svg).")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    models: list[str]
    recipes: list[str]
    data: Path | None
    evaluate: Path | None
    weights: Path | None
    shapes: option.Shapes
    devices: tuple[Literal["cpu", "cuda"], ...] | None
    output: Path | None
    plot: Path | None

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        several = len(self.models) > 1
        for name, given in (("--recipe", self.recipes), ("--weights", self.weights)):
            if several and given:
                raise work.UsageError(f"{name} is for one MODEL, and {len(self.models)} are given")
        onnx_files.refuse_options(self.models[0], {"--weights": self.weights})
        for path in filter(None, (self.output, self.plot)):
            work.require_writable(path)
        if self.plot is not None:
            from quantkit.benching.plot import require_drawable

            require_drawable(self.plot)


def command(
    model: Models,
    recipe: Recipes = None,
    data: option.CalibrationData = None,
    evaluate: Evaluate = None,
    samples: Samples = 256,
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    target: Targets = None,
    device: Devices = None,
    batch: Batches = None,
    repeats: Repeats = 20,
    seconds: Seconds = 10.0,
    timeout: Timeout = 600.0,
    threads: Threads = 1,
    output: Output = None,
    plot: Plot = None,
    as_json: option.Json = False,
) -> int:
    """Compare latency, memory, size and accuracy of a model in the runtimes of this machine.

    Exits with 1 where nothing could be measured.

    \b
    Examples:
      quantkit bench float.onnx cpu.onnx --repeats 5
      quantkit bench float.onnx --recipe int8_cpu --data calib.yaml --batch 1
      quantkit bench net.pt2 --target eager --batch 8 -o bench.json --plot bench.png
    """  # noqa: D301
    asked = Asked(
        models=model, recipes=recipe or [], data=data, evaluate=evaluate, weights=weights,
        shapes=option.parse_shapes(input_shape or ()), devices=_devices(device), output=output,
        plot=plot,
    )  # fmt: skip
    method = {"turns": repeats, "seconds": seconds, "timeout_s": timeout}
    others = {"targets": target, "batches": batch, "samples": samples, "threads": threads}
    with screen(as_json) as show:
        report = _measured(asked, method, others)
        if output is not None:
            report.save(output)
        if plot is not None and report.ok:
            from quantkit.benching.plot import save_plot

            save_plot(report, plot)
        show.json(json.loads(report.to_json()))
    if not as_json:
        from rich.console import Console

        from quantkit.benching.table import render

        console = Console(highlight=False)
        console.print(render(report, console.width))
    return 0 if report.ok else 1


def _measured(asked: Asked, method: dict[str, Any], others: dict[str, Any]) -> BenchReport:
    asked.check()
    recipes = [work.accepted_recipe(name, None, "auto", asked.data) for name in asked.recipes]
    with work.working("loading"):
        from quantkit.benching.bench import bench
        from quantkit.benching.report import Method
    sources = _sources(asked)
    named: Any = sources[0]
    if isinstance(named, Path) and named.suffix != ".onnx":
        named = None
    args, kwargs = _examples(asked.shapes)
    return bench(
        sources, recipes, method=Method(**method), devices=asked.devices,
        data=None if asked.data is None else models.open_data(asked.data, named),
        evaluation=None if asked.evaluate is None else models.open_data(asked.evaluate, named),
        example_inputs=args, example_kwargs=kwargs, **others,
    )  # fmt: skip


def _sources(asked: Asked) -> list[Model]:
    """Files as paths, and what a factory makes."""
    files = [name for name in asked.models if name.endswith((".onnx", ".pt2"))]
    if len(asked.models) == 1 and (not files or asked.weights is not None):
        return [models.load(asked.models[0], asked.weights)]
    for name in asked.models:
        if name not in files:
            raise work.UsageError(
                f"{name}: several models are compared as files: give .onnx or .pt2 files"
            )
        work.require_file(Path(name))
    return [Path(name) for name in files]


def _devices(names: list[str] | None) -> tuple[Literal["cpu", "cuda"], ...] | None:
    chosen: list[Literal["cpu", "cuda"]] = []
    for name in names or ():
        if name not in ("cpu", "cuda"):
            raise work.UsageError(f"--device {name}: there is no such device; give cpu or cuda")
        chosen.append("cpu" if name == "cpu" else "cuda")
    return tuple(chosen) or None


def _examples(shapes: option.Shapes) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Inputs of these shapes: normal numbers, and zeros where they are whole, mostly indices."""
    import torch

    generator = torch.Generator().manual_seed(0)
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for name, sizes, kind in shapes:
        dtype: torch.dtype = getattr(torch, kind)
        value = torch.zeros(sizes, dtype=dtype)
        if dtype.is_floating_point:
            value = torch.randn(sizes, generator=generator).to(dtype)
        if name is None:
            args.append(value)
        else:
            kwargs[name] = value
    return tuple(args), kwargs
