"""Shape a program with Q/DQ as Inductor's patterns want it, and keep from them what they get wrong.

Values stay as they are, to the bit; only what stands where changes:

- activations of int8 become uint8 (oneDNN's convolutions take nothing else), and a grid of fewer
  codes than its type holds is clamped before Q, since Inductor forgets the ends of the codes when
  it joins Q to the layer before it;
- each layer that can run in integers reads a dequantization directly, and has scales of its own:
  Inductor matches neither through a reshape nor where two layers share a weight;
- the weights of all other layers are dequantized here: Inductor would do it anew at every call;
- a sum of a layer and of an input or constant is written as a difference: Inductor would let the
  layer add to it in place, in the caller's own tensor, or in a constant that the next call reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.passes import move_to_device_pass

from quantkit.errors import CaptureError, TargetError
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of, operator_name
from quantkit.graph.capture import capture, recapture
from quantkit.graph.edit import constant, evaluate_constant
from quantkit.program import operators
from quantkit.program.writing import compute_nodes, layer_name, name_layers
from quantkit.targets._inductor_rules import Operands, Reason, operands, why_float

aten = torch.ops.aten

#: Of what passes values on, what takes integers as it takes floats: these move without arithmetic.
_WITHOUT_ARITHMETIC = frozenset({Kind.MOVE, Kind.SLICE})
#: Casts, which would make floats of integers.
_CASTS = frozenset({"to", "_to_copy", "type_as"})
#: Sums, and the differences in their stead.
_DIFFERENCES = {aten.add.Tensor: aten.sub.Tensor, aten.add_.Tensor: aten.sub_.Tensor}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A convolution or product of a program.

    Attributes:
        name: the plan's, or that of the graph's node.
        operator: such as ``conv2d``.
        quantized: the program asks for it in low precision.
        reason: why it cannot run in integers; ``None`` where it can, or is not quantized.
        scale: the buffer of its weight's scales, by which it is found in what Inductor makes of
            it; ``None`` where it runs in float.
        wide: its weights use all 8 bits.
    """

    name: str
    operator: str
    quantized: bool
    reason: Reason | None
    scale: str | None
    wide: bool


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A program as Inductor is to be given it, and its layers in order."""

    program: torch.export.ExportedProgram
    layers: tuple[Layer, ...]


def prepare(
    program: torch.export.ExportedProgram,
    device: str = "cpu",
    *,
    left_in_float: AbstractSet[str] = frozenset(),
) -> Prepared:
    """A program of the same values that Inductor runs in integers as far as it can.

    Args:
        program: with Q/DQ, on the CPU; it does not change.
        device: ``cpu`` or ``cuda``, where the result is to run.
        left_in_float: names of layers that the plan has not quantized; what they read may still
            be, for another's sake.

    Raises:
        TargetError: the program cannot be captured again.
    """
    try:
        captured = capture(program, ())
        module = captured.module
        _make_unsigned(module)
        _clamp_narrow(module)
        shaper = _Shaper(module, device, left_in_float)
        layers = tuple(shaper.shape(i, node) for i, node in enumerate(compute_nodes(module)))
        _keep_operands(module)
        module.graph.eliminate_dead_code()
        # Made anew: it takes over what the graph still reads alone.
        module = fx.GraphModule(module, module.graph)
        again = recapture(module, captured.args, captured.kwargs, captured.dynamic_shapes)
    except CaptureError as error:
        raise TargetError(f"the program cannot be captured for Inductor: {error}") from error
    name_layers(again, [layer.name for layer in layers])
    if device != "cpu":
        again = move_to_device_pass(again, device)
    return Prepared(program=again, layers=layers)


def _make_unsigned(module: fx.GraphModule) -> None:
    """Quantize activations to uint8: the same grid, with codes moved by 128."""
    for node in module.graph.nodes:
        if node.target is not operators.QUANTIZE_TENSOR or node.args[5] is not torch.int8:
            continue
        if any(user.target is not operators.DEQUANTIZE_TENSOR for user in node.users):
            continue
        for one in (node, *node.users):
            source, scale, zero, low, high, _ = one.args
            one.args = (source, scale, zero + 128, low + 128, high + 128, torch.uint8)


def _clamp_narrow(module: fx.GraphModule) -> None:
    """Clamp before Q what its codes end sooner than their type."""
    for node in list(module.graph.nodes):
        if node.target is not operators.QUANTIZE_TENSOR:
            continue
        source, scale, zero, low, high, dtype = node.args
        info = torch.iinfo(dtype)
        if (low, high) == (info.min, info.max) or source.target is aten.clamp.default:
            continue
        ends = [float(torch.tensor((q - zero) * scale)) for q in (low, high)]
        with module.graph.inserting_before(node):
            clamped = module.graph.call_function(aten.clamp.default, (source, *ends))
        node.replace_input_with(source, clamped)


def _keep_operands(module: fx.GraphModule) -> None:
    """Write ``layer + x`` as ``layer - (-x)``, the same to the bit, where ``x`` is not ours."""
    for node in list(module.graph.nodes):
        if node.target not in _DIFFERENCES or len(node.args) != 2 or node.kwargs:
            continue
        operands_of = [a for a in node.args if isinstance(a, fx.Node)]
        foreign = [a for a in operands_of if _source(a).op in {"placeholder", "get_attr"}]
        if len(operands_of) < 2 or len(foreign) != 1:
            continue
        other = node.args[0] if foreign[0] is node.args[1] else node.args[1]
        if node.target is aten.add_.Tensor and foreign[0] is node.args[0]:
            continue  # the program itself changes it
        with module.graph.inserting_before(node):
            negative = module.graph.call_function(aten.neg.default, (foreign[0],))
        node.target, node.args = _DIFFERENCES[node.target], (other, negative)


def _source(node: fx.Node) -> fx.Node:
    """What a node's values come from, through what only moves them."""
    while node.args and isinstance(node.args[0], fx.Node) and kind_of(node) in _WITHOUT_ARITHMETIC:
        node = node.args[0]
    return node


