"""Which layers ONNX Runtime's CPU kernels run in low precision, and why others run in float.

What is said here of fusions was seen with ONNX Runtime 1.32, by giving it each form of Q/DQ and
reading the graph that it made.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from quantkit.interfaces import Finding, LayerCoverage, Severity
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets._onnxruntime_graph import (
    INTEGER_KERNELS,
    Layer,
    Wiring,
    attribute,
    input_name,
)

#: Where a bias on the grid of the sums, int32, ends.
_INT32 = 2.0**31

#: Integer grids that the kernels take.
_EIGHT_BITS = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)


def coverage(wiring: Wiring, found: Iterable[Layer]) -> tuple[LayerCoverage, ...]:
    """How each layer runs, with the reason where it is not in low precision."""
    return tuple(
        LayerCoverage(
            node=layer.name,
            op_type=layer.node.op_type,
            quantized=_asked(wiring, layer.node),
            precision=layer.kernel.precision,
            kernel=layer.kernel.op_type,
            reason=_reason(wiring, layer),
        )
        for layer in found
    )


def _reason(wiring: Wiring, layer: Layer) -> str:
    if layer.kernel.precision != "float32":
        return ""
    if not _asked(wiring, layer.node):
        return _planned_reason(layer.node) or "the file leaves it in float"
    return _why_float(wiring, layer.node)[1]


def _asked(wiring: Wiring, node: onnx.NodeProto) -> bool:
    if node.op_type in INTEGER_KERNELS or node.op_type == "MatMulNBits":
        return True
    dequantized = [wiring.dequantize(node, index) is not None for index in (0, 1)]
    # A layer that the plan leaves in float may read what others quantized.
    return all(dequantized) if _planned_reason(node) else any(dequantized)


def _planned_reason(node: onnx.NodeProto) -> str:
    """Why the plan leaves a layer of our own files in float."""
    return next((p.value for p in node.metadata_props if p.key == "quantkit.reason"), "")


def findings(wiring: Wiring, found: Iterable[Layer], *, saturates: bool) -> list[Finding]:
    """What is wrong, or runs other than the file asks.

    Args:
        wiring: the labelled file.
        found: its layers.
        saturates: the processor sums products of 8-bit weights in 16 bits, and is let do so.
    """
    said: list[Finding] = []
    wide = []
    for layer in found:
        if layer.kernel.op_type in INTEGER_KERNELS:
            said += [_finding(layer, *words) for words in _wrong(wiring, layer)]
            if _uses_all_bits(wiring, layer.node):
                wide.append(layer.name)
        elif layer.kernel.precision == "float32" and _asked(wiring, layer.node):
            said.append(_finding(layer, Severity.WARNING, *_why_float(wiring, layer.node)))
    if saturates and wide:
        said.append(
            Finding(
                severity=Severity.WARNING,
                code="saturates-without-vnni",
                where=wide[0] if len(wide) == 1 else f"{wide[0]} and {len(wide) - 1} more",
                why="this processor has no VNNI and sums products of 8-bit weights in 16 bits, "
                "which can saturate: results may be wrong.",
                fix="Use weights of 7 bits (recipe int8_cpu), or the exact mode, which is slower.",
            )
        )
    return said


def _finding(layer: Layer, severity: Severity, code: str, why: str, fix: str) -> Finding:
    return Finding(severity=severity, code=code, where=layer.name, why=f"{why}.", fix=f"{fix}.")


def _why_float(wiring: Wiring, node: onnx.NodeProto) -> tuple[str, str, str]:
    """Code, reason and way out for a layer that is quantized in the file and runs in float."""
    data, weights = wiring.dequantize(node, 0), wiring.dequantize(node, 1)
    formats = {wiring.dtype(source) for source in (data, weights) if source is not None}
    odd = formats.difference(_EIGHT_BITS)
    if node.op_type == "ConvTranspose":
        why = "ONNX Runtime has no integer kernel for ConvTranspose on the CPU"
        return "no-integer-kernel", why, "Leave it in float"
    if odd:
        name = onnx.TensorProto.DataType.Name(min(odd))
        why = f"ONNX Runtime computes {name} in float on the CPU"
        return "no-integer-kernel", why, "Use uint8 activations and int8 weights"
    if data is None:
        why = "only its weights are quantized, and they are dequantized at every run"
        return "weight-only", why, "Quantize its input as well, or leave its weights in float"
    if weights is None:
        why = "only its input is quantized, and its weights are in float"
        return "activation-only", why, "Quantize its weights as well, or leave its input in float"
    if _size(wiring.value(input_name(data, 1))) > 1:
        why = "its input has a scale per channel, and integer kernels take one for the tensor"
        return "per-channel-activations", why, "Use one scale for the tensor"
    if _crosses(wiring, node, weights):
        why = "the scales of its weights are not along its outputs"
        return "weight-axis", why, "Use scales along the output channels"
    if node.op_type == "Conv":
        return _why_float_convolution(wiring, node)
    after = wiring.next(node)
    adds = after is not None and after.op_type == "Add"
    if node.op_type == "Gemm" or adds:
        why = "with a float bias and no QuantizeLinear on its output it becomes a float Gemm"
        fix = "Quantize its output, or write the bias as int32 behind DequantizeLinear"
        if adds:
            fix += ", or give the bias of a 3-D MatMul the shape (1, 1, N)"
        return "float-bias", why, fix
    return _no_kernel()


def _no_kernel() -> tuple[str, str, str]:
    why = "ONNX Runtime has no integer kernel for this form of Q/DQ"
    return "runs-in-float", why, "Export the model again in the onnxruntime form"


def _why_float_convolution(wiring: Wiring, node: onnx.NodeProto) -> tuple[str, str, str]:
    """The same, of a convolution whose input and weights are quantized to 8 bits."""
    after = wiring.next(node)
    if after is not None and after.op_type in {"Relu", "Clip"}:
        quantize = wiring.next(after)
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            why = f"the {after.op_type} after it is not implied by the grid of its QuantizeLinear"
            fix = (
                "Let the grid end where it clips (ReLU: uint8 with zero-point 0), or clip the "
                "integers, between QuantizeLinear and DequantizeLinear"
            )
            return "clip-not-implied", why, fix
    # What the grid implies is part of the convolution: look at what comes next.
    last = after if after is not None and after.op_type in {"Relu", "Clip"} else node
    readers = wiring.readers.get(last.output[0], [])
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
        return _no_kernel()
    names = sorted({reader.op_type for reader in readers})
    if last.output[0] in wiring.outputs:
        names.append("the model's output")
    why = (
        f"its result goes to {', '.join(names)}: ONNX Runtime fuses a convolution only if its "
        "output is quantized, and read by nothing else"
    )
    return "output-not-quantized", why, "Quantize its output, or leave the convolution in float"


def _wrong(wiring: Wiring, layer: Layer) -> Iterable[tuple[Severity, str, str, str]]:
    """What ONNX Runtime fuses although the kernel computes something else."""
    node = layer.node
    data, weights = wiring.dequantize(node, 0), wiring.dequantize(node, 1)
    if data is not None and _size(wiring.value(input_name(data, 1))) > 1:
        why = "its input has a scale per channel, at which the integer kernel fails when it runs"
        yield Severity.ERROR, "per-channel-activations", why, "Use one scale for the tensor"
    if data is not None and weights is None and node.op_type == "Conv":
        why = "its weights are in float, and ONNX Runtime quantizes them itself, per tensor"
        yield Severity.WARNING, "weights-quantized-by-runtime", why, "Quantize its weights as well"
    if weights is None or wiring.producer[node.input[1]] is not weights:
        return
    scale = wiring.value(input_name(weights, 1))
    if scale is None:
        return
    if scale.ndim > 1:
        why = "its weights have a scale per group, at which the integer kernel fails when it runs"
        yield Severity.ERROR, "group-weights", why, "Use a scale per channel"
    elif _crosses(wiring, node, weights):
        why = "the scales of its weights are not along its outputs, and are applied as if they were"
        yield Severity.ERROR, "weight-axis", why, "Use scales along the output channels"
    elif _overflows(wiring, layer, scale):
        why = "its bias does not fit in int32 on the grid of input scale times weight scale"
        fix = "Raise the smallest weight scales to |bias| / (2^31 * input scale) or more"
        yield Severity.ERROR, "bias-overflow", why, fix


def _overflows(wiring: Wiring, layer: Layer, scale: np.ndarray) -> bool:
    node = layer.node
    name = input_name(node, 2)
    if node.op_type == "MatMul" and layer.kernel.op_type == "QGemm":
        add = wiring.next(node)
        name = next((n for n in add.input if n in wiring.constants), "") if add is not None else ""
    data = wiring.dequantize(node, 0)
    bias = wiring.value(name)
    step = None if data is None else wiring.value(input_name(data, 1))
    if bias is None or step is None or not np.issubdtype(bias.dtype, np.floating):
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.abs(bias.astype(np.float64)) / (step.astype(np.float64) * scale)
    return bool(np.any(integers >= _INT32))


def _uses_all_bits(wiring: Wiring, node: onnx.NodeProto) -> bool:
    """Whether int8 weights go beyond 7 bits; those that are computed are taken to."""
    source = wiring.dequantize(node, 1)
    if source is None:
        return False
    # uint8 by uint8 has a kernel of its own, which sums in 32 bits.
    if wiring.dtype(source) != onnx.TensorProto.INT8:
        return False
    integers = wiring.value(input_name(source, 0))
    return integers is None or bool(integers.min() < -64 or integers.max() > 63)


def _crosses(wiring: Wiring, node: onnx.NodeProto, linear: onnx.NodeProto) -> bool:
    """Whether the weights have several scales along another dimension than the outputs."""
    scale = wiring.value(input_name(linear, 1))
    if scale is None or scale.ndim != 1 or scale.size == 1:
        return False
    weights = wiring.constants.get(input_name(linear, 0))
    rank = 2 if weights is None else len(weights.dims)
    axis = int(attribute(linear, "axis", 1))
    if node.op_type == "Conv":
        outputs = 0
    elif node.op_type == "Gemm":
        outputs = 0 if attribute(node, "transB", 0) else 1
    else:
        outputs = rank - 1
    # A matrix may be transposed on its way to the product; then its axis says nothing here.
    direct = wiring.producer.get(node.input[1]) is linear
    return direct and (axis + rank if axis < 0 else axis) != outputs


def _size(value: np.ndarray | None) -> int:
    return 1 if value is None else int(value.size)


def refused(scheme: Scheme, *, saturates: bool) -> Iterable[Finding]:
    """What the kernels cannot run of a scheme, or run in float or wrongly."""
    weights, activations = scheme.weights, scheme.activations
    for where, spec in (("weights", weights), ("activations", activations)):
        if spec is not None and (spec.is_float or (where, spec.dtype) == ("activations", "int4")):
            why = f"ONNX Runtime computes {spec.dtype} {where} in float on the CPU"
            yield _warning("runs-in-float", where, why, "Use int8_ptq or int8_cpu")
    if activations is None:
        return
    if activations.axis is not None:
        why = "its integer kernels take one scale for the whole input, and fail on several"
        fix = "Use per-tensor activations."
        yield Finding(
            severity=Severity.ERROR,
            code="per-channel-activations",
            where="activations",
            why=f"{why}.",
            fix=fix,
        )
    if weights is None:
        why = "it quantizes the float weights of convolutions itself, and runs MatMul in float"
        yield _warning("activation-only", "weights", why, "Quantize the weights as well")
        return
    yield from _weight_refusals(weights, saturates=saturates)


def _weight_refusals(weights: QuantSpec, *, saturates: bool) -> Iterable[Finding]:
    """Of weights that meet quantized activations."""
    if weights.dtype == "int4":
        why = "it has no kernel for int4 weights with quantized activations, and runs in float"
        yield _warning("runs-in-float", "weights", why, "Use int8 weights, or weights alone")
    if weights.granularity == "group":
        yield Finding(
            severity=Severity.ERROR,
            code="group-weights",
            where="weights",
            why="its integer kernels take a scale per channel, and fail on one per group.",
            fix="Use weights per channel.",
        )
    if saturates and weights.dtype == "int8" and (weights.bits or 8) > 7:
        why = "without VNNI, sums of products of 8-bit weights saturate in 16 bits"
        fix = "Use weights of 7 bits (recipe int8_cpu), or the exact mode, which is slower"
        yield _warning("saturates-without-vnni", "weights", why, fix)


def _warning(code: str, where: str, why: str, fix: str) -> Finding:
    severity = Severity.WARNING
    return Finding(severity=severity, code=code, where=where, why=f"{why}.", fix=f"{fix}.")
