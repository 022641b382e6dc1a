"""Gives a float graph the types of a plan: half where it says so, and a Cast at each border."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from quantkit.onnx._half_format import HalfFormat
from quantkit.onnx._half_graph import (
    CONTROL,
    constant,
    graphs,
    is_float,
    is_int4,
    is_island,
    reads,
    writes,
)
from quantkit.onnx._half_plan import GRIDS, HalfPlan
from quantkit.onnx._half_ranges import FAITHFUL, kept_db
from quantkit.onnx.edit import add_constant
from quantkit.onnx.opsets import opset_of

#: A node, and which of its inputs.
Use: TypeAlias = tuple[ir.Node, int]

#: Attributes that name the type of the result.
_TYPES = {
    "Bernoulli": "dtype", "Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype",
    "RandomNormalLike": "dtype", "RandomUniform": "dtype", "RandomUniformLike": "dtype",
}  # fmt: skip
#: What they make where the attribute is absent.
_FLOAT_BY_DEFAULT = frozenset({"EyeLike", "RandomNormal", "RandomUniform"})


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What became of the numbers of a graph.

    Attributes:
        casts: how many Casts stand at borders.
        weights: how many constants became half.
        zeroed: how many of their numbers half rounds to 0.
        subnormal: how many it holds without a full mantissa.
    """

    casts: int
    weights: int
    zeroed: int
    subnormal: int


def rewrite(model: ir.Model, plan: HalfPlan, *, keep_io: bool) -> Rewritten:
    """Convert in place."""
    return _Rewriter(model, plan, keep_io).run()


