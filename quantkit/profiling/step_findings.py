"""What is slow about the way a runtime split a model into steps: pure functions of the steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal

from quantkit.interfaces import Finding, Severity
from quantkit.profiling.flow import Flow
from quantkit.profiling.steps import Step, StepKind

#: Costs below this share of the time are no finding.
LEAST: Final = 0.01
#: From this share on, moving values between layouts is one.
LEAST_REFORMATS: Final = 0.05
#: Channels are to be multiples of this, by precision: 16 bytes of values, as NVIDIA's "Matrix
#: Multiplication Background User's Guide" (Requirements to use tensor cores) has it.
ALIGNMENTS: Final = {
    "int4": 32,
    "fp4": 32,
    "int8": 16,
    "uint8": 16,
    "fp8": 16,
    "float16": 8,
    "bfloat16": 8,
    "tf32": 4,
}
_CONVERTS: Final = frozenset({StepKind.QUANTIZE, StepKind.DEQUANTIZE, StepKind.REFORMAT})


#: The share of the time that it costs (``None``: not measured), and what it is.
Judged = tuple[float | None, Finding]


def islands(flow: Flow) -> Iterator[Judged]:
    """Products in float with products of few bits before and behind them."""
    floats = [s for s in flow.steps if s.kind is StepKind.PRODUCT and _is_float(s)]
    for group in _connected(flow, floats):
        names = {step.name for step in group}
        before = [p for step in group for p in flow.products(step, up=True)]
        after = [p for step in group for p in flow.products(step, up=False)]
        if not any(p.low for p in before) or not any(p.low for p in after):
            continue
        around = _conversions(flow, group)
        share = flow.share([*group, *around])
        if share is not None and share < LEAST:
            continue
        cost = _percent(share, "of the time")
        converted = _percent(flow.share(around), "of it for conversions", of=share)
        layers = _listed([step.layer or step.name for step in group])
        yield (
            share,
            Finding(
                severity=Severity.WARNING,
                code="float-island",
                where=layers,
                why=f"{len(names)} float layer{'s' if len(names) > 1 else ''} between layers of "
                f"few bits{cost}{converted}.",
                fix="Quantize it as well: take out its override, or see what `quantkit check` says "
                "of it; if it must stay in float, leave its neighbours in float too and compare.",
            ),
        )


def ping_pong(flow: Flow) -> Iterator[Judged]:
    """Adds and concats that read dequantized values and whose result is quantized again."""
    for step in flow.steps:
        if step.kind is not StepKind.JOIN or step.low:
            continue
        opened = [s for s in _reached(flow, step, up=True) if s.kind is StepKind.DEQUANTIZE]
        closed = [s for s in _reached(flow, step, up=False) if s.kind is StepKind.QUANTIZE]
        if not opened or not closed:
            continue
        share = flow.share([step, *opened, *closed])
        if share is not None and share < LEAST:
            continue
        yield (
            share,
            Finding(
                severity=Severity.WARNING,
                code="int8-float-int8",
                where=step.layer or step.name,
                why=f"{step.op} dequantizes {len(opened)} of its inputs, computes in float, and "
                f"its result is quantized again{_percent(share, 'of the time')}.",
                fix="Quantize all of its inputs and its output, on one grid where it is a concat: "
                "`quantkit check` tells why an input stays in float.",
            ),
        )


def dequantized(flow: Flow) -> Iterator[Judged]:
    """Products whose operands are dequantized before, and that multiply in float."""
    slow = [
        step
        for step in flow.steps
        if step.kind is StepKind.PRODUCT
        and _is_float(step)
        and sum(s.kind is StepKind.DEQUANTIZE for s in flow.before(step)) >= 2
    ]
    opened = {s.name: s for p in slow for s in flow.before(p) if s.kind is StepKind.DEQUANTIZE}
    share = flow.share([*slow, *opened.values()])
    if not slow or (share is not None and share < LEAST):
        return
    products = sum(step.kind is StepKind.PRODUCT for step in flow.steps)
    yield (
        share,
        Finding(
            severity=Severity.WARNING,
            code="runs-in-float",
            where=_listed([step.layer or step.name for step in slow]),
            why=f"{len(slow)} of {products} products are quantized in the file, but dequantize "
            f"what they read and multiply in float{_percent(share, 'of the time')}.",
            fix="Export it in the form of this runtime (`--form`), by a recipe for it "
            "(`--recipe int8_cpu` for ONNX Runtime); `quantkit check` tells of each layer why.",
        ),
    )


def reformats(flow: Flow, device: Literal["cpu", "cuda"]) -> Iterator[Judged]:
    """Steps of the runtime's own that move values into another layout."""
    alike = "Give the layers on both sides one type and layout: quantize both or neither"
    if device == "cuda":
        alike += ", and keep channels multiples of 16 or 32"
    moving = [step for step in flow.steps if step.kind is StepKind.REFORMAT]
    share = flow.share(moving)
    if not moving or (share is not None and share < LEAST_REFORMATS):
        return
    if share is None and len(moving) * 4 < len(flow.steps):
        return
    behind = [s.layer or s.name for m in moving for s in (*flow.before(m), *flow.after(m))]
    yield (
        share,
        Finding(
            severity=Severity.WARNING,
            code="reformats",
            where=_listed(list(dict.fromkeys(behind)) or [m.name for m in moving]),
            why=f"{len(moving)} of {len(flow.steps)} steps only move values into another layout"
            f"{_percent(share, 'of the time')}.",
            fix=f"{alike}.",
        ),
    )


