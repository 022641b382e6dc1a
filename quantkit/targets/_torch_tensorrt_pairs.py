"""Where tensors are put on a grid in a program: Q/DQ pairs, and FP8, which has no such pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from quantkit.program import operators
from quantkit.spec import QuantSpec

aten = torch.ops.aten

_TO = frozenset({aten.to.dtype, aten._to_copy.default})
_MUL = frozenset({aten.mul.Tensor, aten.mul.Scalar})
#: Formats that fill their bits.
_WHOLE = frozenset({("int8", 8), ("uint8", 8), ("int4", 4)})


@dataclass(frozen=True)
class OnGrid:
    """A node whose result lies on a grid.

    Attributes:
        values: what is put there: the node's float source; the node itself, where the source is a
            constant that is stored on the grid.
        scale, zero_point: numbers, or nodes.
        spec: the form of the grid.
    """

    values: fx.Node
    scale: Any
    zero_point: Any
    spec: QuantSpec


def on_grid(program: ExportedProgram, node: fx.Node) -> OnGrid | None:
    """What a node puts on a grid; ``None`` where it does not, or no ``QuantSpec`` has its ends."""
    if node.op != "call_function":
        return None
    if node.target in _MUL:
        return _float8(node)
    return _dequantized(program, node) if operators.is_dequantize(node) else None


def _dequantized(program: ExportedProgram, node: fx.Node) -> OnGrid | None:
    schema: Any = node.target
    names = [argument.name for argument in schema._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    plural = "scales" in given
    scale = given["scales"] if plural else given["scale"]
    zero_point = given["zero_points"] if plural else given["zero_point"]
    grouped = node.target is operators.DEQUANTIZE_GROUP
    form = _form(given["quant_min"], given["quant_max"], given["dtype"], grouped=grouped)
    zeros = _numbers(program, zero_point)
    if form is None or zeros is None:
        return None
    symmetric = bool((zeros == QuantSpec(**form).middle).all())
    if symmetric and form["dtype"] == "uint8":  # with zero-point 128: int8 with 0 is the same grid
        form, zero_point = form | {"dtype": "int8"}, 0
    axis = -1 if grouped else given.get("axis")
    spec = QuantSpec(**form, symmetric=symmetric, axis=axis, group_size=given.get("group_size"))
    source = node.args[0]
    quantized = isinstance(source, fx.Node) and ".quantize_per" in str(source.target)
    values = source.args[0] if quantized else node  # type: ignore[union-attr]
    return OnGrid(values, scale, zero_point, spec)  # type: ignore[arg-type]


def _form(low: int, high: int, dtype: torch.dtype, *, grouped: bool) -> dict[str, Any] | None:
    """Format and bits of a grid from ``low`` to ``high``.

    A 4-bit grid in groups is int4. One per channel is int8 that uses 4 bits: TensorRT multiplies
    int8 in integers, and has int4 in groups alone.
    """
    if dtype not in (torch.int8, torch.uint8):
        return None
    bits = (int(high) - int(low) + 1).bit_length() - 1
    name = "uint8" if dtype is torch.uint8 else "int4" if grouped and bits == 4 else "int8"
    form: dict[str, Any] = {"dtype": name, "bits": None if (name, bits) in _WHOLE else bits}
    try:
        spec = QuantSpec(**form)
    except ValueError:
        return None
    return form if (spec.qmin, spec.qmax) == (low, high) else None


def _float8(product: fx.Node) -> OnGrid | None:
    """A product of FP8 values, made float, and their scale, as `quantkit.program` writes them."""
    codes, scale = product.args
    if not _converts(codes, torch.float32):
        return None
    stored = codes.args[0]  # type: ignore[union-attr]
    if not isinstance(stored, fx.Node) or stored.meta["val"].dtype is not torch.float8_e4m3fn:
        return None
    values: Any = product
    if _converts(stored, torch.float8_e4m3fn):
        clamped = stored.args[0]
        steps = clamped.args[0] if isinstance(clamped, fx.Node) and clamped.args else None
        if not isinstance(steps, fx.Node) or steps.target not in _MUL:
            return None
        values = steps.args[0]
    axis = _only_axis(scale)
    return OnGrid(values, scale, 0, QuantSpec(dtype="fp8_e4m3", axis=axis))


def _converts(node: object, dtype: torch.dtype) -> bool:
    """Whether a node converts to a type."""
    if not isinstance(node, fx.Node) or node.target not in _TO:
        return False
    return bool(node.meta["val"].dtype is dtype)


def _only_axis(scale: Any) -> int | None:
    """The dimension along which scales differ, of scales that broadcast."""
    if not isinstance(scale, fx.Node):
        return None
    wide = [axis for axis, size in enumerate(scale.meta["val"].shape) if size != 1]
    return wide[0] if wide else None


def _numbers(program: ExportedProgram, value: Any) -> Tensor | None:
    """The numbers of an argument, where they are constants of the program."""
    if not isinstance(value, fx.Node):
        return torch.as_tensor(value)
    signature = program.graph_signature
    stores: tuple[tuple[Mapping[str, str], Mapping[str, Any]], ...] = (
        (signature.inputs_to_parameters, program.state_dict),
        (signature.inputs_to_buffers, {**program.state_dict, **program.constants}),
        (signature.inputs_to_lifted_tensor_constants, program.constants),
    )
    for names, held in stores:
        found = held.get(names.get(value.name, ""))
        if isinstance(found, Tensor):
            return found
    return None
