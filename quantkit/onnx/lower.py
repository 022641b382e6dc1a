"""Write Q/DQ into an exported float graph where its marks stand, in the form of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from quantkit import numerics
from quantkit.errors import ExportError
from quantkit.interfaces import ExportForm
from quantkit.numerics import QParams
from quantkit.onnx.edit import add_constant
from quantkit.onnx.marks import DOMAIN, OPERATOR, TENSOR
from quantkit.spec import QuantSpec

_IR_TYPES = {
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "int4": ir.DataType.INT4,
    "fp8_e4m3": ir.DataType.FLOAT8E4M3FN,
}


def minimum_opset(specs: list[QuantSpec]) -> int:
    """The lowest opset for these grids: 18 is the exporter's, FP8 wants 19, int4 and groups 21."""
    if any(s.dtype == "int4" or s.granularity == "group" for s in specs):
        return 21
    return 19 if any(s.is_float for s in specs) else 18


def lower(model: ir.Model, grids: Mapping[str, QParams], form: ExportForm) -> None:
    """Replace every mark in place: Q/DQ for activations, stored integers and DQ for weights.

    Marks that only carry a layer's name give it to their reader and vanish.

    Raises:
        ExportError: a grid cannot be said in this form.
    """
    writer = _Writer(model.graph, grids, form)
    marks = [n for n in model.graph if n.domain == DOMAIN and n.op_type == OPERATOR]
    # Names first: a layer is found behind the Transpose of its weight, which replace() takes out.
    for node in [n for n in marks if not n.attributes["grid"].as_string()]:
        _name_reader(model.graph, node)
    for node in [n for n in marks if n.attributes["grid"].as_string()]:
        writer.replace(node)
    model.graph.opset_imports.pop(DOMAIN, None)
    model.opset_imports.pop(DOMAIN, None)


@dataclass(frozen=True)
class _Pair:
    """Scale and zero-point of a grid as initializers."""

    scale: ir.Value
    zero_point: ir.Value


class _Writer:
    def __init__(self, graph: ir.Graph, grids: Mapping[str, QParams], form: ExportForm) -> None:
        self.graph = graph
        self.grids = grids
        self.form = form
        self.pairs: dict[str, _Pair] = {}

    def replace(self, node: ir.Node) -> None:
        grid, source = node.attributes["grid"].as_string(), node.inputs[0]
        assert source is not None
        if source.dtype not in {None, ir.DataType.FLOAT}:
            raise ExportError(
                f"{grid} is {source.dtype} in the model, and Q/DQ is written in float32; call "
                "model.float() before export"
            )
        if source.const_value is not None:
            self._weight(node, source, grid)
        else:
            self._activation(node, source, grid)

    def _activation(self, node: ir.Node, source: ir.Value, grid: str) -> None:
        source = self._bounded(node, source, grid)
        qparams = self._in_form(self.grids[grid])
        pair = self.pairs.get(grid) or self._pair(grid, qparams)
        self.pairs[grid] = pair
        attributes = _attributes(qparams.spec)
        name = node.outputs[0].name or grid
        quantize = ir.node("QuantizeLinear", [source, pair.scale, pair.zero_point], attributes,
                           name=f"{grid}/QuantizeLinear")  # fmt: skip
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], pair.scale, pair.zero_point], attributes,
            name=f"{grid}/DequantizeLinear",
        )  # fmt: skip
        for written in (quantize, dequantize):
            written.metadata_props[TENSOR] = node.attributes["tensor"].as_string()
        quantize.outputs[0].name = f"{name}_quantized"
        dequantize.outputs[0].name = f"{name}_dequantized"
        self._put(node, [quantize, dequantize])

    def _weight(self, node: ir.Node, source: ir.Value, grid: str) -> None:
        """Integers in the file, dequantized; a transpose behind them is done here, once."""
        qparams = self.grids[grid]
        const = source.const_value
        assert const is not None
        values = torch.from_numpy(np.array(const.numpy(), dtype=np.float32))
        # As the simulation does; for weights that stand on the grid both ways are one.
        integers = numerics.quantize(values, qparams, reciprocal=True)
        transposes = _like_transposes(node.outputs[0])
        if transposes:
            permutation = [int(p) for p in transposes[0].attributes["perm"].as_ints()]
            integers = integers.permute(permutation).contiguous()
            qparams = _permuted(qparams, permutation)
        for reader in transposes:
            _redirect(reader.outputs[0], node.outputs[0])
            self.graph.remove(reader, safe=True)
        pair = self._pair(grid, qparams)
        stored = add_constant(self.graph, f"{grid}_quantized", _stored(integers, qparams.spec))
        dequantize = ir.node(
            "DequantizeLinear", [stored, pair.scale, pair.zero_point], _attributes(qparams.spec),
            name=f"{grid}/DequantizeLinear",
        )  # fmt: skip
        dequantize.metadata_props[TENSOR] = node.attributes["tensor"].as_string()
        dequantize.outputs[0].name = f"{grid}_dequantized"
        self._put(node, [dequantize])
        dequantize.outputs[0].shape = stored.shape

    def _put(self, node: ir.Node, new: list[ir.Node]) -> None:
        old, out = node.outputs[0], new[-1].outputs[0]
        out.shape, out.type = old.shape, old.type
        self.graph.insert_before(node, new)
        _redirect(old, out)
        self.graph.remove(node, safe=True)

    def _bounded(self, node: ir.Node, source: ir.Value, grid: str) -> ir.Value:
        """``source`` clipped to a grid of fewer bits than its format, which Q would exceed."""
        qparams = self.grids[grid]
        spec = qparams.spec
        if spec.bits is None:
            return source
        if spec.axis is not None:
            raise ExportError(
                f"{grid} is an activation of {spec}, which Q/DQ cannot say; remove bits, or use "
                "one scale per tensor"
            )
        zero, scale = int(qparams.zero_point), qparams.scale.numpy()
        low, high = ((q - zero) * scale for q in (spec.qmin, spec.qmax))
        bounds = [
            add_constant(self.graph, f"{grid}_{n}", v) for n, v in (("min", low), ("max", high))
        ]
        clip = ir.node("Clip", [source, *bounds], name=f"{grid}/Clip")
        clip.outputs[0].name = f"{node.outputs[0].name or grid}_clipped"
        clip.outputs[0].shape, clip.outputs[0].type = source.shape, source.type
        self.graph.insert_before(node, clip)
        return clip.outputs[0]

    def _in_form(self, qparams: QParams) -> QParams:
        """The same grid as the target wants it: q + 128 in uint8, or q in int8."""
        spec = qparams.spec
        if spec.dtype not in {"int8", "uint8"}:
            return qparams
        wanted = "uint8" if self.form == "onnxruntime" else "int8"
        if spec.dtype == wanted:
            return qparams
        if wanted == "int8" and not spec.symmetric:
            raise ExportError(
                "an asymmetric uint8 grid has no form that TensorRT takes (it wants zero-point 0); "
                "export with form='onnxruntime', or quantize with recipe int8_ptq"
            )
        shift = 128 if wanted == "uint8" else -128
        other = QuantSpec(dtype=wanted, symmetric=spec.symmetric, axis=spec.axis)  # type: ignore[arg-type]
        return QParams(scale=qparams.scale, zero_point=qparams.zero_point + shift, spec=other)

    def _pair(self, grid: str, qparams: QParams) -> _Pair:
        zero_point = _stored(qparams.zero_point, qparams.spec)
        return _Pair(
            add_constant(self.graph, f"{grid}_scale", qparams.scale.numpy()),
            add_constant(self.graph, f"{grid}_zero_point", zero_point),
        )


