"""How much each layer computes and how many bytes it moves: what a roofline is made of.

Counted from shapes alone, before anything runs. Products (convolutions, linear layers, matrix
products, recurrent layers) are counted exactly; all other operators compute so little that only the
bytes they move are counted. Bytes are those that must move at least: each tensor once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.profiling.kinds import Dtype

#: Bytes of one value.
WIDTHS: Final[Mapping[Dtype, float]] = {
    Dtype.FP64: 8.0,
    Dtype.FP32: 4.0,
    Dtype.TF32: 4.0,  # in memory it is fp32
    Dtype.FP16: 2.0,
    Dtype.BF16: 2.0,
    Dtype.FP8_E4M3: 1.0,
    Dtype.FP8_E5M2: 1.0,
    Dtype.INT8: 1.0,
    Dtype.INT4: 0.5,
    Dtype.FP4: 0.5,
}
#: A bias is added to sums, which integer and 8-bit float kernels hold in 32 bits.
_BIAS_WIDTH: Final = 4.0

#: What only gives a tensor another shape or name: no value moves.
_VIEWS: Final = (
    "view reshape flatten unflatten permute transpose t squeeze unsqueeze expand dropout alias "
    "detach movedim swapaxes feature_dropout _unsafe_view numpy_T expand_as view_as contiguous "
    "lift_fresh_copy slice select split chunk split_with_sizes narrow unbind tensor_split getitem "
)
#: The same in ONNX. Q and DQ are part of the layers beside them in every engine that fuses.
_ONNX_VIEWS: Final = (
    "Reshape Flatten Squeeze Unsqueeze Identity Dropout QuantizeLinear DequantizeLinear"
)
VIEWS: Final = frozenset((_VIEWS + _ONNX_VIEWS).split())
_ATTENTIONS: Final = frozenset({"scaled_dot_product_attention"})


@dataclass(frozen=True)
class Size:
    """The extent of one tensor.

    Attributes:
        shape: with every dimension known.
        itemsize: bytes of one value, as the model holds it; half a byte in 4 bits.
        floating: whether a precision changes its width; indices and masks keep theirs.
    """

    shape: tuple[int, ...]
    itemsize: float = 4
    floating: bool = True

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def bytes(self, width: float | None = None) -> float:
        """Its bytes, with floating values of ``width`` bytes; by default as the model holds it."""
        return self.elements * (width if width is not None and self.floating else self.itemsize)


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """What one operator computes and moves.

    Attributes:
        name: of the operator in the abstract graph, such as ``layer1.0.conv1``.
        module: path of the module that it came from.
        kind: what it is.
        operator: its name in the source, such as ``conv2d`` or ``Conv``.
        macs: products that are summed; 0 where only bytes are counted.
        read: floating values of activations that it reads.
        weights: floating constants that it reads, without biases.
        biases: values of biases.
        written: floating values that it makes.
        other: bytes of what no precision changes: indices, masks.
    """

    name: str
    kind: Kind
    module: str = ""
    operator: str = ""
    macs: int = 0
    read: int = 0
    weights: int = 0
    biases: int = 0
    written: int = 0
    other: int = 0

    @property
    def flops(self) -> int:
        """Operations: a product and a sum for each ``macs``."""
        return 2 * self.macs

    def bytes(self, dtype: Dtype = Dtype.FP32, *, weights: Dtype | None = None) -> float:
        """Bytes that it moves at least.

        Args:
            dtype: of the activations.
            weights: of the weights, where they differ, as in weight-only quantization.

        Example:
            >>> layer = LayerWork(name="fc", kind=Kind.LINEAR, read=8, weights=32, written=4)
            >>> layer.bytes(), layer.bytes(Dtype.INT8)
            (176.0, 44.0)
            >>> layer.bytes(Dtype.FP16, weights=Dtype.INT4)
            40.0
        """
        width = WIDTHS[dtype]
        return (
            (self.read + self.written) * width
            + self.weights * WIDTHS[weights or dtype]
            + self.biases * max(width, _BIAS_WIDTH if width < 2 else width)
            + self.other
        )

    def intensity(self, dtype: Dtype = Dtype.FP32) -> float:
        """Operations for each byte that it moves; 0 where it moves none."""
        moved = self.bytes(dtype)
        return self.flops / moved if moved else 0.0


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """The work of all layers of a model, in the order that they run.

    Attributes:
        layers: operators that compute or move something; views have no row.
        batch: the batch size it was counted for.
        unknown: operators whose shapes depend on the data, so that they are not counted.
    """

    layers: tuple[LayerWork, ...]
    batch: int
    unknown: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, LayerWork]:
        """The layers by their names."""
        return {layer.name: layer for layer in self.layers}

    @property
    def flops(self) -> int:
        """Operations of all layers."""
        return sum(layer.flops for layer in self.layers)

    def bytes(self, dtype: Dtype = Dtype.FP32) -> float:
        """Bytes that all layers move, if each reads and writes memory."""
        return sum(layer.bytes(dtype) for layer in self.layers)


def count(graph: Graph, sizes: Mapping[str, Size], batch: int) -> ModelWork:
    """The work of each operator of an abstract graph: the mathematics of this module.

    Args:
        graph: operators that depend on constants alone are left out: engines fold them.
        sizes: of tensors by name; an operator that reads or makes another is in ``unknown``.
        batch: what ``sizes`` were computed for.

    Example:
        >>> from quantkit.graph.abstract import Value
        >>> op = Op(name="fc", kind=Kind.LINEAR, inputs=("x", "w"), output="y", weight_axis=0)
        >>> values = {n: Value(name=n, constant=n == "w") for n in "xwy"}
        >>> sizes = {"x": Size((2, 8)), "w": Size((4, 8)), "y": Size((2, 4))}
        >>> count(Graph((op,), values, ("y",)), sizes, 2).layers[0].macs
        64
    """
    layers: list[LayerWork] = []
    unknown: list[str] = []
    for op in graph.ops:
        if graph.values[op.output].constant or is_view(op):
            continue
        if all(name in sizes for name in (*op.inputs, op.output)):
            layers.append(_layer(op, graph, sizes))
        else:
            unknown.append(op.name)
    return ModelWork(layers=tuple(layers), batch=batch, unknown=tuple(unknown))


def is_view(op: Op) -> bool:
    """Whether an operator moves no value: its output is its input's memory."""
    return op.operator.rstrip("_") in VIEWS or (op.kind is Kind.SLICE and not op.operator)


