"""Write every product of two tensors as a matmul, which is what the placement rules know.

``torch.addmm`` (GPT-2's Conv1D), ``torch.baddbmm`` (``nn.MultiheadAttention`` with a mask) and
``torch.einsum`` (attention in many models) would else stay in float, unseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from quantkit.graph.edit import Emitter

aten = torch.ops.aten


def split_products(module: fx.GraphModule) -> int:
    """Rewrite in place what is a matmul and perhaps an add; returns how many were rewritten."""
    rewritten = 0
    for node in list(module.graph.nodes):
        if node.target in {aten.addmm.default, aten.baddbmm.default}:
            new = _add_product(module.graph, node)
        elif node.target is aten.einsum.default:
            new = _einsum(module.graph, node)
        else:
            continue
        if new is not None:
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
            rewritten += 1
    if rewritten:
        module.recompile()
    return rewritten


def _add_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """``addend + a @ b``; scaled ones stay as they are."""
    if any(node.kwargs.get(name, 1) != 1 for name in ("beta", "alpha")) or len(node.args) != 3:
        return None
    addend, left, right = node.args
    emit = Emitter(graph, node)
    return emit(aten.add.Tensor, emit(aten.matmul.default, left, right), addend)


@dataclass(frozen=True)
class _Labels:
    """What each index of an einsum of two tensors is: shared, summed, or of one of them."""

    batch: str
    left: str
    summed: str
    right: str
    out: str

    @classmethod
    def parse(cls, equation: str) -> _Labels | None:
        """``None`` where the equation is no plain product of two tensors."""
        inputs, arrow, out = equation.replace(" ", "").partition("->")
        terms = inputs.split(",")
        if not arrow or len(terms) != 2 or "." in equation:
            return None
        a, b = terms
        if any(len(set(term)) != len(term) for term in (a, b, out)):
            return None
        batch = "".join(i for i in a if i in b and i in out)
        summed = "".join(i for i in a if i in b and i not in out)
        left = "".join(i for i in a if i not in b)
        right = "".join(i for i in b if i not in a)
        whole = set(out) == set(batch + left + right)
        # matmul takes one row and one column index, or many rows where nothing is shared.
        plain = len(summed) == 1 and len(right) == 1 and bool(left)
        if not whole or not plain or (batch and len(left) != 1):
            return None
        return cls(batch=batch, left=left, summed=summed, right=right, out=out)


def _einsum(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    equation: Any = node.args[0]
    operands: Any = node.args[1]
    labels = _Labels.parse(equation)
    if labels is None or len(operands) != 2:
        return None
    emit = Emitter(graph, node)
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    left = _order(emit, operands[0], terms[0], labels.batch + labels.left + labels.summed)
    right = _order(emit, operands[1], terms[1], labels.batch + labels.summed + labels.right)
    product = emit(aten.matmul.default, left, right)
    return _order(emit, product, labels.batch + labels.left + labels.right, labels.out)


def _order(emit: Emitter, node: fx.Node, have: str, want: str) -> fx.Node:
    if have == want:
        return node
    return emit(aten.permute.default, node, [have.index(label) for label in want])
