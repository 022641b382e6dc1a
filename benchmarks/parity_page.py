"""The part of docs/benchmarks.md on the parity gate, from ``benchmarks.parity``."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import table

_HEAD = ("model", "recipe", "tensors", "worst step by itself, dB", "deployed / simulated, dB",
         "simulated / float, dB", "departs", "check, s", "of that layer by layer, s")  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    files = results["files"]
    lines = [
        "## Parity, layer by layer",
        "",
        "`python -m benchmarks.parity`: the file beside the float and the simulated model at each",
        "layer and each activation behind Q/DQ, the worst of each. *By itself*: every step is",
        "given the simulation's tensors. `check` takes in the build (ResNet-20: by the recipe's",
        "target) and the outputs of the whole calibration set; layers are compared on 64 samples.",
        "",
        *table(_HEAD, (_row(row) for row in files)),
        "",
        "Faults planted at every activation of ResNet-20's files in turn, on 8 images. *Named*:",
        "a finding names the tensor that the fault is in.",
        "",
        *table(("recipe", "fault", "planted", "found", "named"), _planted(files)),
        "",
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    worst = [row[key] for key in ("own_db", "deployed_db", "simulated_db")]
    return (
        row["model"], row["recipe"], str(row["tensors"]),
        *("equal" if value == float("inf") else f"{value:.1f}" for value in worst),
        row["departs"] or "nowhere", f"{row['check_seconds']:.1f}", f"{row['layer_seconds']:.1f}",
    )  # fmt: skip


def _planted(files: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (row["recipe"], fault, *(str(counts[key]) for key in ("planted", "found", "named")))
        for row in files
        for fault, counts in row.get("planted", {}).items()
    ]
