"""The part of docs/benchmarks.md on passes, roundings and formats, from ``benchmarks.survival``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tables import table

_HEAD = (
    "model", "row", "float", "deployed", "drop", "SQNR dB", "over its baseline dB",
    "seconds", "memory MB",
)  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """A row for each recipe, under the baseline that it is to improve."""
    lines = [
        "## Passes, roundings and formats",
        "",
        "`python -m benchmarks.survival`; every row quantized in a process of its own, on one",
        "thread, and deployed in ONNX Runtime in exact mode (the TensorRT form), on the same data",
        "as above. *Seconds* and *memory* (what the peak rises by) are those of `quantize`; the",
        "machine was shared, so seconds are rough. A row named after a pass or rounding is",
        "`int8_ptq` with that alone.",
        "",
        *table(_HEAD, _rows(results["models"])),
        "",
    ]
    return "\n".join(lines)


def _rows(models: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for model, rows in models.items():
        for name, row in rows.items():
            points, cost = row["points"], row["cost"]
            base = rows.get(row["baseline"] or "")
            gain = "" if base is None else f"{row['sqnr_db'] - base['sqnr_db']:+.1f}"
            yield (
                model, name, f"{points['float']:.2f}", f"{points['deployed']:.2f}",
                f"{points['float'] - points['deployed']:.2f}", f"{row['sqnr_db']:.1f}", gain,
                f"{cost['seconds']:.0f}", f"{cost['peak_mb'] - cost['before_mb']:.0f}",
            )  # fmt: skip
