"""The types, sizes and bytes of the tensors of an ONNX graph, as far as rules of ONNX tell them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import ceil, prod
from typing import Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from quantkit.errors import DataError

#: Bits of an element where NumPy has no such type.
_BITS: Final[dict[int, int]] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
}


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of a node such as If or Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def opaque_outputs(graph: GraphProto) -> set[str]:
    """The tensors made by operators that ONNX has no rules for: only the file tells of them."""
    return {
        name
        for node in graph.node
        if not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)
        for name in node.output
        if name
    }


def typed(
    model: ModelProto,
    inputs: Mapping[str, Sequence[int]] | None = None,
    inner: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, ValueInfoProto]:
    """The types of tensors, by name, where they are known.

    Args:
        model: the model; its large constants need not be there.
        inputs: sizes of its inputs; without them dynamic sizes stay as they are.
        inner: sizes of tensors inside it, where no rule tells. Without a type in the file they
            are taken for tensors of the type of the first input of their maker, or of floats.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    _add(graph, inner or {})
    if inputs is not None:
        _resize(graph, inputs, inner or ())
    # A file that contradicts itself raises: then what it says of its tensors is all there is.
    with suppress(onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    values = (*copy.graph.input, *copy.graph.value_info, *copy.graph.output)
    return {v.name: v for v in values if v.type.tensor_type.elem_type}


def chosen_sizes(
    graph: GraphProto,
    given: Mapping[str, Sequence[int]],
    default: Callable[[Sequence[int]], tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The sizes of inputs with dynamic dimensions, and those given for tensors inside.

    Args:
        graph: whose inputs they are.
        given: sizes by the name of a tensor.
        default: sizes for those of an input, in which a negative one is dynamic.

    Raises:
        DataError: there is no such tensor, or the sizes contradict those of an input.
    """
    stored = {tensor.name for tensor in graph.initializer}
    inputs = {v.name: v for v in graph.input if v.name not in stored}
    made = {name for node in graph.node for name in node.output}
    unknown = sorted(given.keys() - inputs.keys() - made)
    if unknown:
        raise DataError(
            f"no input {unknown[0]!r} to give a shape; the inputs are {', '.join(inputs)}, and any "
            "tensor inside may be given one"
        )
    chosen: dict[str, tuple[int, ...]] = {}
    for name, value in inputs.items():
        tensor = value.type.tensor_type
        fixed = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        if name in given:
            if tensor.HasField("shape"):
                _require_fit(name, fixed, given[name])
            chosen[name] = tuple(given[name])
        elif -1 in fixed:
            chosen[name] = default(fixed)
    return chosen, {name: tuple(given[name]) for name in sorted(given.keys() & made)}


def _require_fit(name: str, fixed: Sequence[int], given: Sequence[int]) -> None:
    if len(given) != len(fixed) or any(
        want not in (-1, got) for want, got in zip(fixed, given, strict=True)
    ):
        told = ", ".join("any" if size < 0 else str(size) for size in fixed)
        raise DataError(f"the shape {tuple(given)} does not fit input {name}, of dimensions {told}")


def without_rank(
    graph: GraphProto, sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Those of some sizes that are of inputs whose rank the file does not tell."""
    ranked = {v.name for v in graph.input if v.type.tensor_type.HasField("shape")}
    return {name: dims for name, dims in sizes.items() if name not in ranked}


def bytes_of(kind: int, dims: Iterable[int]) -> int | None:
    """The bytes of a tensor of a type and sizes; ``None`` for a type that has no fixed size.

    Example:
        >>> bytes_of(TensorProto.FLOAT, [2, 3]), bytes_of(TensorProto.INT4, [3])
        (24, 2)
    """
    if kind in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    bits = _BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    return ceil(prod(dims) * bits / 8)


def sizes(values: Mapping[str, ValueInfoProto]) -> dict[str, int | None]:
    """The bytes of tensors; ``None`` where a dimension is not known."""
    return {name: _bytes(value) for name, value in values.items()}


def _bytes(value: ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return bytes_of(tensor.elem_type, [dim.dim_value for dim in dims])


def _add(graph: GraphProto, inner: Mapping[str, Sequence[int]]) -> None:
    """Write the sizes of tensors inside the graph into it."""
    if not inner:
        return
    kept = [value for value in graph.value_info if value.name not in inner]
    known = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    known |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
    makers = {name: node for node in graph.node for name in node.output}
    graph.ClearField("value_info")
    graph.value_info.extend(kept)
    for name, dims in inner.items():
        first = next(iter(makers[name].input), "")
        kind = known.get(name) or known.get(first) or TensorProto.FLOAT
        graph.value_info.append(helper.make_tensor_value_info(name, kind, list(dims)))


def _resize(graph: GraphProto, inputs: Mapping[str, Sequence[int]], inner: Collection[str]) -> None:
    """Give the inputs their sizes, and forget what the file says of others, which follows.

    Of what no rule is known for, the file's own word stays, with the same sizes put in, as does
    what is in ``inner``.
    """
    known: dict[str, int] = {}
    for value in graph.input:
        shape = value.type.tensor_type.shape
        if value.name in inputs and not value.type.tensor_type.HasField("shape"):
            shape.dim.extend([onnx.TensorShapeProto.Dimension()] * len(inputs[value.name]))
        for dim, size in zip(shape.dim, inputs.get(value.name, ()), strict=False):
            if dim.dim_param:
                known[dim.dim_param] = size
            dim.dim_value = size
    opaque = opaque_outputs(graph) | set(inner)
    told = [value for value in graph.value_info if value.name in opaque]
    for value in told:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    graph.ClearField("value_info")
    graph.value_info.extend(told)
    for value in graph.output:  # what they say of dynamic sizes is no longer so
        value.type.tensor_type.ClearField("shape")
