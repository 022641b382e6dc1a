"""Write shifts into a graph: constants, bounds, borders and biases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.batchnorm import layer_bias, set_bias
from quantkit.graph.edit import Emitter, add_constant, constant, has_constant, readers, set_constant
from quantkit.model import LAYER, MOVING, TENSOR
from quantkit.passes._center_parts import counts_borders, pads, shift_bounds, unpad
from quantkit.passes._center_walk import Shifts

aten = torch.ops.aten


def write_shifts(module: fx.GraphModule, found: Shifts) -> None:
    """All that is not in a bias: constants, bounds of clips, and what pads are filled with."""
    # A pad is known by its zeros, so those that are filled come last.
    filled = [node for node in found.offset if kind_of(node) is Kind.PAD]
    for node, offset in found.offset.items():
        if kind_of(node) is Kind.RELU:
            shift_bounds(node, offset)
    _subtract(module, found)
    _Borders(module, found).write()
    for (node, before), amount in found.back.items():
        restored = Emitter(module.graph, node)(aten.add.Tensor, before, amount)
        node.replace_input_with(before, restored)
    for node, amount in found.after.items():
        add_behind(module, node, amount)
    for node in filled:
        _fill(node, -found.offset[node])


def add_behind(module: fx.GraphModule, node: fx.Node, amount: float | fx.Node) -> None:
    """Let all that reads a node read it plus a number, or plus a constant of fewer dimensions."""
    with module.graph.inserting_after(node if isinstance(amount, float) else amount):
        new = module.graph.call_function(aten.add.Tensor, (node, amount))
    new.meta.update({k: v for k, v in node.meta.items() if k in {"val", "nn_module_stack"}})
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def set_layer_bias(module: fx.GraphModule, node: fx.Node, value: Tensor) -> None:
    """Give a layer this bias: its own one, or one of its own where it has none or shares it."""
    bias = layer_bias(node)
    if bias is not None and readers(module, bias) == 1:
        set_constant(module, str(bias.target), value)
        return
    set_bias(node, add_constant(module, free_path(module, node, "bias"), value, before=node))


def free_path(module: fx.GraphModule, node: fx.Node, name: str) -> str:
    """Where a layer can be given a constant: beside its weight."""
    weight: Any = node.args[1]
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    folder = str(weight.target).rpartition(".")[0]
    base = f"{folder}.{name}" if folder else name
    paths = chain([base], (f"{base}_{number}" for number in count(1)))
    return next(path for path in paths if not has_constant(module, path))


def bias_of(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The bias that a layer reads."""
    return constant(module, layer_bias(node))


def _subtract(module: fx.GraphModule, found: Shifts) -> None:
    """What no bias makes, before the quantizer, whose kernel does it in passing."""
    done: dict[tuple[Any, float], fx.Node] = {}
    for node, amount in found.before.items():
        if not amount:
            continue
        source: Any = node.args[0]
        if (source, amount) not in done:
            emit = Emitter(module.graph, source.next, like=source)
            done[source, amount] = emit(aten.sub.Tensor, source, amount)
        node.update_arg(0, done[source, amount])


def _fill(node: fx.Node, value: float) -> None:
    """Let a pad with zeros pad with another value."""
    mode = ("constant",) if node.target is aten.pad.default else ()
    node.args, node.kwargs = (*node.args[:2], *mode, value), {}


def _has_one_size(node: fx.Node) -> bool:
    return all(isinstance(extent, int) for extent in node.meta["val"].shape[2:])


class _Borders:
    """Pad the inputs of convolutions by themselves, before the quantizer, with what stands for 0.

    Behind the quantizer the padding would push the convolution to float (TensorRT-RTX 1.7.1). So
    what only moves values between the two goes before the quantizer as well, in a copy. Behind a
    max-pool, which runs in INT8, padding would be a kernel of its own: there a constant added to
    the convolution's result makes up for the zeros, where the size of the image is known.
    """

    def __init__(self, module: fx.GraphModule, found: Shifts) -> None:
        self.module = module
        self.found = found
        #: Quantizers of padded tensors, by the quantizer, what moves its values, and the padding.
        self.done: dict[tuple[fx.Node, tuple[fx.Node, ...], tuple[int, ...]], fx.Node] = {}

    def write(self) -> None:
        pools = [node for node in self.found.offset if kind_of(node) is Kind.AVERAGE_POOL]
        for node in filter(counts_borders, pools):
            self._pad(node, self.found.offset[node], ())
        for node, offset in self.found.read.items():
            if kind_of(node) is Kind.CONV:
                weight: Any = node.args[1]
                self._pad(node, offset, weight.meta["val"].shape[2:])

    def _pad(self, node: fx.Node, offset: float, taps: Sequence[int]) -> None:
        amounts, (start, *moves) = pads(node, taps), self._chain(node)
        if not any(amounts) and not any(kind_of(part) is Kind.PAD for part in moves):
            return
        if [kind_of(part) for part in moves] == [Kind.MAX_POOL] and _has_one_size(node):
            self.found.bordered.add(node)
            return
        key = (start, tuple(moves), tuple(amounts))
        if key not in self.done:
            self.done[key] = self._padded(node, start, moves, amounts, offset)
        node.update_arg(0, self.done[key])
        unpad(node, len(amounts) // 2)

    def _padded(
        self, node: fx.Node, start: fx.Node, moves: list[fx.Node], amounts: list[int], offset: float
    ) -> fx.Node:
        """What the convolution reads: moves and padding, then the quantizer where there is one."""
        emit = Emitter(self.module.graph, node)
        quantized = start.op == "call_module"
        value = start.all_input_nodes[0] if quantized else start
        for part in moves:
            value = emit(part.target, value, *part.args[1:], **part.kwargs)
            if kind_of(part) is Kind.PAD:
                _fill(value, -offset)
        if any(amounts):
            value = emit(aten.constant_pad_nd.default, value, amounts, -offset)
        if not quantized:
            return value
        with self.module.graph.inserting_before(node):
            new = self.module.graph.call_module(str(start.target), (value,))
        new.meta.update(value.meta)
        if TENSOR in start.meta:
            new.meta[TENSOR] = f"{start.meta[TENSOR]} for {node.meta.get(LAYER, node.name)}"
        return new

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        """The quantizer before a convolution and what moves its values; else what it reads."""
        read = node.all_input_nodes[0]
        parts = [read]
        while parts[0] not in self.found.before:
            if kind_of(parts[0]) not in MOVING:
                return [read]
            parts.insert(0, parts[0].all_input_nodes[0])
        return parts