def _stored(integers: torch.Tensor, spec: QuantSpec) -> ir.TensorProtocol:
    """A tensor in the format of the file."""
    if spec.dtype == "int4":
        array = integers.to(torch.int8).cpu().numpy().astype(ml_dtypes.int4)
    elif spec.dtype == "fp8_e4m3":
        array = integers.float().cpu().numpy().astype(ml_dtypes.float8_e4m3fn)
    else:
        array = integers.cpu().numpy().astype(np.uint8 if spec.dtype == "uint8" else np.int8)
    return ir.Tensor(array, dtype=_IR_TYPES[spec.dtype])


def _attributes(spec: QuantSpec) -> dict[str, int]:
    if spec.axis is None:
        return {}
    return {"axis": spec.axis} | (
        {} if spec.group_size is None else {"block_size": spec.group_size}
    )


def _permuted(qparams: QParams, permutation: list[int]) -> QParams:
    """The grid of a transposed tensor."""
    spec = qparams.spec
    if spec.axis is None:
        return qparams
    axis = permutation.index(spec.axis % len(permutation))
    moved = QuantSpec(
        dtype=spec.dtype, symmetric=spec.symmetric, axis=axis,
        group_size=spec.group_size, bits=spec.bits,
    )  # fmt: skip
    scale, zero_point = qparams.scale, qparams.zero_point
    if spec.group_size is not None:
        scale, zero_point = scale.permute(permutation), zero_point.permute(permutation)
    return QParams(scale=scale.contiguous(), zero_point=zero_point.contiguous(), spec=moved)


def _redirect(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old``, the graph's outputs too, read ``new``."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _like_transposes(value: ir.Value) -> list[ir.Node]:
    """The readers of a weight (several, where layers share it) if all transpose it alike."""
    readers = [use.node for use in value.uses()]
    if value.is_graph_output() or any(r.op_type != "Transpose" for r in readers):
        return []
    orders = {tuple(r.attributes["perm"].as_ints()) for r in readers}
    return readers if len(orders) == 1 else []


def _name_reader(graph: ir.Graph, mark: ir.Node) -> None:
    """Call the ONNX node behind a naming mark by the plan's name for its layer; drop the mark."""
    layer, source = mark.attributes["layer"].as_string(), mark.inputs[0]
    readers = list(mark.outputs[0].uses())
    while readers and readers[0].node.op_type in {"Transpose", "Reshape", "Cast"}:
        readers = list(readers[0].node.outputs[0].uses())
    if readers:
        readers[0].node.name = layer
        readers[0].node.metadata_props["quantkit.layer"] = layer
    assert source is not None
    _redirect(mark.outputs[0], source)
    graph.remove(mark, safe=True)