class _Rewriter:
    """One conversion: what type each value gets, and what each reader wants."""

    def __init__(self, model: ir.Model, plan: HalfPlan, keep_io: bool) -> None:
        self.graph, self.plan, self.keep_io = model.graph, plan, keep_io
        self.half: HalfFormat = plan.half
        self.opset = opset_of(model)
        self.wanted = f"tensor({self.half.name})"
        self.every = list(graphs(model.graph))
        #: The values that are half from now on.
        self.halved: set[ir.Value] = set()
        self.casts: dict[tuple[ir.Value, bool], ir.Value] = {}
        self.numbers = [0, 0, 0]
        self.names = {str(v.name) for g, _ in self.every for n in g for v in n.outputs} | {
            str(v.name) for g, _ in self.every for v in (*g.inputs, *g.initializers.values())
        }

    def run(self) -> Rewritten:
        floats = [v for v in self._values() if is_float(v)]
        self.halved = {v for v in floats if self._becomes_half(v)}
        self._constants()
        for value in floats:
            self._match_readers(value)
        for graph, owner in self.every:
            for index, out in enumerate(graph.outputs):
                self._match_output(graph, index, out, owner)
        for value in self.halved:
            value.type = ir.TensorType(self.half.type)
        for graph, _ in self.every:
            for node in list(graph):
                self._attributes(node)
        self._guard_products()
        self._drop_empty_casts()
        return Rewritten(
            casts=len(self.casts), weights=self.numbers[0], zeroed=self.numbers[1],
            subnormal=self.numbers[2],
        )  # fmt: skip

    def _values(self) -> Iterable[ir.Value]:
        for graph, _ in self.every:
            yield from graph.inputs
            for node in graph:
                yield from node.outputs

    # What type a value gets, and what its readers want

    def _becomes_half(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None:  # an input, of the model or of a graph inside of a node
            owner = next((owner for g, owner in self.every if value.graph is g), None)
            return not self.keep_io if owner is None else owner not in self.plan.kept
        if node.op_type == "DequantizeLinear":
            scale = constant(node.inputs[1])
            if is_int4(node) and (scale is None or kept_db(scale, self.half) < FAITHFUL):
                return False
            return any(self._wants_half(use.node, use.idx) for use in value.uses()) or (
                not self.keep_io and value.is_graph_output()
            )
        if node in self.plan.kept:
            return False
        return node.op_type in CONTROL or self.wanted in writes(
            node, self.opset, value.index() or 0
        )

    def _wants_half(self, node: ir.Node, index: int) -> bool:
        if node.op_type == "DequantizeLinear" and index == 1:
            return is_int4(node) and node.outputs[0] in self.halved
        if node.op_type in GRIDS or node in self.plan.kept:
            return False  # what is quantized may be either: see `_takes_either`
        return node.op_type in CONTROL or self.wanted in reads(node, self.opset, index)

    @staticmethod
    def _takes_either(node: ir.Node, index: int) -> bool:
        return node.op_type == "QuantizeLinear" and index == 0

    # Constants

    def _constants(self) -> None:
        for graph, _ in self.every:
            for value in list(graph.initializers.values()):
                array = constant(value) if is_float(value) else None
                if array is None or value.is_graph_output():
                    continue
                uses = list(value.uses())
                halves = [(u.node, u.idx) for u in uses if self._wants_half(u.node, u.idx)]
                if halves:
                    self._halve(graph, value, array, halves, whole=len(halves) == len(uses))

    def _halve(
        self, graph: ir.Graph, value: ir.Value, array: np.ndarray, uses: list[Use], *, whole: bool
    ) -> None:
        stored = self.half.store(array)
        tensor = ir.Tensor(stored, dtype=self.half.type, name=value.name)
        size = np.abs(stored.astype(np.float32))
        self.numbers[0] += 1
        self.numbers[1] += int(((size == 0) & (array != 0)).sum())
        self.numbers[2] += int(((size > 0) & (size < self.half.smallest)).sum())
        if whole:
            value.const_value, value.type = tensor, ir.TensorType(self.half.type)
            return
        new = add_constant(graph, f"{value.name}_{self.half.name}", tensor)
        for node, index in uses:
            node.replace_input_with(index, new)

    # Casts

    def _match_readers(self, value: ir.Value) -> None:
        is_half = value in self.halved
        wrong = [
            use
            for use in value.uses()
            if not self._takes_either(use.node, use.idx)
            and self._wants_half(use.node, use.idx) is not is_half
        ]
        if wrong:
            other = self._cast(value, to_half=not is_half)
            for use in wrong:
                use.node.replace_input_with(use.idx, other)

    def _cast(self, value: ir.Value, *, to_half: bool) -> ir.Value:
        """The same value in the other format; the Cast stands right behind what makes it."""
        if (value, to_half) in self.casts:
            return self.casts[value, to_half]
        name = self.half.name if to_half else "float32"
        kind = self.half.type if to_half else ir.DataType.FLOAT
        node = ir.node("Cast", [value], {"to": int(kind)}, name=f"{value.name}/Cast_{name}")
        out = node.outputs[0]
        out.name, out.type, out.shape = (
            self._free(f"{value.name}_{name}"),
            ir.TensorType(kind),
            value.shape,
        )
        maker, graph = value.producer(), value.graph
        assert graph is not None
        assert isinstance(graph, ir.Graph)
        if maker is not None:
            graph.insert_after(maker, node)
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        self.casts[value, to_half] = out
        return out

    def _match_output(
        self, graph: ir.Graph, index: int, value: ir.Value, owner: ir.Node | None
    ) -> None:
        if not is_float(value):
            return
        wants_half = not self.keep_io if owner is None else owner not in self.plan.kept
        is_half = value in self.halved
        if wants_half is is_half:
            return
        if value.is_initializer():  # handed out as it is
            return
        name, new = value.name, self._cast(value, to_half=wants_half)
        graph.outputs[index] = new
        if owner is None and not value.is_graph_input():  # the model's outputs keep their names
            value.name, new.name = (
                self._free(f"{name}_{'float32' if wants_half else self.half.name}"),
                name,
            )

    def _free(self, name: str) -> str:
        free, count = name, 0
        while free in self.names:
            count += 1
            free = f"{name}_{count}"
        self.names.add(free)
        return free

    # Attributes, and what TensorRT makes of Casts

    def _attributes(self, node: ir.Node) -> None:
        if node.op_type == "DequantizeLinear" and node.outputs[0] in self.halved:
            self._dequantize(node)
            return
        if not node.outputs or node.outputs[0] not in self.halved:
            return
        name = _TYPES.get(node.op_type)
        if name is not None and (name in node.attributes or node.op_type in _FLOAT_BY_DEFAULT):
            node.attributes[name] = ir.AttrInt64(name, int(self.half.type))
        if node.op_type == "ConstantOfShape":
            value = node.attributes.get("value")
            array = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
            stored = ir.Tensor(self.half.store(array), dtype=self.half.type)
            node.attributes["value"] = ir.AttrTensor("value", stored)

    def _dequantize(self, node: ir.Node) -> None:
        """Half out of a scale in float32: the grid stays as it is, bit for bit.

        TensorRT dequantizes int4 in its products only where the scale is half.
        """
        if is_int4(node):
            return
        node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(self.half.type))
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and not zero.astype(np.float32).any():
            # It is 0 without it as well; parsers of TensorRT 10 want its type to be output_dtype.
            node.resize_inputs(2)

    def _guard_products(self) -> None:
        """TensorRT runs a product between Casts in half, unless a Max stands in its way."""
        lowest = None
        for node, reason in self.plan.kept.items():
            out = node.outputs[0] if is_island(node) and not reason.framed else None
            down = [u.node for u in out.uses() if u.node.op_type == "Cast"] if out else []
            if out is None or not any(n.outputs[0].dtype is self.half.type for n in down):
                continue
            if lowest is None:
                least = np.asarray(np.finfo(np.float32).min)
                lowest = add_constant(self.graph, "quantkit_lowest", least)
            guard = ir.node("Max", [out, lowest], name=f"{node.name}/Max")
            new = guard.outputs[0]
            new.name, new.type, new.shape = self._free(f"{out.name}_float32"), out.type, out.shape
            assert node.graph is not None
            node.graph.insert_after(node, guard)
            for use in list(out.uses()):
                if use.node in down:
                    use.node.replace_input_with(use.idx, new)

    def _drop_empty_casts(self) -> None:
        """A Cast to what a value is already says nothing."""
        for graph, _ in self.every:
            for node in list(graph):
                source = node.inputs[0] if node.op_type == "Cast" else None
                out = node.outputs[0] if node.outputs else None
                if source is None or out is None or source.dtype != out.dtype:
                    continue
                if source.dtype is self.half.type and not out.is_graph_output():
                    out.replace_all_uses_with(source)
                    graph.remove(node, safe=True)
