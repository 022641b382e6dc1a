"""What TensorRT makes of a scheme, known before there is a model; needs no SDK.

What depends on the GPU is in ``quantkit.hardware``. Each other rule was found by building a network
of that form (TensorRT-RTX 1.7.1).
"""

from __future__ import annotations

from quantkit import hardware
from quantkit.hardware import Gpu, Runtime
from quantkit.interfaces import Finding, Severity
from quantkit.spec import QuantSpec, Scheme

_PTQ = "use the recipe int8_ptq"


def scheme_findings(
    scheme: Scheme, capability: int, runtime: Runtime = Runtime.TENSORRT_11
) -> list[Finding]:
    """What is refused (errors) or runs in float (warnings) for a capability such as 86."""
    findings: list[Finding] = []
    for where, spec in (("weights", scheme.weights), ("activations", scheme.activations)):
        if spec is not None:
            findings += _grids(where, spec)
    findings += hardware.refusals([scheme], Gpu("", divmod(capability, 10)), runtime)
    if scheme.activations is not None:
        findings += _activations(scheme.activations)
    return findings + _combination(scheme)


def _error(code: str, where: str, why: str, fix: str) -> Finding:
    return Finding(severity=Severity.ERROR, code=code, where=where, why=why, fix=fix)


def _warning(code: str, where: str, why: str, fix: str) -> Finding:
    return Finding(severity=Severity.WARNING, code=code, where=where, why=why, fix=fix)


def _grids(where: str, spec: QuantSpec) -> list[Finding]:
    findings: list[Finding] = []
    if not spec.symmetric:
        why = "TensorRT takes zero-point 0 only, and an asymmetric grid has others."
        findings.append(_error("asymmetric", where, why, f"Set symmetric to true, or {_PTQ}."))
    if spec.dtype == "uint8":
        why = "TensorRT reads uint8 grids as int8 or refuses them."
        findings.append(_error("uint8", where, why, f"Set dtype to int8, or {_PTQ}."))
    return findings


def _activations(spec: QuantSpec) -> list[Finding]:
    findings: list[Finding] = []
    if spec.granularity == "channel":
        why = "Layers whose activations have a scale per channel run in float."
        fix = f"Remove axis for one scale per tensor, or {_PTQ}."
        findings.append(_warning("per-channel-activations", "activations", why, fix))
    if spec.dtype == "int4":
        why = "No kernel reads int4 activations: they cost the accuracy of 4 bits, run as int8."
        findings.append(
            _warning("int4-activations", "activations", why, f"Set dtype to int8, or {_PTQ}.")
        )
    return findings


def _combination(scheme: Scheme) -> list[Finding]:
    weights, activations = scheme.weights, scheme.activations
    if weights is None and activations is not None:
        why = "Quantized activations with float weights run in float: slower, and less accurate."
        return [_warning("activation-only", "activations", why, f"Quantize weights too: {_PTQ}.")]
    if weights is None:
        return []
    if activations is None:
        return _weight_only(weights)
    findings: list[Finding] = []
    if weights.granularity == "group":
        why = (
            "With quantized activations the builder moves the scales of weight groups behind the "
            "integer sum, where they cannot be: the results would be wrong."
        )
        fix = f"Remove group_size, or quantize weights only, or {_PTQ}."
        findings.append(_error("group-weights-with-activations", "weights", why, fix))
    if weights.is_float != activations.is_float:
        why = f"The builder refuses {activations.dtype} activations with {weights.dtype} weights."
        findings.append(_error("mixed-formats", "weights", why, f"Use one dtype, or {_PTQ}."))
    return findings


def _weight_only(weights: QuantSpec) -> list[Finding]:
    if weights.dtype == "int4" and weights.granularity != "group":
        why = "int4 weights without groups are dequantized before a product in float."
        fix = f"Set group_size to 32, 64 or 128, or {_PTQ}."
        return [_warning("int4-without-groups", "weights", why, fix)]
    if weights.dtype == "int8" and weights.granularity == "group":
        why = "int8 weights in groups are dequantized before a product in float."
        fix = f"Remove group_size for one scale per channel, or {_PTQ}."
        return [_warning("int8-groups", "weights", why, fix)]
    return []
