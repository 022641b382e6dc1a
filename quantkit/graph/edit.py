"""Small edits of a captured graph that passes and normalization share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node reads; ``None`` where it is no such node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, name = _owner(module, str(node.target))
    value = getattr(owner, name)
    return value if isinstance(value, Tensor) else None


def set_constant(module: fx.GraphModule, path: str, value: Tensor) -> None:
    """Put a parameter at ``path``, replacing what is there."""
    owner, name = _owner(module, path)
    if name in owner._buffers:
        owner._buffers[name] = value
        return
    owner.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))


def add_constant(module: fx.GraphModule, path: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A new parameter at ``path`` and the node that reads it, written before ``before``."""
    set_constant(module, path, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(path)
    node.meta["val"] = torch.empty_like(value, device="meta")
    return node


def functionalize(module: fx.GraphModule) -> int:
    """Replace in-place operators (``relu_``, ``add_``) by those that make a new tensor.

    A quantizer reads a tensor by value; behind an in-place operator the value would have changed.
    Returns how many were replaced.
    """
    replaced = 0
    for node in list(module.graph.nodes):
        pure = _pure(node)
        if pure is None:
            continue
        target = node.args[0]
        node.target = pure
        later = {n for n in module.graph.nodes if n > node}
        target.replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)
        replaced += 1
    if replaced:
        module.recompile()
    return replaced


def _pure(node: fx.Node) -> Any:
    """The operator without the side effect, for an in-place one."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target._schema.name.split("::")[-1]
    if not name.endswith("_") or name.endswith("__") or not isinstance(node.args[0], fx.Node):
        return None
    if node.args[0].op == "get_attr":  # a buffer that the model updates: that is its meaning
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, node.target._overloadname, None)


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return (module.get_submodule(parent) if parent else module), name
