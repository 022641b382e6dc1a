"""``quantkit inspect``: what of an ONNX file TensorRT would take, and what a split costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, count, screen, size

if TYPE_CHECKING:
    from quantkit.inspecting import SupportReport
    from quantkit.partitioning import Traffic
    from quantkit.targets._rtx_costs import EnginePart

#: More engines than this are counted, not listed.
_LISTED = 12

_Onnx = Annotated[
    Path,
    typer.Argument(metavar="MODEL.onnx", show_default=False, help="An ONNX file, of any kind."),
]
_Target = Annotated[
    str,
    typer.Option(
        "--target", metavar="NAME", help="Whose parser is asked: tensorrt_rtx, or tensorrt."
    ),
]
_Blocks = Annotated[
    list[int] | None,
    typer.Option(
        "--min-block-size",
        metavar="N",
        min=1,
        help="Least operators of an engine, to compare; by default 1, 5 and 10.",
    ),
]
_Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZES",
        help="Sizes of a dynamic input, or of a custom operator's output: x=8,3,224,224.",
    ),
]


def command(
    model: _Onnx,
    target: _Target = "tensorrt_rtx",
    gpu: option.Gpu = None,
    min_block_size: _Blocks = None,
    shape: _Shapes = None,
    as_json: option.Json = False,
) -> int:
    """Tell which operators of an ONNX file TensorRT refuses, why, and what a split costs.

    Nothing is built and no GPU is needed. Exits with 1 unless one engine takes the whole file.

    \b
    Examples:
      quantkit inspect net.onnx --gpu A40
      quantkit inspect float.onnx --min-block-size 3 --shape x=8,3,8,8
      quantkit inspect float.onnx --json
    """  # noqa: D301
    shapes = dict(map(_named_shape, shape or ()))
    with screen(as_json) as show:
        work.require_file(model)
        from quantkit import inspecting

        report = inspecting.inspect(
            model,
            target,
            gpu=gpu,
            min_block_sizes=min_block_size or inspecting.BLOCK_SIZES,
            shapes=shapes,
        )
        _show(report, show)
    return 0 if report.ok else 1


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``x=1,3,32,32``; a name may hold what ONNX lets it hold, such as ``=``."""
    name, _, sizes = text.rpartition("=")
    numbers = [size.strip() for size in sizes.split(",")]
    if not name or not all(number.isdecimal() for number in numbers):
        raise work.UsageError(f"--shape {text!r} names no tensor and sizes: write x=8,3,224,224")
    return name, tuple(int(number) for number in numbers)


def _show(report: SupportReport, show: Screen) -> None:
    show.json(json.loads(report.to_json()))
    _verdict(report, show)
    show.findings(report.findings, every_one=False)
    if report.splits and not report.ok:
        show.line()
        _splits(report, show)
    if report.engines and not report.ok:
        show.line()
        _engines(report, show)
    if report.gains:
        show.line()
        _gains(report, show)
    if report.ok:
        show.line(f"Next: quantkit check {report.model} tells how each layer runs.", "dim")
    elif report.sizes:
        sizes = ", ".join(
            f"{name} of {' x '.join(map(str, dims))}" for name, dims in report.sizes.items()
        )
        show.line(f"Bytes are counted for {sizes}; --shape sets others.", "dim")


def _verdict(report: SupportReport, show: Screen) -> None:
    named = f"{report.model}: {count(report.operators, 'operator')}"
    if report.ok:
        show.line(f"{named}, and TensorRT's parser takes all, as one engine", "bold green")
        return
    if not report.splits:
        show.line(f"{report.model} cannot be read", "bold red")
        return
    if not report.operators:
        show.line(f"{report.model} has no operators that depend on its inputs", "bold red")
        return
    first = report.splits[0]
    inside = f"{first.inside} in {count(first.engines, 'engine')}"
    show.line(f"{named}: {inside}, {first.outside} left to another runtime", "bold red")


def _splits(report: SupportReport, show: Screen) -> None:
    rows = [
        (
            str(cost.min_block_size),
            str(cost.engines),
            str(cost.inside),
            str(cost.outside),
            _told(cost.crossing),
        )
        for cost in report.splits
    ]
    head = ("min_block_size", "engines", "operators in", "outside", "tensors that cross")
    show.table(head, rows)


def _engines(report: SupportReport, show: Screen) -> None:
    smallest = report.splits[0].min_block_size
    show.line(f"The engines at min_block_size {smallest}", "bold")
    rows = [_row(number, part) for number, part in enumerate(report.engines, 1)]
    show.table(("engine", "operators", "reads", "writes", "parser", "from … to"), rows[:_LISTED])
    if len(rows) > _LISTED:
        show.line(f"and {len(rows) - _LISTED} more; --json lists all")


def _row(number: int, part: EnginePart) -> tuple[str, ...]:
    verdict = {True: "takes it", False: "refuses it", None: "not asked"}[part.verified]
    ends = part.first if part.operators == 1 else f"{part.first} … {part.last}"
    return (str(number), str(part.operators), _told(part.reads), _told(part.writes), verdict, ends)


def _gains(report: SupportReport, show: Screen) -> None:
    now = report.splits[0].engines
    show.line("What to fix first", "bold")
    rows = [
        (
            f"{gain.operator}: {gain.cause}",
            _places(gain.between, now),
            f"{count(gain.engines, 'engine')}" + ("" if gain.engines == now else f", not {now}"),
            _named(gain.nodes) or "reads constants alone",
        )
        for gain in report.gains
    ]
    show.table(("cause", "between", "without it", "nodes"), rows)


def _places(between: tuple[tuple[int, int], ...], engines: int) -> str:
    """The engines that steps part: ``1 and 2``."""
    told = [
        f"{before or 'start'} and {behind if behind <= engines else 'end'}"
        for before, behind in between
    ]
    return ", ".join(told[:3]) + (" …" if len(told) > 3 else "")


def _named(nodes: tuple[str, ...]) -> str:
    more = len(nodes) - 4
    return ", ".join(nodes[:4]) + (f" and {more} more" if more > 0 else "")


def _told(traffic: Traffic) -> str:
    if not traffic.tensors:
        return "none"
    if traffic.unknown == traffic.tensors:
        return f"{traffic.tensors}: unknown"
    more = f" and {traffic.unknown} unknown" if traffic.unknown else ""
    return f"{traffic.tensors}: {size(traffic.bytes)}{more}"
