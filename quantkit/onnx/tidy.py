"""Names that lead back to the model, and what export leaves over taken out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import count
from typing import Any

import onnx_ir as ir

#: What torch calls a size that may vary.
_RAW_SYMBOL = re.compile(r"\bs\d+\b")


def name_nodes(graph: ir.Graph, kept: AbstractSet[str] = frozenset()) -> None:
    """Names that lead back to the module: ``layer1.0/Relu``; layers keep the plan's name.

    ``kept``: names of nodes that stay, those that a file came with.
    """
    taken = {n.name for n in graph.all_nodes() if "quantkit.layer" in n.metadata_props}
    for node in graph.all_nodes():
        if "quantkit.layer" not in node.metadata_props:
            written = node.op_type in {"QuantizeLinear", "DequantizeLinear"}
            if node.name and (written or node.name in kept):
                base = node.name
            else:
                base = "/".join(filter(None, (_path(node), node.op_type)))
            numbered = (f"{base}_{i}" for i in count(1))
            node.name = base if base not in taken else next(n for n in numbered if n not in taken)
            taken.add(node.name)
        _forget(node)
        for value in node.outputs:
            _forget(value)
    for inner in (graph, *graph.subgraphs()):
        _forget(inner)
        for value in (*inner.inputs, *inner.initializers.values()):
            _forget(value)


def _forget(part: ir.Node | ir.Value | ir.Graph) -> None:
    """Drop the exporter's own notes: they hold stack traces, with paths of the machine."""
    kept = {k: v for k, v in part.metadata_props.items() if k.startswith("quantkit.")}
    part.metadata_props.clear()
    part.metadata_props.update(kept)
    part.doc_string = None


def name_dimensions(graph: ir.Graph) -> None:
    """Call what varies ``batch`` (the first dimension) or ``<input>_<dimension>``, not ``s77``."""
    names: dict[str, str] = {}
    taken = {s.value for v in graph.inputs for s in v.shape or () if isinstance(s, ir.SymbolicDim)}
    for value in graph.inputs:
        for index, size in enumerate(value.shape or ()):
            symbol = size.value if isinstance(size, ir.SymbolicDim) else None
            if symbol is None or symbol in names or not _RAW_SYMBOL.fullmatch(symbol):
                continue
            free = index == 0 and "batch" not in taken
            names[symbol] = "batch" if free else f"{value.name}_{index}"
            taken.add(names[symbol])
    inner = [v for n in graph.all_nodes() for v in n.outputs]
    for value in (*graph.inputs, *inner, *(v for g in graph.subgraphs() for v in g.inputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    """A dimension, or an expression of some, by their new names."""
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return _RAW_SYMBOL.sub(lambda found: names.get(found[0], found[0]), size.value)


def remove_unused(graph: ir.Graph) -> None:
    """Drop nodes and initializers that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def pool_globally(graph: ir.Graph) -> int:
    """Write a mean over height and width as GlobalAveragePool, which has an INT8 form."""
    changed = 0
    for node in list(graph):
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        source, axes, kept = (
            node.inputs[0],
            node.inputs[1].const_value,
            node.attributes.get("keepdims"),
        )
        if source is None or source.shape is None or axes is None or (kept and not kept.as_int()):
            continue
        rank = len(source.shape)
        if rank < 3 or sorted(int(a) % rank for a in axes.numpy()) != list(range(2, rank)):
            continue
        pool = ir.node("GlobalAveragePool", [source], name=node.name)
        pool.metadata_props.update(node.metadata_props)
        old, new = node.outputs[0], pool.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        graph.insert_before(node, pool)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        changed += 1
    return changed


def fold_pads(graph: ir.Graph) -> int:
    """Fold a zero Pad of spatial dimensions into the convolutions that read it.

    A Pad between DequantizeLinear and Conv would push the convolution to float. Returns how many.
    """
    folded = 0
    for node in list(graph):
        amounts = _spatial_pads(node)
        readers = [use.node for use in node.outputs[0].uses()] if amounts is not None else []
        if amounts is None or not readers or not all(_can_pad(r) for r in readers):
            continue
        for reader in readers:
            own = reader.attributes.get("pads")
            before = list(own.as_ints()) if own is not None else [0] * len(amounts)
            total = [int(a) + int(b) for a, b in zip(before, amounts, strict=True)]
            reader.attributes["pads"] = ir.AttrInt64s("pads", total)
        source = node.inputs[0]
        assert source is not None
        node.outputs[0].replace_all_uses_with(source)
        graph.remove(node, safe=True)
        folded += 1
    return folded


def _path(node: ir.Node) -> str:
    """The module's path in the exporter's notes, without the operator's own name."""
    import ast

    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    scopes: list[Any] = ast.literal_eval(text)
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _spatial_pads(node: ir.Node) -> list[int] | None:
    """Pads of the spatial dimensions in Conv's order, where a Pad is of zeros and of no others."""
    if node.op_type != "Pad" or node.outputs[0].is_graph_output() or len(node.inputs) < 2:
        return None
    mode = node.attributes.get("mode")
    pads = node.inputs[1].const_value if node.inputs[1] is not None else None
    if (mode is not None and mode.as_string() != "constant") or pads is None:
        return None
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is not None and (fill.const_value is None or fill.const_value.numpy().any()):
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    amounts = [int(p) for p in pads.numpy()]
    rank = len(amounts) // 2
    if any(a < 0 for a in amounts) or any(amounts[i] or amounts[rank + i] for i in (0, 1)):
        return None
    return amounts[2:rank] + amounts[rank + 2 :]


def _can_pad(node: ir.Node) -> bool:
    automatic = node.attributes.get("auto_pad")
    return node.op_type == "Conv" and (automatic is None or automatic.as_string() == "NOTSET")
