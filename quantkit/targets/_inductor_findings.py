"""What is told of a compiled program: how each layer runs, and what is wrong or slow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from quantkit.interfaces import Finding, Inspection, LayerCoverage, Severity
from quantkit.targets._inductor_compile import Compilation
from quantkit.targets._inductor_prepare import Layer
from quantkit.targets._inductor_process import Outcome, Output
from quantkit.targets._inductor_rules import Reason

#: Noise over this share of the signal, 20 dB, is that of other results, except where a model is
#: so sensitive that weights moved by one in 10,000 make a tenth of it.
_NOISE, _TIMES = 1e-2, 10.0

_FEWER_BITS = "Use weights of 7 bits (recipe int8_cpu)."

#: Of a layer whose Q/DQ should have been matched, and was not.
_UNMATCHED = Reason(
    "runs-in-float",
    "Inductor has not matched its Q/DQ",
    "Compile it with the version of PyTorch that this version of quantkit was tested with",
)


def inspection_of(label: str, model: Path, compiled: Compilation, *, saturates: bool) -> Inspection:
    """Everything that compiling a file has shown.

    Args:
        label: the target's name for people.
        model: the file.
        compiled: what became of it.
        saturates: the processor sums 8-bit products in 16 bits.
    """
    outcome = compiled.outcome
    return Inspection(
        target=label,
        layers=tuple(_coverage(layer, outcome) for layer in compiled.layers),
        findings=tuple(_findings(model, compiled, saturates=saturates)),
        engine=compiled.package,
        seconds=outcome.seconds,
    )


def _kernel(layer: Layer, outcome: Outcome) -> str:
    return outcome.kernels.get(layer.scale or "", "")


def _reason(layer: Layer, outcome: Outcome) -> Reason | None:
    """Why a quantized layer runs in float, if it does."""
    if not layer.quantized or _kernel(layer, outcome):
        return None
    return layer.reason or _UNMATCHED


def _coverage(layer: Layer, outcome: Outcome) -> LayerCoverage:
    if outcome.error:
        precision, reason = "none", "it did not compile"
    elif kernel := _kernel(layer, outcome):
        return LayerCoverage(
            node=layer.name, op_type=layer.operator, quantized=True, precision="int8",
            kernel=kernel, reason="",
        )  # fmt: skip
    else:
        why = _reason(layer, outcome)
        precision = "float32"
        reason = "the program leaves it in float" if why is None else why.why
    return LayerCoverage(
        node=layer.name, op_type=layer.operator, quantized=layer.quantized, precision=precision,
        kernel="", reason=reason,
    )  # fmt: skip


def _findings(model: Path, compiled: Compilation, *, saturates: bool) -> Iterator[Finding]:
    outcome = compiled.outcome
    if outcome.error:
        fix = "Leave the layers that it names in float, or run the model in ONNX Runtime."
        yield _finding(Severity.ERROR, "does-not-compile", model.name, outcome.error, fix)
        return
    wide = [layer.name for layer in compiled.layers if layer.wide and _kernel(layer, outcome)]
    for index, output in enumerate(outcome.outputs):
        yield from _wrong(index, output, saturates=saturates and bool(wide))
    for layer in compiled.layers:
        if (why := _reason(layer, outcome)) is not None:
            yield _finding(Severity.WARNING, why.code, layer.name, why.why, f"{why.fix}.")
    if wide and saturates:
        why_saturates = (
            "this processor has no VNNI and sums products of 8-bit weights in 16 bits, which can "
            "saturate: results may be wrong"
        )
        where = wide[0] if len(wide) == 1 else f"{wide[0]} and {len(wide) - 1} more"
        yield _finding(
            Severity.WARNING, "saturates-without-vnni", where, why_saturates, _FEWER_BITS
        )


def _wrong(index: int, output: Output, *, saturates: bool) -> Iterator[Finding]:
    """An output that is far from what PyTorch computes of the same program and inputs."""
    signal, noise = output.signal, output.noise
    # Written so that NaN is wrong.
    if noise <= max(_NOISE * signal, _TIMES * output.sensitivity):
        return
    measured = signal > 0.0 and math.isfinite(noise)
    told = f"{10.0 * math.log10(signal / noise):.1f} dB" if measured else "far"
    why = f"compiled, it is {told} from what PyTorch computes of the same program"
    if saturates:
        why += "; sums saturate on this processor, which has no VNNI"
    fix = _FEWER_BITS if saturates else "Run the model in ONNX Runtime, and report the program."
    yield _finding(Severity.ERROR, "wrong-result", f"output {index}", why, fix)


def _finding(severity: Severity, code: str, where: str, why: str, fix: str) -> Finding:
    why = why.rstrip(".")
    return Finding(
        severity=severity, code=code, where=where, why=f"{why[:1].upper()}{why[1:]}.", fix=fix
    )