def channels(flow: Flow) -> Iterator[Judged]:
    """Products whose channels tensor cores take only after padding."""
    for step in flow.steps:
        wanted = _alignment(step.precision)
        if step.channels is None or wanted is None or min(step.channels) == 1:
            continue  # depthwise: no product of matrices
        first = not flow.products(step, up=True)
        sides = {"input": step.channels[0], "output": step.channels[1]}
        wrong = {
            side: count
            for side, count in sides.items()
            if count % wanted and not (first and side == "input")
        }
        share = flow.share([step])
        if not wrong or (share is not None and share < LEAST):
            continue
        told = " and ".join(f"{count} {side} channels" for side, count in wrong.items())
        better = ", ".join(
            f"{-(-count // wanted) * wanted} {side}" for side, count in wrong.items()
        )
        yield (
            share,
            Finding(
                severity=Severity.INFO,
                code="odd-channels",
                where=step.layer or step.name,
                why=f"{told}, no multiple of {wanted}, which tensor cores take in "
                f"{step.precision}: the rest is padding{_percent(share, 'of the time')}.",
                fix=f"Train it with {better} channels, if the model may change.",
            ),
        )


def _is_float(step: Step) -> bool:
    return step.precision.startswith(("float", "bfloat", "fp16", "fp32", "tf32"))


def _alignment(precision: str) -> int | None:
    """Of what is multiplied; where weights alone have few bits, it is not told in what."""
    return ALIGNMENTS.get(re.sub(r"_.*", "", precision))


def _connected(flow: Flow, steps: Sequence[Step]) -> list[list[Step]]:
    """Groups of the steps between which no other product lies."""
    names = {step.name for step in steps}
    left = {step.name: step for step in steps}
    groups = []
    for step in steps:
        if step.name not in left:
            continue
        group, stack = [], [left.pop(step.name)]
        while stack:
            member = stack.pop()
            group.append(member)
            for up in (True, False):
                for other in flow.products(member, up=up):
                    if other.name in names and other.name in left:
                        stack.append(left.pop(other.name))
        groups.append(sorted(group, key=flow.steps.index))
    return groups


def _conversions(flow: Flow, group: Sequence[Step]) -> list[Step]:
    """The conversions that a group is reached and left by."""
    found: dict[str, Step] = {}
    for step in group:
        for up in (True, False):
            for other in _reached(flow, step, up=up):
                if other.kind in _CONVERTS:
                    found[other.name] = other
    return list(found.values())


def _reached(flow: Flow, step: Step, *, up: bool) -> list[Step]:
    """What leads to or from a step, up to where values change between float and few bits."""
    near = flow.before if up else flow.after
    ends: AbstractSet[StepKind] = {StepKind.QUANTIZE, StepKind.DEQUANTIZE, StepKind.PRODUCT}
    found: dict[str, Step] = {}
    stack = near(step)
    while stack:
        other = stack.pop()
        if other.name in found or other.kind in {StepKind.PRODUCT, StepKind.JOIN}:
            continue
        found[other.name] = other
        if other.kind not in ends:
            stack += near(other)
    return list(found.values())


def _percent(share: float | None, what: str, of: float | None = 1.0) -> str:
    if share is None or not of:
        return ""
    return f", {100.0 * share / of:.1f} % {what}"


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
