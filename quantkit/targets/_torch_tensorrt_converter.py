"""Teaches Torch-TensorRT the fake-quantize operator: a converter to Q/DQ, and not to fold it.

Nothing here imports Torch-TensorRT before it is called. What it reaches into, beside the registry
of converters, is one method of the class that folds constants; `register` tries that it worked.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from quantkit import numerics
from quantkit.errors import TargetError
from quantkit.operators import OPERATOR, Call, is_call, spec_arguments
from quantkit.spec import QuantSpec

#: What TensorRT calls the storage formats.
_TYPES = {"int8": "INT8", "fp8_e4m3": "FP8", "int4": "INT4"}


def register() -> None:
    """Register the converter and protect the operator from folding; a second call does nothing.

    Raises:
        TargetError: this version folds it all the same: quantized weights would run in float.
    """
    from torch_tensorrt.dynamo.conversion import DYNAMO_ATEN_CONVERTERS, dynamo_tensorrt_converter

    if OPERATOR in DYNAMO_ATEN_CONVERTERS:
        return
    _protect_from_folding()
    dynamo_tensorrt_converter(
        OPERATOR, capability_validator=convertible, supports_dynamic_shapes=True
    )(convert)


def convertible(node: fx.Node, settings: object = None) -> bool:
    """Whether the converter takes a node; Torch-TensorRT leaves others to PyTorch."""
    call = Call.of(node.args)
    if not _is_constant(call.scale):
        return False
    return is_on_a_grid_of_tensorrt(call, _is_constant(call.x))


def is_on_a_grid_of_tensorrt(call: Call, constant: bool) -> bool:
    """Whether TensorRT has the grid: zero-point 0, in 4 bits or in groups for constants only.

    Args:
        call: of the operator; ``x`` is a node.
        constant: ``x`` is known when the engine is built.
    """
    spec = call.spec
    if not spec.symmetric or spec.dtype not in _TYPES:
        return False
    if constant:
        return spec.group_size is None or _divides(call.x, spec)
    # What fills its format takes a scale a channel; what does not is clipped first, to one range.
    return spec.granularity == "tensor" or (spec.granularity == "channel" and not _is_narrow(spec))


def convert(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """One node as IQuantizeLayer and IDequantizeLayer; of a constant the second alone.

    A constant is rounded here, so the engine holds the very integers that quantkit computed.
    """
    # Under torch.compile tensors that are made here would hold no data.
    with unset_fake_temporarily():
        return _convert(ctx, target, Call.of(args), name)


def _convert(ctx: Any, target: Any, call: Call, name: str) -> Any:
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

    trt: Any = importlib.import_module("tensorrt")
    spec = call.spec
    scale = get_trt_tensor(ctx, call.scale.float(), f"{name}_scale")
    axis = None if spec.granularity != "channel" else _axis(spec, len(call.x.shape))
    if isinstance(call.x, Tensor):
        codes, floats = _constant(ctx, trt, call, name), _float_type(trt, call.x.dtype)
    else:
        values = _clipped(ctx, trt, call, target, name) if _is_narrow(spec) else call.x
        kind = trt.DataType.FP8 if spec.is_float else trt.DataType.INT8
        layer = ctx.net.add_quantize(values, scale, kind)
        _finish(layer, axis, target, f"{name}_quantize")
        codes, floats = layer.get_output(0), call.x.dtype
    layer = ctx.net.add_dequantize(codes, scale, floats)
    _finish(layer, axis, target, f"{name}_dequantize")
    return layer.get_output(0)


def _clipped(ctx: Any, trt: Any, call: Call, target: Any, name: str) -> Any:
    """An activation within a grid of fewer bits than int8, which IQuantizeLayer does not clamp to.

    It runs as int8 then: TensorRT has no kernel that reads activations of fewer bits.
    """
    layer = ctx.net.add_activation(call.x, trt.ActivationType.CLIP)
    layer.alpha, layer.beta = (float(call.scale) * end for end in (call.spec.qmin, call.spec.qmax))
    _finish(layer, None, target, f"{name}_clip")
    return layer.get_output(0)


def _is_narrow(spec: QuantSpec) -> bool:
    """Whether a grid of integers has fewer bits than int8."""
    return not spec.is_float and (spec.qmin, spec.qmax) != (-128, 127)


def pack_int4(codes: Tensor) -> Tensor:
    """Two 4-bit integers a byte, the first in the low half, as TensorRT and ONNX store them.

    Args:
        codes: int8, of values from -8 to 7, of any shape.

    Returns:
        uint8, flat; an odd last one is padded with zero.

    Example:
        >>> pack_int4(torch.tensor([[1, -1, 7]], dtype=torch.int8)).tolist()
        [241, 7]
    """
    flat = codes.flatten()
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    nibbles = flat.view(torch.uint8) & 0x0F
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _constant(ctx: Any, trt: Any, call: Call, name: str) -> Any:
    """A constant layer that holds the integers (or fp8 values) of a tensor."""
    from torch_tensorrt.dynamo.conversion.converter_utils import to_trt_weights

    codes = numerics.quantize(call.x.detach().cpu(), call.qparams, reciprocal=True).contiguous()
    shape, count = tuple(codes.shape), codes.numel()
    if call.spec.dtype == "int4":
        codes = pack_int4(codes)
    kind = getattr(trt.DataType, _TYPES[call.spec.dtype])
    weights = to_trt_weights(
        ctx, codes, f"{name}_codes", "CONSTANT", "CONSTANT", dtype=kind, count=count
    )
    layer = ctx.net.add_constant(shape, weights)
    layer.name = f"{name}_codes"
    return layer.get_output(0)


def _finish(layer: Any, axis: int | None, target: Any, name: str) -> None:
    from torch_tensorrt.dynamo.conversion.converter_utils import set_layer_name

    if axis is not None:
        layer.axis = axis
    set_layer_name(layer, target, name)


def _axis(spec: QuantSpec, dims: int) -> int:
    assert spec.axis is not None
    return spec.axis % dims


def _float_type(trt: Any, dtype: torch.dtype) -> Any:
    kinds = {torch.float16: trt.DataType.HALF, torch.bfloat16: trt.DataType.BF16}
    return kinds.get(dtype, trt.DataType.FLOAT)


def _is_constant(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _divides(constant: fx.Node, spec: QuantSpec) -> bool:
    """Whether the groups of a constant are all whole; TensorRT has no short last one."""
    value = constant.meta.get("val")
    if value is None or spec.group_size is None:
        return True
    return bool(value.shape[_axis(spec, value.dim())] % spec.group_size == 0)


def _protect_from_folding() -> None:
    """Let the folder of constants take the operator as it takes modelopt's: not to be folded."""
    from torch_tensorrt.dynamo.lowering.passes import constant_folding

    folder = constant_folding._TorchTensorRTConstantFolder
    known = folder.is_impure

    def is_impure(self: Any, node: fx.Node) -> bool:
        return is_call(node) or bool(known(self, node))

    folder.is_impure = is_impure
    if not _survives(folder):
        folder.is_impure = known
        import torch_tensorrt

        raise TargetError(
            f"torch_tensorrt {torch_tensorrt.__version__} folds quantized weights into float ones, "
            "so they would not run in few bits; install a version that is known to work: "
            'pip install "torch-tensorrt~=2.13.0"'
        )


def _survives(folder: Any) -> bool:
    """Whether the folder leaves a quantized constant in the smallest graph that has one."""
    graph, values = fx.Graph(), {"weight": torch.ones(2), "scale": torch.ones(())}
    values["zero_point"] = torch.zeros((), dtype=torch.int32)
    tensors = [graph.create_node("get_attr", name) for name in values]
    call = graph.call_function(OPERATOR, (*tensors, *spec_arguments(QuantSpec())))
    graph.output(call)
    root = nn.Module()
    for name, value in values.items():
        root.register_buffer(name, value)
    run = folder(fx.GraphModule(root, graph), skip_constructors=False)
    run.run()
    return call not in run.node_replacements