def total(layers: Iterable[LayerWork], name: str) -> LayerWork:
    """Several operators as one row, as if each still moved its own bytes.

    Example:
        >>> parts = [LayerWork(name=n, kind=Kind.LINEAR, macs=8, read=2) for n in "ab"]
        >>> both = total(parts, "block")
        >>> both.flops, both.read
        (32, 4)
    """
    rows = tuple(layers)
    if not rows:
        raise ValueError(f"{name}: a row of no operators has no work; give one or more")
    main = max(rows, key=lambda row: row.macs)
    return LayerWork(
        name=name, kind=main.kind, module=main.module, operator=main.operator,
        macs=sum(r.macs for r in rows), read=sum(r.read for r in rows),
        weights=sum(r.weights for r in rows), biases=sum(r.biases for r in rows),
        written=sum(r.written for r in rows), other=sum(r.other for r in rows),
    )  # fmt: skip


def _layer(op: Op, graph: Graph, sizes: Mapping[str, Size]) -> LayerWork:
    read = weights = biases = other = 0
    product = _macs(op, graph, sizes)
    for index, name in enumerate(dict.fromkeys(op.inputs)):
        size = sizes[name]
        if not size.floating:
            other += math.ceil(size.bytes())
        elif not graph.values[name].constant:
            read += size.elements
        elif op.kind is Kind.EMBEDDING:
            weights += min(size.elements, sizes[op.output].elements)  # only the rows looked up
        elif product and index >= 2 and len(size.shape) <= 1:
            biases += size.elements
        else:
            weights += size.elements
    made = sizes[op.output]
    if not made.floating:
        other += math.ceil(made.bytes())
    return LayerWork(
        name=op.name, kind=op.kind, module=op.module, operator=op.operator, macs=product,
        read=read, weights=weights, biases=biases, other=other,
        written=made.elements if made.floating else 0,
    )  # fmt: skip


def _macs(op: Op, graph: Graph, sizes: Mapping[str, Size]) -> int:
    """Products that are summed; each formula is that of the operator's definition."""
    shapes = [sizes[name].shape for name in op.inputs]
    made = sizes[op.output].elements
    match op.kind:
        case Kind.CONV:  # each output: all taps of the input channels of its group
            return made * math.prod(shapes[1][1:])
        case Kind.CONV_TRANSPOSE:  # each input: all taps of the output channels of its group
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case Kind.LINEAR:
            return made * (math.prod(shapes[1]) // max(1, shapes[1][op.weight_axis or 0]))
        case Kind.MATMUL:
            return made * shapes[0][-1]
        case Kind.RECURRENT:
            return _recurrent(op, graph, sizes)
    if op.operator in _ATTENTIONS:  # (.., L, E) @ (.., S, E)^T, then (.., L, S) @ (.., S, V)
        queries, keys, values = shapes[:3]
        return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    if op.operator in {"addmm", "baddbmm"}:
        return made * shapes[1][-1]
    return 0


def _recurrent(op: Op, graph: Graph, sizes: Mapping[str, Size]) -> int:
    """Every weight matrix is multiplied once for each sample and step."""
    constants = [sizes[n].shape for n in op.inputs if graph.values[n].constant]
    rank = max((len(shape) for shape in constants), default=0)
    matrices = sum(math.prod(shape) for shape in constants if len(shape) == rank and rank > 1)
    return math.prod(sizes[op.inputs[0]].shape[:-1]) * matrices
