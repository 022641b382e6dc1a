"""Puts what the TensorRT-RTX parser and builder say into findings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from quantkit.errors import TargetError
from quantkit.interfaces import Finding, Severity
from quantkit.targets._engine_process import Outcome, Refusal
from quantkit.targets._rtx_graph import GraphReader

_PTQ = "use the recipe int8_ptq"

#: The builder's words, the rule's name, and the way out.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"Non-zero zero point",
        "nonzero-zero-point",
        f"Quantize symmetrically, with zero-point 0: {_PTQ}.",
    ),
    (
        r"unsupported input type of U?INT(8|16|4|32)",
        "unsupported-integer",
        f"Store weights as int8 (or int4) with zero-point 0: {_PTQ}.",
    ),
    (
        r"Scale coefficients must all be positive",
        "nonpositive-scale",
        "Give every channel a positive scale; a channel of zeros may take any, such as 1.",
    ),
    (
        r"HW-specific datatypes",
        "hardware-format",
        f"Build for a GPU that has the format, or {_PTQ}.",
    ),
    (
        r"optimization profile|of input .* are refused|^shapes names",
        "missing-profile",
        "Give shapes: for each dynamic input its smallest, best and largest shape.",
    ),
    (
        r"Plugin not found",
        "custom-operator",
        "Replace it by standard ONNX operators; the builder has no plugin of this name.",
    ),
    (
        r"input has type Int32 but must have type",
        "quantized-bias",
        "Leave biases in float: TensorRT adds them after the integer product.",
    ),
    (
        r"for Turing \(SM75\)",
        "turing",
        "Put the float part in half (quantkit half), or build for SM80 or later.",
    ),
    (
        r"have to be the same type",
        "mixed-formats",
        f"Quantize both operands to one format: {_PTQ}.",
    ),
)

_NOISE = re.compile(
    r"cudaError|^Invalid Node|While parsing node|--- (Begin|End) node ---|ERROR: |^\[\d\] "
    r"|Cuda Runtime"
)


def sentence(text: str) -> str:
    """The builder's own words on one line, without its source positions.

    Example:
        >>> sentence("IBuilder: Error Code 1: Myelin ([pass.cpp:1: run] It broke. In f at g:3)")
        'It broke.'
    """
    text = " ".join(text.split())
    text = re.sub(r"^.*?Error Code \d+: [^(]*\((.*)\)$", r"\1", text)
    text = re.sub(r"^\[[^\]]*\] ", "", text)
    text = re.sub(r"\.? In \w+ at \S+$", "", text)
    text = re.sub(r"^Assertion failed: (.*?: )?", "", text)
    text = re.sub(r'^.*&& "(.*)"$', r"\1", text)  # a C++ assertion with its message
    text = re.sub(r" Please set kENABLE.*$", "", text)  # advice for another device (DLA)
    return text if text.endswith("?") else text.rstrip(".!") + "."


def _refused(where: str, text: str, *, operator: str = "", named: bool = True) -> Finding:
    """One refusal; ``named``: ``where`` is a part of the model, not the file."""
    why = sentence(text)
    for pattern, code, fix in _KNOWN:
        if re.search(pattern, why):
            return Finding(severity=Severity.ERROR, code=code, where=where, why=why, fix=fix)
    if operator:
        if why in ("false.", "Invalid Node."):
            why = f"The parser does not take {operator}."
        return Finding(
            severity=Severity.ERROR,
            code="unsupported-operator",
            where=where,
            why=why,
            fix=f"Export {operator} in another form, or leave that part out of the model.",
        )
    return Finding(
        severity=Severity.ERROR,
        code="builder-refused",
        where=where,
        why=why,
        fix=f"Leave {where} in float, or change the shapes it is built for."
        if named
        else "Build the float model: if it is refused as well, change that model or the shapes it "
        "is built for; else leave layers in float by overrides until it builds.",
    )


def _from_refusal(refusal: Refusal, errors: tuple[str, ...], model: str) -> Finding:
    why = refusal.why
    if _NOISE.search(why):  # without a GPU the parser hides the reason; the log tells it
        clear = [text for text in errors if not _NOISE.search(text)]
        why = next((text for text in clear if refusal.node and refusal.node in text), why)
        if why == refusal.why:
            why = "Invalid Node"
    named = bool(refusal.node)
    return _refused(refusal.node or model, why, operator=refusal.operator, named=named)


def from_outcome(
    outcome: Outcome, reader: GraphReader, model: str, timeout_s: float
) -> list[Finding]:
    """The errors of one build, the parser's before the builder's."""
    if outcome.built:  # what ended the child afterwards has cost nothing
        return []
    findings = [_from_refusal(refusal, outcome.errors, model) for refusal in outcome.refusals]
    if outcome.ended == "timeout":
        findings.append(
            Finding(
                severity=Severity.ERROR,
                code="builder-timeout",
                where=model,
                why=f"The build took longer than {timeout_s:g} s and was stopped.",
                fix="Raise timeout_s, or build a smaller model.",
            )
        )
    elif outcome.ended is not None and not findings:
        findings.append(_crash(outcome, reader, model))
    elif not findings:
        messages = list(dict.fromkeys(t for t in outcome.errors if not _NOISE.search(t)))
        names = [node.name for node in reader.compute_nodes]
        for text in messages or ["It gives no reason"]:
            where = next((name for name in names if f"'{name}'" in text), model)
            findings.append(_refused(where, text, named=where in names))
    unique = {(finding.where, finding.code): finding for finding in reversed(findings)}
    return list(reversed(unique.values()))


def unreadable(model: Path, why: str) -> Finding:
    """The finding of a file that does not decode."""
    return Finding(
        severity=Severity.ERROR,
        code="unreadable-model",
        where=model.name,
        why=f"It is not an ONNX file ({why or 'it does not decode'}).",
        fix="Export the model with quantkit.export_onnx.",
    )


def refuse_errors(label: str, model: Path, findings: Iterable[Finding]) -> None:
    """Raise ``TargetError`` of the first finding that is an error."""
    first = next((f for f in findings if f.severity is Severity.ERROR), None)
    if first is not None:
        raise TargetError(
            f"{label} cannot build {model.name}: {first.where}: {first.why} Fix: {first.fix}"
        )


def _crash(outcome: Outcome, reader: GraphReader, model: str) -> Finding:
    computed = [
        node
        for node in reader.compute_nodes
        for side in (node.left, node.right)
        if side.dequantize is not None and not side.dequantize.constant_scale
    ]
    if computed:
        return Finding(
            severity=Severity.ERROR,
            code="computed-scale",
            where=computed[0].name,
            why=f"The builder crashes ({outcome.ended}) on a scale that is computed at run time "
            f"before {computed[0].op_type}.",
            fix="Store the scale as a constant, or divide by it first and quantize with scale 1.",
        )
    told = f" It printed: {' '.join(outcome.stderr.split())}" if outcome.stderr else ""
    return Finding(
        severity=Severity.ERROR,
        code="builder-crash",
        where=model,
        why=f"The builder crashed ({outcome.ended}) in its child process.{told}",
        fix="Quantize fewer layers to find the one it cannot build, and leave that one in float.",
    )
