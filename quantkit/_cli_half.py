"""``quantkit half``: the float part of an ONNX file in float16 or bfloat16."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, count, screen, size
from quantkit.interfaces import Severity

if TYPE_CHECKING:
    from quantkit.onnx.half import HalfReport

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL.onnx", show_default=False, help="An ONNX file in float32, quantized or not."
    ),
]
Format = Annotated[
    Literal["float16", "bfloat16"],
    typer.Option("--precision", metavar="NAME", help="Of the float part: or bfloat16."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATA.yaml", help="Look for what leaves the range of half."),
]
FloatReference = Annotated[
    Path | None,
    typer.Option(
        "--reference", metavar="FLOAT.onnx", help="What a Q/DQ file was made of: compare with it."
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="GLOB", help="Nodes that are to stay in float32."),
]
HalfBorders = Annotated[
    bool, typer.Option("--half-io", help="Inputs and outputs become half as well.")
]
Nodes = Annotated[bool, typer.Option("--nodes", help="List every node that stays in float32.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command."""

    model: Path
    output: Path
    precision: Literal["float16", "bfloat16"]
    data: Path | None
    reference: Path | None
    keep: Sequence[str]
    half_io: bool
    every_node: bool


def command(
    model: Model,
    output: option.OnnxOutput,
    precision: Format = "float16",
    data: Data = None,
    reference: FloatReference = None,
    keep: Keep = None,
    half_io: HalfBorders = False,
    nodes: Nodes = False,
    as_json: option.Json = False,
) -> int:
    """Put the float part of an ONNX file in half, so that TensorRT runs none of it in float32.

    Scales and integers stay as they are; what half would not compute rightly stays in float32.

    Exits with 1 where an output is no longer finite.

    \b
    Examples:
      quantkit half net.onnx -o half.onnx
      quantkit half net.onnx -o half.onnx --data calib.yaml --reference float.onnx
      quantkit half float.onnx -o half.onnx --precision bfloat16 --json
    """  # noqa: D301
    asked = Asked(
        model=model, output=output, precision=precision, data=data, reference=reference,
        keep=tuple(keep or ()), half_io=half_io, every_node=nodes,
    )  # fmt: skip
    with screen(as_json) as show:
        work.require_together({"--data": data}, {"--reference": reference})
        return _half(asked, show)


def _half(asked: Asked, show: Screen) -> int:
    """The command, from its options to its last line; returns its exit code."""
    for file in filter(None, (asked.model, asked.reference)):
        onnx_files.load(str(file), None)
    work.require_writable(asked.output)
    from quantkit.onnx.facts import bytes_on_disk, read_proto

    read_proto(asked.model)
    before = bytes_on_disk(asked.model)
    batches = None if asked.data is None else models.open_data(asked.data, asked.model)
    with work.working(f"converting {asked.model}"):
        from quantkit.onnx.half import to_half
    report = to_half(
        asked.model, asked.output, precision=asked.precision, data=batches,
        reference=asked.reference, keep_io=not asked.half_io, keep=asked.keep,
    )  # fmt: skip
    written = bytes_on_disk(asked.output)
    show.json(_plain({**asdict(report), "bytes": written, "float_bytes": before}))
    _show(asked, report, show)
    show.line(f"Wrote {asked.output}: {size(written)}; in float32 {size(before)}", "green")
    failed = any(finding.severity is Severity.ERROR for finding in report.findings)
    if failed:
        show.line(f"not ok: {asked.output} puts out what is not a number", "bold red")
        return 1
    engine = asked.output.with_suffix(".engine")
    show.line(f"Next: quantkit build {asked.output} -o {engine}", "dim", copied=True)
    return 0


def _show(asked: Asked, report: HalfReport, show: Screen) -> None:
    total = report.converted + len(report.kept)
    show.line(f"{report.converted} of {count(total, 'float node')} in {report.precision}", "bold")
    if report.kept:
        nodes = ((k.node, k.op_type, k.reason) for k in report.kept)
        rows = nodes if asked.every_node else _grouped(report)
        head = "node" if asked.every_node else "nodes"
        show.table((head, "operator", "why it stays in float32"), rows)
    for line in _numbers(report):
        show.line(line)
    if report.parity:
        show.line()
        beside = asked.model if asked.reference is None else asked.reference
        show.line(f"Beside {beside}, over {count(report.samples, 'sample')}", "bold")
        show.table(("SQNR", "largest difference", "file", "output"), _parity(asked, report))
    if report.findings:
        show.line()
        show.findings(report.findings, every_one=asked.every_node)


def _numbers(report: HalfReport) -> Iterator[str]:
    """What became of constants, in words."""
    weights = count(report.weights, "constant")
    yield f"{count(report.casts, 'Cast')} at the borders; {weights} in half"
    if report.clamped:
        yield f"{count(report.clamped, 'constant')} in place of infinity brought into range"
    if report.zeroed or report.subnormal:
        yield (
            f"of the constants, {report.zeroed:,} numbers round to 0 and {report.subnormal:,} have "
            "no full mantissa"
        )


def _grouped(report: HalfReport) -> Iterator[tuple[str, str, str]]:
    """Nodes that stay for one reason, in one row."""
    groups: dict[str, list[str]] = defaultdict(list)
    for kept in report.kept:
        groups[kept.reason].append(kept.op_type)
    for reason, operators in groups.items():
        yield str(len(operators)), ", ".join(dict.fromkeys(operators)), reason


def _parity(asked: Asked, report: HalfReport) -> Iterator[tuple[str, str, str, str]]:
    for file, outputs in ((asked.model, report.before), (asked.output, report.parity)):
        for found in outputs:
            yield f"{found.sqnr:.1f} dB", f"{found.largest:.3g}", str(file), found.name


def _plain(value: Any) -> Any:
    """As JSON can hold it: no infinity and no NaN, and paths as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
