"""Which layers of a program Inductor can run in integers, and why it cannot run others.

Seen with torch 2.13, by compiling each form of Q/DQ and looking at the operators that came of it.
Its patterns (torch/_inductor/fx_passes/quantization.py) check neither the axis of a weight's
scales nor its zero-point nor whether a convolution is transposed: those they take too, and give
wrong values. So what is refused here must not reach them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.edit import constant
from quantkit.program import operators

#: What may stand between a dequantization and a layer: it puts out values of its input's grid.
_PASSING = frozenset({Kind.MOVE, Kind.SLICE, Kind.MAX_POOL, Kind.PAD, Kind.UPSAMPLE})

_FORMATS = {torch.float8_e4m3fn: "FP8", torch.int8: "int8", torch.uint8: "uint8"}


@dataclass(frozen=True)
class Reason:
    """Why a layer that is quantized runs in float: one clause each, without a dot.

    Attributes:
        code: stable, for machines.
        why: completes "it runs in float: …".
        fix: imperative.
    """

    code: str
    why: str
    fix: str


@dataclass(frozen=True)
class Operands:
    """What a layer multiplies.

    Attributes:
        data: the dequantization that its first input comes from, through ``path``; ``None`` if
            that is not one.
        path: what stands between, from the layer's side.
        weight: its second input.
        constant: the second input depends on constants alone.
        stored: the type that those are stored in.
    """

    data: fx.Node | None
    path: tuple[fx.Node, ...]
    weight: fx.Node
    constant: bool
    stored: torch.dtype | None

    @property
    def quantized(self) -> bool:
        """Whether an input is quantized."""
        return self.data is not None or self.stored in _FORMATS


def operands(module: fx.GraphModule, layer: fx.Node) -> Operands:
    """The inputs of a convolution or product."""
    first, weight = layer.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(weight, fx.Node)
    path: list[fx.Node] = []
    node: Any = first
    while isinstance(node, fx.Node) and kind_of(node) in _PASSING:
        path.append(node)
        node = node.args[0]
    leaves = [constant(module, leaf) for leaf in _leaves(weight)]
    constants = all(value is not None for value in leaves)
    # An operator without a tensor, such as a size, is no leaf that tells of a format.
    stored = next((v.dtype for v in leaves if v is not None and v.dtype in _FORMATS), None)
    data = node if operators.is_dequantize(node) or _from_float8(node) else None
    return Operands(data, tuple(path), weight, constants, stored if constants else None)


def _leaves(node: fx.Node) -> Iterator[fx.Node]:
    if not node.all_input_nodes:
        yield node
    for source in node.all_input_nodes:
        yield from _leaves(source)


def _from_float8(node: Any) -> bool:
    """Whether a node dequantizes FP8, which is a cast and a product."""
    if not isinstance(node, fx.Node) or operator_name(node) != "mul":
        return False
    cast: Any = node.args[0]
    source = cast.args[0] if isinstance(cast, fx.Node) and cast.args else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.float8_e4m3fn


def why_float(
    module: fx.GraphModule, layer: fx.Node, found: Operands, device: str
) -> Reason | None:
    """Why a quantized layer cannot run in integers; ``None`` where it can."""
    kind = kind_of(layer)
    if device != "cpu":
        why = f"Inductor has no INT8 convolution or product for {device}"
        return Reason("no-integer-kernel", why, "Use TensorRT, or leave the layer in float")
    if kind is Kind.CONV_TRANSPOSE:
        why = "Inductor has no integer kernel for transposed convolutions"
        return Reason("no-integer-kernel", why, "Leave it in float")
    if kind is Kind.CONV and layer.args[1].meta["val"].dim() > 4:  # type: ignore[union-attr]
        why = "Inductor has integer kernels for 1-D and 2-D convolutions alone"
        return Reason("no-integer-kernel", why, "Leave it in float")
    if not found.constant:
        why = "Inductor multiplies two activations in float"
        return Reason("two-activations", why, "Set placement.attention to false in the recipe")
    return _why_data(found) or _why_weight(module, layer, found)


def _why_data(found: Operands) -> Reason | None:
    if found.data is None:
        why = "only its weights are quantized, and Inductor's kernel for that takes bfloat16 alone"
        return Reason("weight-only", why, "Quantize its input as well, or leave it in float")
    if found.stored is None:
        why = "only its input is quantized, and its weights are in float"
        return Reason("activation-only", why, "Quantize its weights as well, or leave it in float")
    if found.stored is torch.float8_e4m3fn or not operators.is_dequantize(found.data):
        why = "Inductor computes FP8 in float on the CPU"
        return Reason("no-integer-kernel", why, "Use int8 weights and activations")
    if found.data.target is not operators.DEQUANTIZE_TENSOR:
        why = "its input has a scale per channel, and integer kernels take one for the tensor"
        return Reason("per-channel-activations", why, "Use one scale for the tensor")
    return None


def _why_weight(module: fx.GraphModule, layer: fx.Node, found: Operands) -> Reason | None:
    weight = found.weight
    if weight.target is operators.DEQUANTIZE_GROUP:
        why = "its weights have a scale per group"
        return Reason("group-weights", why, "Use a scale per channel")
    if weight.target not in {operators.DEQUANTIZE_CHANNEL, operators.DEQUANTIZE_TENSOR}:
        why = "its weights are not read from their dequantization directly"
        return Reason("runs-in-float", why, "Export the model again with quantkit")
    zero: Any = weight.args[2]
    zeros = constant(module, zero) if isinstance(zero, fx.Node) else torch.tensor(zero or 0)
    if zeros is None or bool(zeros.any()):
        why = "its weights have a zero-point, which Inductor's kernels leave out"
        return Reason("weight-zero-point", why, "Use symmetric weights")
    if constant(module, weight.args[0]) is None or found.stored is not torch.int8:
        why = "its weights are not stored as int8"
        return Reason("runs-in-float", why, "Use symmetric int8 weights")
    return _why_axis(layer, weight)


def _why_axis(layer: fx.Node, weight: fx.Node) -> Reason | None:
    rank = weight.args[0].meta["val"].dim()  # type: ignore[union-attr]
    if kind_of(layer) is Kind.MATMUL and rank != 2:
        why = "Inductor multiplies stacks of matrices in float"
        return Reason("no-integer-kernel", why, "Leave it in float")
    # A matrix that a product reads as it stands is turned over for the kernel.
    outputs = rank - 1 if kind_of(layer) is Kind.MATMUL else 0
    if weight.target is operators.DEQUANTIZE_CHANNEL and int(weight.args[3]) % rank != outputs:  # type: ignore[arg-type]
        why = "the scales of its weights are not along its outputs"
        return Reason("weight-axis", why, "Use scales along the output channels")
    return None