class _Shaper:
    """Gives each layer of a graph the inputs that its kernel wants."""

    def __init__(
        self, module: fx.GraphModule, device: str, left_in_float: AbstractSet[str]
    ) -> None:
        self.module = module
        self.graph = module.graph
        self.device = device
        self.left_in_float = left_in_float

    def shape(self, index: int, node: fx.Node) -> Layer:
        """Rewrite one layer's inputs, and tell what it will be."""
        found = operands(self.module, node)
        name = layer_name(node) or node.name
        quantized = found.quantized and name not in self.left_in_float
        reason = why_float(self.module, node, found, self.device) if quantized else None
        scale, wide = None, False
        if quantized and reason is None:
            scale = f"quantkit_scale_{index}"
            integers = constant(self.module, found.weight.args[0])
            assert integers is not None
            wide = bool((integers < -64).any() or (integers > 63).any())
            self._integers(node, found, index)
        elif found.stored is not None:
            value = evaluate_constant(self.module, found.weight).contiguous()
            node.update_arg(1, self._store(node, f"quantkit_weight_{index}", value))
        return Layer(
            name=name,
            operator=operator_name(node),
            quantized=quantized,
            reason=reason,
            scale=scale,
            wide=wide,
        )

    def _integers(self, node: fx.Node, found: Operands, index: int) -> None:
        assert found.data is not None
        data = self._dequantized_last(node, found.data, found.path)
        weight = self._own_weight(node, found.weight, index)
        if kind_of(node) is Kind.MATMUL:
            new = self._call(node, aten.linear.default, data, weight)
            new.meta.update(node.meta)
            node.replace_all_uses_with(new)
            self.graph.erase_node(node)
        else:
            node.update_arg(0, data)
            node.update_arg(1, weight)

    def _dequantized_last(
        self, node: fx.Node, dequantize: fx.Node, path: Iterable[fx.Node]
    ) -> fx.Node:
        """The layer's input with its dequantization directly before the layer."""
        steps = list(path)[::-1]
        _, *grid = dequantize.args
        if all(_takes_integers(step) for step in steps):
            value: Any = dequantize.args[0]
            for step in steps:
                with self.graph.inserting_before(node):
                    copied = self.graph.node_copy(step)
                copied.update_arg(0, value)
                if kind_of(step) is Kind.PAD:
                    _pad_with(copied, grid[1])
                value = copied
        else:
            # On the grid already: quantizing again changes nothing.
            value = self._call(node, operators.QUANTIZE_TENSOR, node.args[0], *grid)
        return self._call(node, operators.DEQUANTIZE_TENSOR, value, *grid)

    def _own_weight(self, node: fx.Node, weight: fx.Node, index: int) -> fx.Node:
        """The weight by output channel, with scales that no other layer reads."""
        integers, scale, zero = (self._value(argument) for argument in weight.args[:3])
        low, high, dtype = weight.args[-3:]
        stored: Any = weight.args[0]
        if kind_of(node) is Kind.MATMUL:
            integers = integers.t().contiguous()
            stored = self._store(node, f"quantkit_weight_{index}", integers)
        channels = integers.shape[0]
        scales = self._store(node, f"quantkit_scale_{index}", scale.expand(channels).clone())
        zeros = zero.to(torch.int32).expand(channels).clone()
        zero_node = self._store(node, f"quantkit_zero_point_{index}", zeros)
        rest = (scales, zero_node, 0, low, high, dtype)
        return self._call(node, operators.DEQUANTIZE_CHANNEL, stored, *rest)

    def _value(self, argument: Any) -> Tensor:
        value = constant(self.module, argument) if isinstance(argument, fx.Node) else argument
        return torch.as_tensor(0 if value is None else value)

    def _call(self, before: fx.Node, target: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_before(before):
            return self.graph.call_function(target, args)

    def _store(self, before: fx.Node, name: str, value: Tensor) -> fx.Node:
        self.module.register_buffer(name, value.detach())
        with self.graph.inserting_before(before):
            return self.graph.get_attr(name)


def _takes_integers(node: fx.Node) -> bool:
    name = operator_name(node)
    if kind_of(node) is Kind.PAD:
        return name == "constant_pad_nd" or len(node.args) + len(node.kwargs) <= 4
    moves = kind_of(node) in _WITHOUT_ARITHMETIC and name not in _CASTS
    return moves or name in {"max_pool2d", "upsample_nearest2d"}


def _pad_with(node: fx.Node, zero: Any) -> None:
    """Zero, in integers."""
    source, amounts = node.args[:2]
    constant_mode = () if operator_name(node) == "constant_pad_nd" else ("constant",)
    node.args, node.kwargs = (source, amounts, *constant_mode, zero), {}
