"""A small abstract graph: what the placement rules read, whoever made the model.

A captured PyTorch graph and an ONNX file are both described by it, so one set of rules serves
both and can be tested without a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Kind(StrEnum):
    """What an operator is, as far as quantization cares."""

    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    LINEAR = "linear"
    MATMUL = "matmul"
    ADD = "add"
    MUL = "mul"
    CONCAT = "concat"
    RELU = "relu"  #: ReLU, ReLU6 and other clips
    POINTWISE = "pointwise"  #: GELU, SiLU, sigmoid, division by a constant …
    SOFTMAX = "softmax"
    NORM = "norm"  #: LayerNorm, RMSNorm, GroupNorm
    BATCH_NORM = "batch_norm"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"
    MOVE = "move"  #: reshape, transpose, squeeze, dropout: every value goes through unchanged
    SLICE = "slice"  #: takes a part: slice, select, split, chunk
    PAD = "pad"  #: with zeros
    UPSAMPLE = "upsample"  #: nearest: repeats values
    RESIZE = "resize"  #: interpolates: makes new values
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"  #: LSTM, GRU, RNN
    OTHER = "other"


#: Operators that hold nearly all the arithmetic, which integer units speed up.
COMPUTE = frozenset({Kind.CONV, Kind.CONV_TRANSPOSE, Kind.LINEAR, Kind.MATMUL})


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor: its shape (``None`` for a dynamic dimension) and whether it is constant."""

    name: str
    shape: tuple[int | None, ...] = ()
    constant: bool = False
    floating: bool = True


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator.

    Attributes:
        name: unique; the module's path where the operator is the module, such as
            ``layer1.0.conv1``, else path and operator, such as ``layer1.0/add``.
        kind: what it is.
        inputs: names of the tensors it reads, in order; weights are input 1.
        output: name of the tensor it makes.
        module: path of the module it came from.
        operator: its name in the source, such as ``aten.conv2d`` or ``Conv``.
        groups, kernel: of a convolution.
        weight_axis: the dimension of the weight that counts output channels.
        spatial: a pad that touches spatial dimensions only.
        outside: not between the stubs with which the model's author marked what to quantize.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    module: str = ""
    operator: str = ""
    groups: int = 1
    kernel: tuple[int, ...] = ()
    weight_axis: int | None = None
    spatial: bool = False
    outside: bool = False


@dataclass(frozen=True)
class Graph:
    """Operators in execution order, the tensors between them, and the model's outputs."""

    ops: tuple[Op, ...]
    values: dict[str, Value]
    outputs: tuple[str, ...] = ()

    @cached_property
    def producer(self) -> dict[str, Op]:
        """The operator that makes each tensor."""
        return {op.output: op for op in self.ops}

    @cached_property
    def consumers(self) -> dict[str, tuple[tuple[Op, int], ...]]:
        """Each tensor's readers, with the index of the input that reads it."""
        readers: dict[str, list[tuple[Op, int]]] = {name: [] for name in self.values}
        for op in self.ops:
            for index, name in enumerate(op.inputs):
                readers[name].append((op, index))
        return {name: tuple(edges) for name, edges in readers.items()}

    @cached_property
    def order(self) -> dict[str, int]:
        """The position of each operator, by name."""
        return {op.name: index for index, op in enumerate(self.ops)}

    def of(self, kinds: Iterable[Kind]) -> Iterator[Op]:
        """The operators of these kinds, in order."""
        wanted = frozenset(kinds)
        return (op for op in self.ops if op.kind in wanted)
