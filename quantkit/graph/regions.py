"""What lies between the stubs of a model: only that is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from quantkit.errors import CaptureError
from quantkit.stubs import DeQuantStub, QuantStub, mark

#: Where a node keeps that it lies outside.
OUTSIDE = "quantkit_outside"
#: Where a node keeps the path of the stub that its tensor went through.
STUB = "quantkit_stub"

#: torch.ao's stubs are known by name: nothing of it is imported for models that have none.
_AO = "torch.ao.quantization.stubs."


@contextmanager
def marking(model: nn.Module) -> Iterator[None]:
    """Let torch.ao's stubs leave the mark in a captured graph that quantkit's leave themselves."""
    found = [m for m in model.modules() if _role(_named(type(m))) and not _is_ours(m)]
    hooks = [m.register_forward_hook(lambda _, __, output: mark(output)) for m in found]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def take_out_stubs(module: fx.GraphModule) -> bool:
    """Mark what lies outside of the stubs, and take the stubs out of the graph.

    A tensor is inside behind a `QuantStub`, and as long as it is computed from one that is, up to a
    `DeQuantStub`. A layer is inside if all its activations are.

    Returns:
        Whether there were stubs.

    Raises:
        CaptureError: there is a `DeQuantStub`, but no `QuantStub`.
    """
    roles = {node: role for node in module.graph.nodes if (role := _role_of(node)) is not None}
    if not roles:
        return False
    if "begin" not in roles.values():
        path = _path(next(iter(roles)))
        raise CaptureError(
            f"{path or 'the model'} is a DeQuantStub, and there is no QuantStub where quantization "
            "would begin; put one before the first layer to quantize, or take the other out"
        )
    inside: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    for node in module.graph.nodes:
        inputs = [n for n in node.all_input_nodes if n not in constant]
        if node.op == "get_attr" or (node.op != "placeholder" and not inputs):
            constant.add(node)
            continue
        if node in roles:
            if roles[node] == "begin":
                inside.add(node)
        elif any(n in inside for n in inputs):
            inside.add(node)
        if not (inputs and all(n in inside for n in inputs)):
            node.meta[OUTSIDE] = True
    for node in roles:
        source: Any = node.args[0]
        if roles[node] == "begin":
            source.meta[STUB] = _path(node)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    module.recompile()
    return True


def _role_of(node: fx.Node) -> Literal["begin", "end"] | None:
    if node.target is not torch.ops.aten.alias.default:
        return None
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return None
    owner = next(reversed(stack.values()))[1]
    return _role(owner if isinstance(owner, str) else _named(owner))


def _role(name: str) -> Literal["begin", "end"] | None:
    for kind, role in ((QuantStub, "begin"), (DeQuantStub, "end")):
        if name in {_named(kind), f"{_AO}{kind.__name__}"}:
            return role  # type: ignore[return-value]
    return None


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_ours(module: nn.Module) -> bool:
    return isinstance(module, QuantStub | DeQuantStub)


def _path(node: fx.Node) -> str:
    stack = node.meta["nn_module_stack"]
    return str(next(reversed(stack.values()))[0])


def seen_by_stubs(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The ranges that a model's stubs have seen in training, by the stubs' paths."""
    found = {path: m.range for path, m in model.named_modules() if isinstance(m, QuantStub)}
    return {path: ends for path, ends in found.items() if ends is not None}
