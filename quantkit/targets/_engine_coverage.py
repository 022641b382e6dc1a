"""How each layer of a file runs in an engine, from the engine's own list of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from quantkit.interfaces import Finding, LayerCoverage, Severity
from quantkit.targets._engine_layers import LOW, UNTOLD, Kernel, kernel_for, precision
from quantkit.targets._rtx_graph import ComputeNode, GraphReader
from quantkit.targets._rtx_reasons import why_float

#: Why a layer runs in float, and what to do.
Reason: TypeAlias = tuple[str, str]


def coverage(
    reader: GraphReader,
    kernels: Sequence[Kernel],
    *,
    built: bool,
    calibrated: bool = False,
    own: Callable[[ComputeNode], Reason | None] = lambda node: None,
) -> tuple[tuple[LayerCoverage, ...], tuple[Finding, ...]]:
    """Each compute layer, and a finding for each that runs in float against the plan.

    Args:
        reader: of the file.
        kernels: of the engine; none where it was not built.
        built: whether it was.
        calibrated: the builder has quantized what the file has in float.
        own: the reason that a layer has in this SDK alone, where it has one.
    """
    layers, findings = [], []
    regions = any(kernel.opaque for kernel in kernels)
    for node in reader.compute_nodes:
        kernel = kernel_for(kernels, node.name)
        runs = UNTOLD if built and regions else "none"
        if kernel is not None:
            runs = precision(
                kernel,
                quantized_weight=node.quantized_weight,
                float_weight=node.float_weight and not calibrated,
            )
        reason = node.reason or _why_not_quantized(node, runs, kernel, built=built)
        if calibrated and runs in LOW:
            reason = ""
        if kernel is not None and node.quantized and _falls_short(node, runs):
            reason, fix = own(node) or why_float(node)
            findings.append(_runs_in_float(node, runs, reason, fix))
        layers.append(
            LayerCoverage(
                node=node.name,
                op_type=node.op_type,
                quantized=node.quantized,
                precision=runs,
                kernel="" if kernel is None else kernel.name,
                reason=reason,
            )
        )
    return tuple(layers), tuple(findings)


def _why_not_quantized(node: ComputeNode, runs: str, kernel: Kernel | None, *, built: bool) -> str:
    if not built:
        return "the engine was not built"
    if runs == UNTOLD:
        return "the engine does not tell the formats of this layer's kernel"
    if kernel is None:
        return "the builder removed it: its result is constant or unused"
    return "" if node.quantized else "not quantized in the file"


def _runs_in_float(node: ComputeNode, precision: str, reason: str, fix: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="runs-in-float",
        where=node.name,
        why=f"The file wants it in low precision, but it runs in {precision}: {reason}.",
        fix=fix,
    )


def _falls_short(node: ComputeNode, precision: str) -> bool:
    """Whether a layer runs in float, or reads activations in float that the file quantizes."""
    if precision.endswith(" weights"):
        return node.left.dequantize is not None or node.left.behind
    return precision.startswith(("float", "bfloat"))
