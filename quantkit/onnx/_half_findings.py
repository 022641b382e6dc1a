"""What a conversion to half has to tell, as findings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.interfaces import Finding, Severity
from quantkit.onnx._half_graph import is_island
from quantkit.onnx._half_plan import HalfPlan
from quantkit.onnx._half_ranges import HEADROOM
from quantkit.onnx.parity import OutputParity

#: Below this, in dB, a difference of two quantized files is one of codes, not of half.
_CODES = 40.0


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was measured of the outputs.

    Attributes:
        parity: the file written beside the reference, or beside the file it was made of.
        before: that file beside the reference.
        quantized: it is a Q/DQ file, and was compared with itself.
        unmeasured: why nothing was measured, though data were given.
    """

    parity: tuple[OutputParity, ...] = ()
    before: tuple[OutputParity, ...] = ()
    quantized: bool = False
    unmeasured: str | None = None


def of(plan: HalfPlan, compared: Compared, model: Path, *, seen: bool) -> tuple[Finding, ...]:
    """The findings of one conversion, the worst first.

    Args:
        plan: what stays in float32.
        compared: how far the outputs are apart.
        model: the float file.
        seen: data were given.
    """
    name, narrow = plan.half.name, plan.half.largest < np.finfo(np.float32).max / HEADROOM
    found = [*_not_finite(compared.parity, name), *_islands(plan), *_unused(plan)]
    if compared.unmeasured is not None:
        found.append(
            Finding(
                severity=Severity.WARNING,
                code="parity-not-measured",
                where=model.name,
                why=f"How far the outputs move is not known: {compared.unmeasured.rstrip('.')}.",
                fix="Compare the engine with the float file on a GPU before it is deployed.",
            )
        )
    if compared.quantized and any(output.sqnr < _CODES for output in compared.parity):
        found.append(
            Finding(
                severity=Severity.INFO,
                code="compared-with-itself",
                where=model.name,
                why="A value that half moves across a boundary takes the next code, so a quantized "
                "file beside itself shows the noise of its grids, not an error.",
                fix="Give the float file as the reference.",
            )
        )
    if not seen:
        unknown = f"which activations leave the range of {name}, nor " if narrow else ""
        found.append(
            Finding(
                severity=Severity.INFO,
                code="ranges-not-seen",
                where=model.name,
                why=f"Without data it is not known {unknown}how far the outputs move.",
                fix="Give a few batches of data.",
            )
        )
    return tuple(found)


def _not_finite(parity: tuple[OutputParity, ...], name: str) -> Iterator[Finding]:
    for output in parity:
        if math.isnan(output.sqnr):
            yield Finding(
                severity=Severity.ERROR,
                code="output-not-finite",
                where=output.name,
                why=f"In {name} it holds NaN or infinity where the float file's does not.",
                fix="Convert to bfloat16, or keep what computes it in float32.",
            )


def _islands(plan: HalfPlan) -> Iterator[Finding]:
    """Products in float32: the only nodes that cost speed there."""
    for node, reason in plan.kept.items():
        if is_island(node) and not reason.framed and not reason.asked:
            yield Finding(
                severity=Severity.WARNING,
                code="float32-layer",
                where=node.name or node.op_type,
                why=f"This {node.op_type} runs in float32, which is slow: {reason.text}.",
                fix="Bring its numbers into range before export, or convert to bfloat16.",
            )


def _unused(plan: HalfPlan) -> Iterator[Finding]:
    for pattern in plan.unused:
        yield Finding(
            severity=Severity.WARNING,
            code="unused-keep",
            where=f"keep {pattern!r}",
            why="It matches the name of no node.",
            fix="Correct the pattern; quantkit check --layers lists the names of layers.",
        )
