"""``quantkit profile``: where the time of a model goes, by layer and by kernel, and why."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, screen

if TYPE_CHECKING:
    import torch

    from quantkit.profiling.report import ProfileReport
    from quantkit.profiling.roofline import Roof

#: Names of files that hold an engine.
_ENGINES = (".engine", ".plan", ".trt")

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        help="A .pt2 or .onnx file, an .engine of TensorRT, or package.module:factory.",
    ),
]
Recorded = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="TRACE",
        help="Read what torch.profiler or ONNX Runtime recorded elsewhere, or Nsight Systems "
        "(.sqlite) or Nsight Compute (.csv); nothing is run.",
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DATA.yaml", help="Run the first samples of these.")
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        show_default=False,
        help="eager, inductor, onnxruntime, tensorrt_rtx or tensorrt; by default what fits MODEL.",
    ),
]
DeviceName = Annotated[
    Literal["cpu", "cuda"], typer.Option("--device", metavar="NAME", help="cpu or cuda.")
]
Batch = Annotated[
    int | None, typer.Option("--batch", metavar="N", min=1, help="Samples a run; by default 1.")
]
Runs = Annotated[int, typer.Option("--runs", metavar="N", min=1, help="How many are recorded.")]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=1, help="Of the processor, for each run.")
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows of each table.")]
Roofline = Annotated[
    str | None,
    typer.Option(
        "--roofline",
        metavar="NAME",
        show_default=False,
        help="Place layers under the roof of a GPU by its data sheet, such as A40; or "
        "`measured`: that of this machine.",
    ),
]
Memory = Annotated[
    bool, typer.Option("--memory", help="Tell which bytes live while each layer runs.")
]
Nsys = Annotated[bool, typer.Option("--nsys", help="Run under Nsight Systems, and sum it up.")]
Ncu = Annotated[
    bool, typer.Option("--ncu", help="Run under Nsight Compute, for counters of tensor cores.")
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="OUT.json", help="Leave the recording, as a Chrome trace."),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="OUT.json", help="Write all figures.")
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked for."""

    model: str | None
    recorded: Path | None
    data: Path | None
    weights: Path | None
    shapes: option.Shapes
    target: str | None
    device: Literal["cpu", "cuda"]
    batch: int | None
    runs: int
    threads: int
    top: int
    roofline: str | None
    memory: bool
    nsys: bool
    ncu: bool
    trace: Path | None
    output: Path | None

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        if (self.model is None) == (self.recorded is None):
            raise work.UsageError("give MODEL, or --from TRACE, and not both")
        if self.recorded is not None:
            for name, given in (
                ("--data", self.data), ("--weights", self.weights), ("--trace", self.trace),
                ("--target", self.target), ("--batch", self.batch), ("--nsys", self.nsys),
                ("--ncu", self.ncu), ("--roofline", self.roofline), ("--memory", self.memory),
            ):  # fmt: skip
                if given:
                    raise work.UsageError(f"{name} is of a run, and --from runs nothing")
        if self.model is not None:
            onnx_files.refuse_options(self.model, {"--weights": self.weights})
        if self.nsys and self.ncu:
            raise work.UsageError("--nsys and --ncu are of one run each: give one of them")
        if self.nsys or self.ncu:
            for name, given in (
                ("--trace", self.trace), ("--roofline", self.roofline), ("--memory", self.memory),
            ):  # fmt: skip
                if given:
                    raise work.UsageError(f"{name} is of a run without --nsys and --ncu: run twice")
        for path in filter(None, (self.output, self.trace)):
            work.require_writable(path)

    def arguments(self) -> list[str]:
        """Those of the same runs without another profiler, and without files that are written."""
        given = {
            "--data": self.data, "--weights": self.weights, "--target": self.target,
            "--device": self.device, "--batch": self.batch, "--runs": self.runs,
            "--threads": self.threads,
        }  # fmt: skip
        shapes = [
            f"{'' if name is None else f'{name}='}{','.join(map(str, sizes))}:{kind}"
            for name, sizes, kind in self.shapes
        ]
        options = [(key, value) for key, value in given.items() if value is not None]
        options += [("--input-shape", shape) for shape in shapes]
        return [str(self.model), *(str(part) for pair in options for part in pair)]


