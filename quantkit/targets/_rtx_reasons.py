"""What the TensorRT-RTX builder does not say: what it gets wrong, and why a layer runs in float."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from quantkit.interfaces import Finding, Severity
from quantkit.targets._rtx_graph import ComputeNode, GraphReader, Source

_PTQ = "use the recipe int8_ptq"


def static_findings(reader: GraphReader, refused: Collection[str]) -> list[Finding]:
    """What the builder takes and gets wrong, and what stands behind the first node it refuses.

    Nodes in ``refused`` are not reported again.
    """
    shifted = [node.name for node in reader.shifted_grids() if node.name not in refused]
    findings = [
        Finding(
            severity=Severity.ERROR,
            code="nonzero-zero-point",
            where=name,
            why="Its zero-point is not 0.",
            fix=f"Quantize symmetrically, with zero-point 0: {_PTQ}.",
        )
        for name in shifted
    ]
    findings += [
        Finding(
            severity=Severity.ERROR,
            code="uint8-zero-point",
            where=node.name,
            why=f"It {why}: values over 127 steps are clipped.",
            fix=f"Write an explicit int8 zero-point 0: {_PTQ}.",
        )
        for node, why in reader.uint8_grids()
        if node.name not in {*refused, *shifted}
    ]
    for node in reader.compute_nodes:
        left, right = node.left.dequantize, node.right.dequantize
        if left is None or right is None or not right.dtype.startswith("int"):
            continue  # groups of fp4 have kernels of their own
        if right.granularity == "group":
            findings.append(
                Finding(
                    severity=Severity.ERROR,
                    code="group-weights-with-activations",
                    where=node.name,
                    why="Its activations are quantized and its weights have a scale per group: the "
                    "builder moves those scales behind the integer sum, where they cannot be.",
                    fix="Leave the activations in float, or give the weights a scale per channel.",
                )
            )
    return findings


def why_float(node: ComputeNode) -> tuple[str, str]:
    """Why a layer that the file wants in low precision runs in float, and what to do."""
    for reason in (_by_operands(node), _by_grids(node)):
        if reason is not None:
            return reason
    if node.quantized_weight and node.left.dequantize is None:
        # Seen with Swin: without its bias the same layer is dequantized inside the product.
        return (
            "the builder dequantizes its weight in a kernel of its own, to fuse the product with "
            "its bias",
            f"Quantize its activations as well ({_PTQ}), or accept a float product.",
        )
    return (
        "the builder chose a kernel in float for this shape",
        "Leave the layer in float, or pad its channels to a multiple of 16.",
    )


def by_operator(node: ComputeNode, capability: str) -> tuple[str, str] | None:
    """Why TensorRT-RTX alone runs a layer in float, whatever its grids are, and what to do."""
    remove = "Leave the layer in float: quantizing it costs accuracy and gains nothing."
    if node.op_type == "ConvTranspose":
        return "TensorRT-RTX runs ConvTranspose in float only", remove
    if node.op_type == "Conv" and capability == "SM75":
        return "TensorRT-RTX runs convolutions in float on SM75", "Build for SM80 or later."
    return None


def _between(side: Source) -> tuple[str, str] | None:
    if side.dequantize is None and side.behind:
        return (
            f"{side.blocker} stands between DequantizeLinear and this layer and does not commute",
            f"Put Q/DQ after {side.blocker}.",
        )
    return None


def _by_operands(node: ComputeNode) -> tuple[str, str] | None:
    left, right = node.left, node.right
    for side in (left, right):
        if (reason := _between(side)) is not None:
            return reason
    if left.dequantize is not None and right.dequantize is not None:
        return None
    missing = right if right.dequantize is None else left
    origin = missing.blocker or "the model input"
    if missing.constant:
        return (
            "its activations are quantized but its weight is float",
            f"Quantize the weight as well: {_PTQ}.",
        )
    if node.quantized_weight and node.op_type == "Conv":
        return (
            "only its weight is quantized: a convolution dequantizes it first and runs in float",
            f"Quantize its activations as well, with Q/DQ after {origin}: {_PTQ}.",
        )
    if node.quantized_weight:
        return None
    return (
        f"only one operand is quantized; the other comes in float from {origin}",
        f"Put Q/DQ after {origin}.",
    )


def _by_grids(node: ComputeNode) -> tuple[str, str] | None:
    left, right = node.left.dequantize, node.right.dequantize
    for side in (left, right):
        if side is not None and not side.constant and side.granularity == "channel":
            return (
                f"{side.name} has a scale per channel of an activation",
                f"Give activations one scale per tensor: {_PTQ}.",
            )
    if right is not None and right.constant:
        if right.granularity == "channel" and right.axis not in (None, node.weight_axis):
            return (
                f"the scales of its weight lie along axis {right.axis}, "
                f"and {node.op_type} sums over that axis",
                f"Put one scale on each output channel: axis {node.weight_axis}.",
            )
        if left is None and right.dtype == "int4" and right.granularity != "group":
            return (
                "int4 weights with a scale per channel are dequantized before a float product",
                "Use int4 in groups of 32 to 128, or int8 weights per channel.",
            )
        if left is None and right.dtype == "int8" and right.granularity == "group":
            return (
                "int8 weights with a scale per group are dequantized before a float product",
                "Use int8 weights per channel, or int4 weights in groups.",
            )
    if left is not None and right is not None and left.dtype != right.dtype:
        return (
            f"its operands have different formats, {left.dtype} and {right.dtype}",
            f"Quantize both to one format: {_PTQ}.",
        )
    return _by_concat(node)


def _by_concat(node: ComputeNode) -> tuple[str, str] | None:
    joins: Iterable[str] = node.left.through + node.right.through
    concat = next((step for step in joins if step.startswith("Concat ")), None)
    if concat is None:
        return None
    return (
        f"{concat} joins tensors, and their scales differ",
        f"Give the inputs of {concat} one scale, or put Q/DQ after it.",
    )
