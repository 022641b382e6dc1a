"""What Inductor makes of a scheme, known before there is a model.

Each statement was found by compiling a network of that form with torch 2.13; that of saturation
also by keeping oneDNN from VNNI (``ONEDNN_MAX_CPU_ISA=AVX2``), and it stands in oneDNN's
developer guide, "Nuances of int8 Computations".
"""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.interfaces import Finding, Severity
from quantkit.spec import QuantSpec, Scheme

_INT8 = "Use int8 weights per channel and activations per tensor"


def scheme_findings(scheme: Scheme, *, device: str, saturates: bool) -> Iterator[Finding]:
    """What runs in float, or can give wrong results.

    Args:
        scheme: of a layer.
        device: ``cpu`` or ``cuda``.
        saturates: the processor sums 8-bit products in 16 bits.
    """
    weights, activations = scheme.weights, scheme.activations
    if device != "cpu" and (weights or activations):
        why = f"Inductor has no INT8 convolution or product for {device}, and computes in float"
        yield _warning("no-integer-kernel", "scheme", why, "Use TensorRT on GPUs")
        return
    if weights is not None and activations is None:
        why = (
            "its kernel for int8 weights takes bfloat16 activations alone; weights are dequantized "
            "when it compiles, and run as fast as float ones, not faster"
        )
        yield _warning("weight-only", "weights", why, "Quantize activations as well (int8_cpu)")
    elif weights is None and activations is not None:
        why = "float weights run in float, behind activations that were rounded in vain"
        yield _warning("activation-only", "weights", why, "Quantize the weights as well")
    elif weights is not None and activations is not None:
        yield from _both(weights, activations, saturates=saturates)


def _both(weights: QuantSpec, activations: QuantSpec, *, saturates: bool) -> Iterator[Finding]:
    for where, spec in (("weights", weights), ("activations", activations)):
        if spec.is_float:
            yield _warning("no-integer-kernel", where, "it computes FP8 in float on CPUs", _INT8)
            return
    if activations.axis is not None:
        why = "layers whose activations have a scale per channel run in float"
        yield _warning("per-channel-activations", "activations", why, _INT8)
        return
    if weights.granularity == "group":
        why = "layers whose weights have a scale per group run in float"
        yield _warning("group-weights", "weights", why, _INT8)
        return
    if not weights.symmetric:
        why = "its kernels leave out the zero-points of weights, so such layers run in float"
        yield _warning("weight-zero-point", "weights", why, "Set symmetric to true for weights")
        return
    used = 4 if weights.dtype == "int4" else weights.bits or 8
    if saturates and used > 7:
        why = "without VNNI, sums of products of 8-bit weights saturate in 16 bits: results differ"
        yield _warning("saturates-without-vnni", "weights", why, "Use weights of 7 bits (int8_cpu)")


def _warning(code: str, where: str, why: str, fix: str) -> Finding:
    return Finding(severity=Severity.WARNING, code=code, where=where, why=f"{why}.", fix=f"{fix}.")
