"""The part of docs/benchmarks.md on passes, roundings and formats, from ``benchmarks.survival``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.survival_rows import ROWS
from benchmarks.tables import table

_HEAD = (
    "row", "float", "deployed", "drop", "SQNR dB", "baseline", "over it dB", "seconds",
    "memory MB",
)  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """A table for each model, a row for each recipe."""
    lines = [
        "## Passes, roundings and formats",
        "",
        "`python -m benchmarks.survival`; every row quantized in a process of its own, on one",
        "thread, and deployed in ONNX Runtime in exact mode (the TensorRT form), on the same data",
        "as above. *Baseline* is the row that it improves on. *Seconds* and *memory* (by what",
        "the peak rises) are those of `quantize`; the machine was shared, so seconds are rough. A",
        "row named after a pass or rounding is its baseline's recipe with that beside. W4A4, with",
        "asymmetric activations, is in the form of ONNX Runtime.",
        "",
    ]
    for model, rows in results["models"].items():
        lines += [f"### {model}", "", *table(_HEAD, _rows(model, rows)), ""]
    return "\n".join(lines)


def _rows(model: str, rows: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name in (row.name for row in ROWS[model] if row.name in rows):
        row = rows[name]
        points, cost = row["points"], row["cost"]
        base = rows.get(row["baseline"] or "")
        gain = "" if base is None else f"{row['sqnr_db'] - base['sqnr_db']:+.1f}"
        yield (
            name, f"{points['float']:.2f}", f"{points['deployed']:.2f}",
            f"{points['float'] - points['deployed']:.2f}", f"{row['sqnr_db']:.1f}",
            row["baseline"] or "", gain, f"{cost['seconds']:.0f}",
            f"{cost['peak_mb'] - cost['before_mb']:.0f}",
        )  # fmt: skip
