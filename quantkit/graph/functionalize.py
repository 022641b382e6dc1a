"""Replace in-place operators by those that make a new tensor, also behind views."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from quantkit.errors import CaptureError
from quantkit.graph.edit import Emitter

aten = torch.ops.aten

#: What puts a changed view back into the tensor that it shows.
_SCATTER: dict[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}
#: Views of every element: the operator that undoes each, where its arguments say how.
_RESHAPES: frozenset[Any] = frozenset(
    {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim,
     aten.squeeze.default, aten.unsqueeze.default, aten.contiguous.default, aten.alias.default}
)  # fmt: skip


def functionalize(module: fx.GraphModule) -> int:
    """Replace in-place operators (``relu_``, ``y[:, 0] = 1``) by those that make a new tensor.

    A quantizer reads a tensor by value; behind an in-place operator the value would have changed.
    Returns how many were replaced.

    Raises:
        CaptureError: one writes through a view in a way that has no such operator.
    """
    views = _Views(module.graph)
    replaced = 0
    for node in list(module.graph.nodes):
        pure = _pure(node)
        # A buffer that the model updates: that is its meaning.
        if pure is not None and views.owner(node.args[0]).op != "get_attr":
            node.target = pure
            _let_later_read(node, views)
            replaced += 1
    if replaced:
        module.graph.eliminate_dead_code()
        module.recompile()
    return replaced


def _let_later_read(node: fx.Node, views: _Views) -> None:
    """Let what runs later read what ``node`` made of the tensor, and of all its views."""
    written: Any = node.args[0]
    later = _after(node)
    owner = views.owner(written)
    family = [owner, *views.family(owner, later)]
    new: dict[fx.Node, fx.Node] = {written: node}
    if any(user in later for member in family if member is not written for user in member.users):
        emit = Emitter(node.graph, node.next, like=node)
        view = written
        while view is not owner:
            base: Any = view.args[0]
            new[base] = _put_back(emit, view, base, new[view], node)
            view = base
        for view in family:
            if view not in new:
                shown: Any = view.args[0]
                new[view] = emit(view.target, new[shown], *view.args[1:], **view.kwargs)
                views.known.add(new[view])
    for old, current in new.items():
        old.replace_all_uses_with(current, delete_user_cb=lambda user: user in later)


class _Views:
    """Which nodes share the data of their first argument, as it was before any change."""

    def __init__(self, graph: fx.Graph) -> None:
        self.known = {node for node in graph.nodes if _is_view(node)}

    def owner(self, node: Any) -> fx.Node:
        """The node whose data a view shows; the node itself where it is none."""
        while node in self.known:
            node = node.args[0]
        return node  # type: ignore[no-any-return]

    def family(self, owner: fx.Node, later: set[fx.Node]) -> list[fx.Node]:
        """The views of a tensor, and theirs, that were there before; in the graph's order."""
        found: list[fx.Node] = []
        waiting = [owner]
        while waiting:
            current = waiting.pop()
            shown = {u for u in current.users if u in self.known and u.args[0] is current} - later
            found.extend(shown)
            waiting.extend(shown)
        return sorted(found)


def _put_back(emit: Emitter, view: fx.Node, base: fx.Node, new: fx.Node, node: fx.Node) -> fx.Node:
    """``base`` with what ``view`` shows of it replaced by ``new``."""
    scatter = _SCATTER.get(view.target)
    if scatter is not None:
        return emit(scatter, base, new, *view.args[1:])
    if view.target in _RESHAPES:
        shape = [emit.size(base, dim) for dim in range(base.meta["val"].dim())]
        return emit(aten.reshape.default, new, shape)
    if view.target is aten.transpose.int:
        return emit(aten.transpose.int, new, *view.args[1:])
    if view.target is aten.permute.default:
        order: Any = view.args[1]
        inverse = sorted(range(len(order)), key=lambda dim: order[dim] % len(order))
        return emit(aten.permute.default, new, inverse)
    raise CaptureError(_refusal(node))


def _after(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    current = node.next
    while current.op != "root":
        found.add(current)
        current = current.next
    return found


def _is_view(node: fx.Node) -> bool:
    """Whether a node's result shares its data with its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    alias = returns[0].alias_info if returns else None
    if alias is None or alias.is_write:
        return False
    own, source = node.meta.get("val"), node.args[0].meta.get("val")
    if isinstance(own, Tensor) and isinstance(source, Tensor):  # a reshape may have copied
        return bool(own.untyped_storage()._cdata == source.untyped_storage()._cdata)
    return True


def _pure(node: fx.Node) -> Any:
    """The operator without the side effect, for an in-place one."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target._schema.name.split("::")[-1]
    if not name.endswith("_") or name.endswith("__") or not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, node.target._overloadname, None)


def _refusal(node: fx.Node) -> str:
    lines = [line.strip() for line in str(node.meta.get("stack_trace", "")).splitlines()]
    places = [line for line in lines if line.startswith("File ")]
    place = f" ({places[-1]})" if places else ""
    return (
        f"{node.name} writes in place through a view that is read elsewhere{place}; "
        "write it without in-place operators, with torch.cat or torch.where"
    )
