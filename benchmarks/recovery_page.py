"""The part of docs/benchmarks.md on ``recover``, from ``benchmarks.recovery``."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import table

_HEAD = ("step", "change", "top-1", "drop", "SQNR dB", "seconds", "")


def render(results: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    found, again = results["found"], results["again"]
    verdict = "met" if found["met"] else "NOT met"
    lines = [
        "## Recovery",
        "",
        "`python -m benchmarks.recovery`: `recover` on EfficientNet-Lite0 from min-max ranges and",
        f"one scale a tensor of weights, with a drop of {found['max_drop']:g} points allowed; the",
        f"{found['samples']} labelled photos judge. The goal is {verdict}, in",
        f"{found['seconds'] / 60.0:.0f} minutes:",
        "",
        *table(_HEAD, (_row(attempt) for attempt in found["attempts"])),
        "",
        "Its recipe run again, on the same photos: top-1 "
        f"{again['points']['simulated']:.2f} simulated and {again['points']['deployed']:.2f} in",
        f"ONNX Runtime of {again['points']['float']:.2f} in float; SQNR "
        f"{again['sqnr_db']['simulated']:.2f} dB and {again['sqnr_db']['deployed']:.2f} dB.",
        "",
        "```yaml",
        results["yaml"].rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(attempt: dict[str, Any]) -> tuple[str, ...]:
    value, drop, sqnr = (attempt.get(key) for key in ("value", "drop", "sqnr"))
    numbers = ["" if x is None else f"{x:.2f}" for x in (value, drop, sqnr)]
    note = "best so far" if attempt["best_so_far"] else attempt["note"] or attempt["status"]
    return (attempt["step"], attempt["change"], *numbers, f"{attempt['seconds']:.0f}", note)
