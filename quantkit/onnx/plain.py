"""One form for what exporters write in several: products with a factor, and attention.

PyTorch's exporter puts the root of attention's factor on both query and key, guards its softmax
against rows that are masked whole, and from opset 23 writes one ``Attention``. A captured PyTorch
model has the whole factor on the query, a softmax and two products. Both must be one, or the two
ways in would quantize other tensors; and the plain form is the one that TensorRT fuses.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from quantkit.onnx.edit import add_constant

LOWEST = float(np.finfo(np.float32).min)


def make_plain(graph: ir.Graph) -> int:
    """Rewrite a graph in place, its function kept to float error; returns how many changes.

    A row of attention that is masked whole gives the mean of all values, as it does for captured
    models, where the exporter's guarded softmax gives zeros.
    """
    changed = 0
    for node in list(graph):
        if node.domain not in {"", "ai.onnx"}:
            continue
        if node.op_type == "Attention":
            changed += _split_attention(graph, node)
    for node in list(graph):
        if node.op_type == "Gemm":
            changed += _plain_gemm(graph, node)
        elif node.op_type == "MatMul":
            changed += _gather_factors(graph, node)
        elif node.op_type == "Softmax":
            changed += _unguard(graph, node)
    return changed


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value which is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _gather_factors(graph: ir.Graph, product: ir.Node) -> int:
    """``(a * c) @ (b * d)`` becomes ``(a * cd) @ b``: both inputs then are plain tensors."""
    right = product.inputs[1].producer() if product.inputs[1] is not None else None
    left = product.inputs[0].producer() if product.inputs[0] is not None else None
    found = [_factor(node, product) for node in (left, right)]
    if left is None or right is None or left is right or None in found:
        return 0
    (_, at, first), (other, _, second) = (f for f in found if f is not None)
    name = str(left.outputs[0].name)
    number = np.asarray(np.float32(first * second))
    left.replace_input_with(1 - at, add_constant(graph, f"{name}_factor", number))
    product.replace_input_with(1, other)
    # What is no longer read: its sources may have other readers.
    graph.remove(right, safe=True)
    return 1


def _factor(node: ir.Node | None, reader: ir.Node) -> tuple[ir.Value, int, float] | None:
    """What a Mul for one reader scales, at which input, and by what number."""
    if node is None or node.op_type != "Mul" or sole_reader(node.outputs[0]) is not reader:
        return None
    for index in (0, 1):
        number, source = scalar(node.inputs[1 - index]), node.inputs[index]
        if number is not None and source is not None and source.const_value is None:
            return source, index, number
    return None


def _unguard(graph: ir.Graph, softmax: ir.Node) -> int:
    """Take ``Where(IsNaN(y), 0, y)`` off a softmax that cannot make NaN, and see that it cannot.

    NaN come of rows that are minus infinity throughout: the mask gets the lowest float instead.
    """
    out = softmax.outputs[0]
    readers = [use.node for use in out.uses()]
    guard = next((r for r in readers if r.op_type == "IsNaN"), None)
    where = sole_reader(guard.outputs[0]) if guard is not None else None
    if guard is None or where is None or len(readers) != 2 or out.is_graph_output():
        return 0
    if where.op_type != "Where" or where.inputs[2] is not out or scalar(where.inputs[1]) != 0.0:
        return 0
    add = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if add is None or add.op_type != "Add" or not _finite_mask(graph, add):
        return 0
    where.outputs[0].replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove([where, guard], safe=True)
    return 1


def _finite_mask(graph: ir.Graph, add: ir.Node) -> bool:
    """Whether the mask that is added is a choice of constants; they are made finite."""
    for value in add.inputs:
        chooser = value.producer() if value is not None else None
        if chooser is None or chooser.op_type != "Where":
            continue
        arrays = [_array(v) for v in chooser.inputs[1:]]
        if any(a is None or np.isnan(a).any() or np.isposinf(a).any() for a in arrays):
            continue
        for index, array in enumerate(arrays, 1):
            assert array is not None
            if np.isneginf(array).any():
                finite = np.maximum(array, np.float32(LOWEST))
                name = f"{chooser.outputs[0].name}_lowest"
                chooser.replace_input_with(index, add_constant(graph, name, finite))
        return True
    return False


def _array(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _plain_gemm(graph: ir.Graph, node: ir.Node) -> int:
    """Factors of a Gemm go into its constants."""
    changed = 0
    for name, index in (("alpha", 1), ("beta", 2)):
        attribute = node.attributes.get(name)
        factor = 1.0 if attribute is None else attribute.as_float()
        value = node.inputs[index] if len(node.inputs) > index else None
        if factor == 1.0 or (array := _array(value)) is None or value is None:
            continue
        scaled = add_constant(graph, f"{value.name}_scaled", array * np.float32(factor))
        node.replace_input_with(index, scaled)
        node.attributes.pop(name)
        changed += 1
    return changed


def attention_left_whole(node: ir.Node) -> str | None:
    """Why an ``Attention`` is not split into products; ``None`` where it is."""
    inputs = [v is not None for v in node.inputs]
    if any(inputs[4:]) or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return "Attention with a cache of keys, or with more than one output, stays whole"
    softcap = node.attributes.get("softcap")
    if softcap is not None and softcap.as_float():
        return "Attention with softcap stays whole"
    shapes = [v.shape for v in node.inputs[:3] if v is not None]
    if len(shapes) != 3 or any(s is None or len(s) != 4 for s in shapes):
        return "Attention on tensors that are not of four dimensions stays whole"
    query, key, _ = shapes
    assert query is not None
    assert key is not None
    if not isinstance(query[3], int):
        return "Attention over a width that is not known stays whole"
    if query[1] != key[1]:
        return "Attention with fewer heads of keys than of queries stays whole"
    causal = node.attributes.get("is_causal")
    if causal is not None and causal.as_int():
        return "causal Attention stays whole"
    return None


def _split_attention(graph: ir.Graph, node: ir.Node) -> int:
    """Q, K, V and a mask as two products and a softmax, as captured models have them."""
    if attention_left_whole(node) is not None:
        return 0
    query, key, value = node.inputs[:3]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    assert query is not None
    assert key is not None
    assert query.shape is not None
    scale = node.attributes.get("scale")
    width = query.shape[3]
    assert isinstance(width, int)
    factor = 1.0 / math.sqrt(width) if scale is None else scale.as_float()
    emit = _Emitter(graph, node)
    number = add_constant(graph, f"{node.name}_factor", np.asarray(np.float32(factor)))
    scaled = emit("Mul", [query, number], like=query)
    transposed = emit("Transpose", [key], {"perm": [0, 1, 3, 2]})
    transposed.shape = ir.Shape([key.shape[i] for i in (0, 1, 3, 2)])  # type: ignore[index]
    scores = emit("MatMul", [scaled, transposed])
    scores.shape = ir.Shape([*query.shape[:3], key.shape[2]])  # type: ignore[index]
    if mask is not None:
        if mask.dtype is ir.DataType.BOOL:
            zero = add_constant(graph, f"{node.name}_zero", np.asarray(np.float32(0)))
            lowest = add_constant(graph, f"{node.name}_lowest", np.asarray(np.float32(LOWEST)))
            mask = emit("Where", [mask, zero, lowest], like=mask)
            mask.type = ir.TensorType(ir.DataType.FLOAT)
        scores = emit("Add", [scores, mask], like=scores)
    weights = emit("Softmax", [scores], {"axis": -1}, like=scores)
    result = emit("MatMul", [weights, value])
    old = node.outputs[0]
    result.shape, name = old.shape, old.name
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name
    return 1


class _Emitter:
    """Writes nodes before a node, with its notes on where it came from."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self.graph, self.before, self.count = graph, before, 0

    def __call__(
        self,
        operator: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, object] | None = None,
        *,
        like: ir.Value | None = None,
    ) -> ir.Value:
        self.count += 1
        name = f"{self.before.name}/{operator}_{self.count}"
        node = ir.node(operator, inputs, attributes, name=name)  # type: ignore[arg-type]
        node.metadata_props.update(self.before.metadata_props)
        self.graph.insert_before(self.before, node)
        out = node.outputs[0]
        out.name, out.type = f"{name}_out", ir.TensorType(ir.DataType.FLOAT)
        out.shape = None if like is None else like.shape
        return out