def command(
    model: Model = None,
    recorded: Recorded = None,
    data: Data = None,
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    target: TargetName = None,
    device: DeviceName = "cpu",
    batch: Batch = None,
    runs: Runs = 20,
    threads: Threads = 1,
    top: Top = 15,
    roofline: Roofline = None,
    memory: Memory = False,
    nsys: Nsys = False,
    ncu: Ncu = False,
    trace: Trace = None,
    output: Output = None,
    as_json: option.Json = False,
) -> None:
    """Tell where the time of a model goes, by layer and by kernel, and what is slow about it.

    \b
    Examples:
      quantkit profile cpu.onnx --runs 5
      quantkit profile net.pt2 --batch 8 --runs 5 --memory
      quantkit profile float.onnx --runs 5 --trace float.trace.json -o float.profile.json
    """  # noqa: D301
    asked = Asked(
        model=model, recorded=recorded, data=data, weights=weights,
        shapes=option.parse_shapes(input_shape or ()), target=target, device=device, batch=batch,
        runs=runs, threads=threads, top=top, roofline=roofline, memory=memory, nsys=nsys, ncu=ncu,
        trace=trace, output=output,
    )  # fmt: skip
    with screen(as_json) as show:
        asked.check()
        # Kineto, which records for PyTorch, prints a line where it starts and where it stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        if nsys or ncu or (recorded is not None and recorded.suffix in {".sqlite", ".csv"}):
            _counted(asked, show)
            return
        report = _report(asked)
        if output is not None:
            report.save(output)
        show.json(json.loads(report.to_json()))
        _told(report, asked, show)


def _report(asked: Asked) -> ProfileReport:
    """Of a recording, or of runs."""
    if asked.recorded is not None:
        from quantkit.profiling.profile import read_recording

        return read_recording(asked.recorded)
    with work.working("loading"):
        from quantkit.profiling.profile import profile
    assert asked.model is not None
    source = _source(asked.model, asked.weights)
    args, kwargs = _examples(asked.shapes)
    known = None if asked.model.endswith((".pt2", *_ENGINES)) else source
    opened = None if asked.data is None else models.open_data(asked.data, known)
    roof = _roof(asked)
    with work.working("running"):
        return profile(
            source, target=asked.target, device=asked.device, data=opened, example_inputs=args,
            example_kwargs=kwargs, batch=asked.batch, runs=asked.runs, threads=asked.threads,
            trace=asked.trace, roof=roof, memory=asked.memory,
        )  # fmt: skip


def _source(model: str, weights: Path | None) -> Any:
    """A file by its path, a factory by what it makes."""
    if weights is None and model.endswith((".onnx", ".pt2", *_ENGINES)):
        work.require_file(Path(model), "a .onnx or .pt2 file, or an .engine that build wrote")
        return Path(model)
    return models.load(model, weights)


def _examples(shapes: option.Shapes) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Inputs of these shapes: normal numbers, and zeros where they are whole, mostly indices."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made: list[tuple[str | None, torch.Tensor]] = []
    for name, sizes, kind in shapes:
        dtype: torch.dtype = getattr(torch, kind)
        drawn = torch.randn(sizes, generator=generator)
        made.append((name, (drawn if dtype.is_floating_point else 0 * drawn).to(dtype)))
    by_order = tuple(value for name, value in made if name is None)
    return by_order, {name: value for name, value in made if name is not None}


def _roof(asked: Asked) -> Roof | None:
    if asked.roofline is None:
        return None
    from quantkit.profiling.roofs import measure_roof, roof_from_table

    if asked.roofline != "measured":
        return roof_from_table(asked.roofline)
    return measure_roof(asked.device, threads=asked.threads)


def _told(report: ProfileReport, asked: Asked, show: Screen) -> None:
    """Findings first, then where the time went, then what cannot be told."""
    show.findings(report.findings)
    if report.findings:
        show.line()
    size = "" if report.batch is None else f", batch {report.batch}"
    show.line(f"{report.subject} in {report.runtime} on {report.device}{size}", "bold")
    for line in report.summary():
        show.line(line)
    if report.layers:
        show.line()
        show.line("By layer", "bold")
        show.table(*report.table(asked.top))
    if report.kernels:
        show.line()
        show.line("By kernel, of all layers", "bold")
        show.table(*report.kernel_table(asked.top))
    for text in (report.roofline and report.roofline.table(),
                 report.memory and report.memory.table()):  # fmt: skip
        lines = text.splitlines() if text else []
        for line in ["", *lines[: asked.top + 2]] if lines else ():
            show.line(line, copied=True)
        if len(lines) > asked.top + 2:
            show.line(f"{len(lines) - asked.top - 2} more: --top {len(lines)} shows all", "dim")
    for note in report.notes:
        show.line(note, "dim")
    for path in filter(None, (asked.trace, asked.output)):
        show.line(f"Wrote {path}", "green")


def _counted(asked: Asked, show: Screen) -> None:
    """What Nsight Systems or Nsight Compute tells, of a file or of this command run under it."""
    from quantkit.profiling import nsight

    if asked.recorded is not None:
        text, told = nsight.of_file(asked.recorded)
    else:
        argv = [sys.executable, "-m", "quantkit", "profile", *asked.arguments()]
        text, told = nsight.of_run(argv, ncu=asked.ncu)
    if asked.output is not None:
        from quantkit.files import replacing

        with replacing(asked.output) as temporary:
            temporary.write_text(json.dumps(told) + "\n", encoding="utf-8")
    show.json(told)
    for line in text.splitlines():
        show.line(line, copied=True)
