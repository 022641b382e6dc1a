"""Small edits of a captured graph that passes and normalization share."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node reads; ``None`` where it is no such node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, name = _owner(module, str(node.target))
    value = getattr(owner, name)
    return value if isinstance(value, Tensor) else None


def set_constant(module: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a parameter (or buffer, where one is there) at ``path``; it stays frozen if it was."""
    owner, name = _owner(module, path)
    if name in owner._buffers:
        owner._buffers[name] = value
        return
    old = getattr(owner, name, None)
    if old is not None and name not in owner._parameters:
        delattr(owner, name)  # a constant tensor that is neither parameter nor buffer
    trained = value.is_floating_point() and (old is None or old.requires_grad)
    owner.register_parameter(name, nn.Parameter(value, requires_grad=trained))


def has_constant(module: fx.GraphModule, path: str) -> bool:
    """Whether something is at ``path`` already."""
    owner, name = _owner(module, path)
    return hasattr(owner, name)


def readers(module: fx.GraphModule, node: fx.Node) -> int:
    """How many times a constant is read, under this name or another, by this node or another."""
    value = constant(module, node)
    same = [n for n in module.graph.nodes if constant(module, n) is value and value is not None]
    return sum(len(n.users) for n in same)


def add_constant(module: fx.GraphModule, path: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new parameter at ``path`` and the node that reads it, written before ``before``."""
    set_constant(module, path, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(path)
    node.meta["val"] = torch.empty_like(value, device="meta")
    return node


def evaluate_constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The value of a node that depends on parameters alone."""
    if node.op == "get_attr":
        value = constant(module, node)
        assert value is not None
        return value.detach()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: evaluate_constant(module, n))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator,no-any-return]


def replace_input(reader: fx.Node, index: int, source: fx.Node, new: fx.Node) -> None:
    """Let one input of ``reader`` read ``new``; ``x @ x`` keeps its other input."""
    positions = [i for i, argument in enumerate(reader.args) if argument is source]
    if len(positions) > 1 and index in positions:
        reader.update_arg(index, new)
    else:
        reader.replace_input_with(source, new)


class Emitter:
    """Writes nodes before a node, with shapes and with its module path (or that of ``like``)."""

    def __init__(self, graph: fx.Graph, before: fx.Node, like: fx.Node | None = None) -> None:
        self.graph = graph
        self.before = before
        self.like = before if like is None else like

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that calls ``target``."""
        with self.graph.inserting_before(self.before):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = _fake_result(node)
        for name in ("nn_module_stack", "stack_trace", "quantkit_outside"):
            if name in self.like.meta:
                node.meta[name] = self.like.meta[name]
        return node

    def size(self, node: fx.Node, dim: int) -> Any:
        """A dimension: an int, or a node where it is dynamic."""
        extent = node.meta["val"].shape[dim]
        return extent if isinstance(extent, int) else self(aten.sym_size.int, node, dim)


def _fake_result(node: fx.Node) -> Any:
    """What the node returns for the tensors without data that its arguments stand for."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    fakes = [n.meta["val"] for n in node.graph.nodes if isinstance(n.meta.get("val"), FakeTensor)]
    # Sizes may be symbols, which only the mode that made them understands.
    target: Any = node.target
    if not fakes:
        return target(*args, **kwargs)
    mode = fakes[0].fake_mode
    # What an operator asks of a free size must not fix it: it is one in the caller's program too.
    with mode, nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards():
        return target(*args, **kwargs)


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return (module.get_submodule(parent) if parent else module), name
