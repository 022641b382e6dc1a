"""The nodes that put one tensor of a graph on its grid, in standard operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from quantkit import numerics
from quantkit.errors import ExportError
from quantkit.interfaces import ExportForm
from quantkit.numerics import QParams
from quantkit.program import operators
from quantkit.spec import QuantSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class Codes:
    """The integers that stand for the values of a grid: those of its spec, moved by ``shift``."""

    dtype: torch.dtype
    low: int
    high: int
    shift: int

    @property
    def narrow(self) -> bool:
        """Whether they are fewer than the type holds."""
        info = torch.iinfo(self.dtype)
        return (self.low, self.high) != (info.min, info.max)


def activation_codes(spec: QuantSpec, form: ExportForm, grid: str) -> Codes:
    """uint8 or int8, as the form wants it; the grid is the same.

    Raises:
        ExportError: an asymmetric grid in a form without zero-points.

    Example:
        >>> activation_codes(QuantSpec(), "onnxruntime", "x")
        Codes(dtype=torch.uint8, low=0, high=255, shift=128)
    """
    unsigned = spec.dtype == "uint8"
    if form == "tensorrt" and not spec.symmetric:
        raise ExportError(
            f"{grid} is {spec}, which has no form that TensorRT takes (it wants zero-point 0); "
            "export with form='onnxruntime', or quantize with recipe int8_ptq"
        )
    wanted = torch.uint8 if form == "onnxruntime" else torch.int8
    shift = (0 if unsigned else 128) if form == "onnxruntime" else (-128 if unsigned else 0)
    return Codes(wanted, spec.qmin + shift, spec.qmax + shift, shift)


def weight_codes(spec: QuantSpec) -> Codes:
    """Weights are int8 in every form; int4 takes a byte as well, since torch has no smaller one."""
    shift = -128 if spec.dtype == "uint8" else 0
    return Codes(torch.int8, spec.qmin + shift, spec.qmax + shift, shift)


class Writer:
    """Writes nodes before a node, and what they read into buffers of a module.

    Args:
        graph: that the nodes belong to.
        node: the quantizer's; what is written stands before it and reads its input.
        path: of the module in the graph.
        holder: the module.
    """

    def __init__(self, graph: fx.Graph, node: fx.Node, path: str, holder: nn.Module) -> None:
        self.graph = graph
        self.node = node
        self.path = path
        self.holder = holder

    def activation(self, qparams: QParams, form: ExportForm, grid: str) -> fx.Node:
        """The input of the node, quantized and dequantized."""
        spec, source = qparams.spec, self.node.args[0]
        if spec.is_float:
            return self._through_float8(source, qparams)
        codes = activation_codes(spec, form, grid)
        if spec.axis is None:
            scale, zero = float(qparams.scale), int(qparams.zero_point) + codes.shift
            if codes.narrow:
                # Inductor joins Q to the layer before it and then clamps to what the type holds.
                source = self._clamped(source, qparams)
            rest: tuple[Any, ...] = (scale, zero, codes.low, codes.high, codes.dtype)
            quantize, dequantize = operators.QUANTIZE_TENSOR, operators.DEQUANTIZE_TENSOR
        else:
            zeros = qparams.zero_point.long() + codes.shift
            grids = self._store(scale=qparams.scale.clone(), zero_point=zeros)
            rest = (*grids, spec.axis, codes.low, codes.high, codes.dtype)
            quantize, dequantize = operators.QUANTIZE_CHANNEL, operators.DEQUANTIZE_CHANNEL
        return self._call(dequantize, self._call(quantize, source, *rest), *rest)

    def weight(self, values: Tensor, qparams: QParams, *, plain: bool) -> fx.Node:
        """Stored integers, dequantized.

        Args:
            values: the float weight.
            qparams: its grid.
            plain: by arithmetic rather than the operator. Inductor (torch 2.13) takes whatever
                convolution reads the operator for an ordinary one: a transposed one then fails to
                compile, or gives wrong values.
        """
        spec = qparams.spec
        # As the simulation does; for weights that stand on the grid both ways are one.
        integers = numerics.quantize(values, qparams, reciprocal=True)
        if spec.is_float:
            return self._dequantized(integers, qparams, shift=0)
        codes = weight_codes(spec)
        stored = (integers.short() + codes.shift).to(torch.int8)
        zeros = qparams.zero_point.long() + codes.shift
        if plain or (spec.granularity == "group" and not _fits_operator(values, spec)):
            return self._dequantized(stored, qparams, shift=codes.shift)
        (quantized,) = self._store(quantized=stored)
        if spec.axis is None:
            rest: tuple[Any, ...] = (float(qparams.scale), int(zeros), codes.low, codes.high)
            return self._call(operators.DEQUANTIZE_TENSOR, quantized, *rest, torch.int8)
        scale, zero = self._store(scale=qparams.scale.clone(), zero_point=zeros)
        if spec.granularity == "group":
            rest = (scale, zero, codes.low, codes.high, torch.int8, spec.group_size, torch.float32)
            return self._call(operators.DEQUANTIZE_GROUP, quantized, *rest)
        axis = spec.axis % values.dim()
        rest = (scale, zero, axis, codes.low, codes.high, torch.int8)
        return self._call(operators.DEQUANTIZE_CHANNEL, quantized, *rest)

    def _dequantized(self, stored: Tensor, qparams: QParams, *, shift: int) -> fx.Node:
        """Integers (or FP8) to floats by arithmetic."""
        scale, zero = _broadcastable(qparams, stored.dim())
        (quantized,) = self._store(quantized=stored)
        values = self._call(aten.to.dtype, quantized, torch.float32)
        if bool((zero + shift).any()):
            (zeros,) = self._store(zero_point=(zero + shift).float())
            values = self._call(aten.sub.Tensor, values, self._spread(zeros, stored, qparams.spec))
        (scales,) = self._store(scale=scale)
        return self._call(aten.mul.Tensor, values, self._spread(scales, stored, qparams.spec))

    def _spread(self, values: fx.Node, stored: Tensor, spec: QuantSpec) -> fx.Node:
        """Scales of groups, each repeated for the elements that share it."""
        if spec.group_size is None or spec.axis is None:
            return values
        axis = spec.axis % stored.dim()
        each = self._call(aten.repeat_interleave.self_int, values, spec.group_size, axis)
        return self._call(aten.slice.Tensor, each, axis, 0, stored.shape[axis])

    def _through_float8(self, source: Any, qparams: QParams) -> fx.Node:
        """FP8 has no standard operator: ``quantize_per_tensor`` would round to integers first."""
        spec = qparams.spec
        scale: Any = float(qparams.scale) if spec.axis is None else None
        inverse: Any = 1.0 / qparams.scale
        if scale is None:
            # Of an activation whose rank the spec does not tell: behind the batch come channels.
            rank = self.node.meta["val"].dim()
            shape = [-1 if dim == spec.axis else 1 for dim in range(rank)]
            scale, inverse = self._store(
                scale=qparams.scale.view(shape).clone(), inverse=inverse.view(shape)
            )
        steps = self._call(
            aten.mul.Tensor, source, float(inverse) if spec.axis is None else inverse
        )
        steps = self._call(aten.clamp.default, steps, float(spec.qmin), float(spec.qmax))
        codes = self._call(aten.to.dtype, steps, torch.float8_e4m3fn)
        values = self._call(aten.to.dtype, codes, torch.float32)
        return self._call(aten.mul.Tensor, values, scale)

    def _clamped(self, source: Any, qparams: QParams) -> fx.Node:
        spec, zero, scale = qparams.spec, qparams.zero_point, qparams.scale
        low, high = (float((q - zero) * scale) for q in (spec.qmin, spec.qmax))
        return self._call(aten.clamp.default, source, low, high)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_before(self.node):
            return self.graph.call_function(target, args)

    def _store(self, **tensors: Tensor) -> list[fx.Node]:
        """Buffers of the module, and nodes that read them."""
        nodes = []
        for name, value in tensors.items():
            self.holder.register_buffer(name, value.contiguous())
            with self.graph.inserting_before(self.node):
                nodes.append(self.graph.get_attr(f"{self.path}.{name}"))
        return nodes


def _fits_operator(values: Tensor, spec: QuantSpec) -> bool:
    """Whether the operator for groups takes them: of rows of a matrix, none short."""
    size, axis = spec.group_size or 0, spec.axis or 0
    return values.dim() == 2 and axis % 2 == 1 and size > 1 and values.shape[1] % size == 0


def _broadcastable(qparams: QParams, rank: int) -> tuple[Tensor, Tensor]:
    """Scale and zero-point in the rank of the tensor; those of groups stay as they are."""
    spec = qparams.spec
    if spec.granularity != "channel" or spec.axis is None:
        return qparams.scale.clone(), qparams.zero_point
    shape = [-1 if dim == spec.axis % rank else 1 for dim in range(rank)]
    return qparams.scale.view(shape).clone(), qparams.zero_point.view(shape)
