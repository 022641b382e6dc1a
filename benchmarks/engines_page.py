"""The part of docs/benchmarks.md on engines, from the JSON of ``benchmarks.engines``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.tables import table


def render(results: dict[str, Any]) -> str:
    """A row for each file, a column for each GPU; then every refusal in the builder's words."""
    rows = results["engines"]
    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    package = results["machine"]["packages"]["tensorrt-rtx-cu13"]
    lines = [
        "## Engines for five GPUs",
        "",
        f"`python -m benchmarks.engines`; TensorRT-RTX {package}, built without a GPU and not run.",
        "Each file as it is exported (float32) and with its float part in float16",
        "(`quantkit half`). A cell tells how many of the layers that the file quantizes run in low",
        "precision; *float* where it quantizes none.",
        "",
        *table(
            ("model", "recipe", "rest in", *(f"SM{gpu.replace('.', '')}" for gpu in gpus)),
            _cells(rows, gpus),
        ),
        "",
        *_refusals(rows),
        "",
    ]
    return "\n".join(lines)


def _cells(rows: list[dict[str, Any]], gpus: list[str]) -> Iterator[tuple[str, ...]]:
    files = list(dict.fromkeys((r["model"], r["recipe"], r["rest"]) for r in rows))
    for model, recipe, rest in files:
        found = {
            r["gpu"]: _cell(r)
            for r in rows
            if (r["model"], r["recipe"], r["rest"]) == (model, recipe, rest)
        }
        yield (model, f"`{recipe}`", rest, *(found.get(gpu, "") for gpu in gpus))


def _cell(row: dict[str, Any]) -> str:
    if not row["built"]:
        return "refused"
    return f"{row['covered']} of {row['planned']}" if row["planned"] else "float"


def _refusals(rows: list[dict[str, Any]]) -> Iterator[str]:
    told: dict[str, list[str]] = {}
    for row in rows:
        for text in row["refused"]:
            where = f"{row['model']} `{row['recipe']}` in {row['rest']} for {row['gpu']}"
            told.setdefault(text, []).append(where)
    if not told:
        yield "Every engine was built: none was refused."
    for text, places in told.items():
        yield f"- {', '.join(places)}: {text}"
