"""What an ONNX file asks for in low precision, and why an engine would not grant it.

Reads the graph without its weights: no tensor data is loaded, external or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

#: Operators that move values without changing them: DequantizeLinear passes through.
COMMUTING = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice"}
    | {"Split", "Squeeze", "Transpose", "Unsqueeze"}
)

#: The node metadata in which quantkit's exporter says why a layer is not quantized.
REASON_KEY = "quantkit.reason"


@dataclass(frozen=True)
class Dequantize:
    """One DequantizeLinear, as the planner of an engine sees it.

    Attributes:
        name: the node.
        dtype: ``int8``, ``uint8``, ``int4``, ``fp8`` … (empty where the file does not tell).
        granularity: ``tensor``, ``channel`` or ``group``.
        axis: the axis of the scales, seen at the consumer (``None``: per tensor, or unknown).
        rank: the rank of the tensor where known.
        constant_scale: the scale is stored, not computed.
        constant: what it dequantizes is stored: a weight.
    """

    name: str
    dtype: str
    granularity: str
    axis: int | None
    rank: int | None
    constant_scale: bool
    constant: bool


@dataclass(frozen=True)
class Source:
    """Where an operand comes from, looking back through operators that commute.

    Attributes:
        dequantize: the DequantizeLinear found.
        constant: it is stored in the file, quantized or not.
        blocker: else the operator that computes it, as ``Op name``; empty for a model input.
        behind: the DequantizeLinear of an activation stands right before the blocker, which is
            no convolution or matrix product.
        through: operators passed on the way, as ``Op name``.
    """

    dequantize: Dequantize | None = None
    constant: bool = False
    blocker: str = ""
    behind: bool = False
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComputeNode:
    """A convolution or matrix product, the sources of its two operands, and its stated reason."""

    name: str
    op_type: str
    left: Source
    right: Source
    reason: str
    weight_axis: int | None

    @property
    def quantized(self) -> bool:
        """Whether the file asks for low precision, in whole or in part.

        A layer left out on purpose (it states a reason) may still read a tensor that others
        want quantized: that alone does not count.
        """
        both = self.left.dequantize is not None and self.right.dequantize is not None
        if self.reason:
            return both
        return both or self.left.dequantize is not None or self.right.dequantize is not None

    @property
    def quantized_weight(self) -> bool:
        """Whether a stored operand comes from DequantizeLinear."""
        return any(
            s.dequantize is not None and s.dequantize.constant for s in (self.left, self.right)
        )

    @property
    def float_weight(self) -> bool:
        """Whether a stored operand is in float: then the kernel multiplies in float."""
        return any(s.constant and s.dequantize is None for s in (self.left, self.right))


_DTYPES: dict[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8 (E5M2)",
}


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def label(node: NodeProto) -> str:
    """Such as ``Resize up``."""
    return f"{node.op_type} {node.name}"


def load(path: Path) -> tuple[ModelProto, bool]:
    """The model without external data, every node with a name of its own; whether it changed.

    The builder reports kernels by node name, so nameless and equally named nodes would be lost.

    Raises:
        google.protobuf.message.DecodeError: the file is no ONNX model.
    """
    model = onnx.load(str(path), load_external_data=False)
    changed = bool(model.functions)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        first = next((output for output in node.output if output), "")
        base = node.name or f"{node.op_type}_{first}"
        name, count = base, 1
        while name in taken or name in seen:
            count += 1
            name = f"{base}_{count}"
        node.name = name
        seen.add(name)
        changed = True
    return model, changed


class GraphReader:
    """Answers questions about one ONNX graph."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = tuple(model.graph.node)
        self._producers: dict[str, NodeProto] = {
            output: node for node in self.nodes for output in node.output if output
        }
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                for value in node.attribute:
                    if value.type == AttributeProto.TENSOR:
                        self._stored[node.output[0]] = value.t
        self._constant = self._constants()

    def _constants(self) -> set[str]:
        """The tensors that depend on what is stored alone, and never on the model's inputs."""
        constant = set(self._stored)
        for node in self.nodes:
            read = [name for name in node.input if name]
            # What moves values says with its further inputs where to, not what.
            read = read[:1] if node.op_type in COMMUTING else read
            if read and constant.issuperset(read):
                constant.update(output for output in node.output if output)
        return constant

    @cached_property
    def compute_nodes(self) -> tuple[ComputeNode, ...]:
        """The convolutions and matrix products, in graph order."""
        return tuple(self._compute(node) for node in self.nodes if node.op_type in COMPUTE)

    def uint8_grids(self) -> Iterator[tuple[NodeProto, str]]:
        """The QuantizeLinear nodes that ONNX reads as uint8 and TensorRT as int8, and why."""
        for node in self.nodes:
            if node.op_type != "QuantizeLinear":
                continue
            zero_point = node.input[2] if len(node.input) > 2 else ""
            if not zero_point and not attribute(node, "output_dtype", 0):
                yield node, "has no zero-point, so its grid is uint8 in ONNX and int8 in TensorRT"
            elif self._dtype(zero_point) == "uint8":
                yield node, "has a uint8 zero-point, and TensorRT imports the grid as int8"

    def shifted_grids(self) -> Iterator[NodeProto]:
        """The QuantizeLinear, and DequantizeLinear of stored values, with a zero-point not 0."""
        for node in self.nodes:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
                continue
            stored = self._stored.get(node.input[2])
            if stored is None or stored.data_location == TensorProto.EXTERNAL:
                continue
            own = node.op_type == "QuantizeLinear" or node.input[0] in self._stored
            if own and numpy_helper.to_array(stored).astype("float32").any():
                yield node

    def source(self, tensor: str, through: tuple[str, ...] = ()) -> Source:
        """Where a tensor comes from."""
        if tensor in self._stored:
            return Source(constant=True, through=through)
        node = self._producers.get(tensor)
        if node is None:
            return Source(through=through)
        if node.op_type == "DequantizeLinear":
            found = self._dequantize(node, through)
            return Source(dequantize=found, constant=found.constant, through=through)
        if node.op_type in COMMUTING:
            return self.source(node.input[0], (*through, label(node)))
        if node.op_type == "Concat" and all(self._dequantizer(name) for name in node.input):
            first = self.source(node.input[0]).dequantize
            return Source(dequantize=first, through=(*through, label(node)))
        behind = node.op_type not in COMPUTE and any(map(self._is_activation, node.input))
        return Source(
            constant=tensor in self._constant, blocker=label(node), behind=behind, through=through
        )

    def _dequantizer(self, tensor: str) -> NodeProto | None:
        """The DequantizeLinear that ``source`` would find; all of a Concat's inputs need one."""
        while (node := self._producers.get(tensor)) is not None:
            if node.op_type == "DequantizeLinear":
                return node
            joined = node.op_type == "Concat" and all(map(self._dequantizer, node.input))
            if not joined and node.op_type not in COMMUTING:
                return None
            tensor = node.input[0]
        return None

    def _is_activation(self, tensor: str) -> bool:
        dequantizer = self._dequantizer(tensor)
        return dequantizer is not None and dequantizer.input[0] not in self._constant

    def _dtype(self, tensor: str) -> str:
        stored = self._stored.get(tensor)
        return "" if stored is None else _DTYPES.get(stored.data_type, "")

    def _dequantize(self, node: NodeProto, through: tuple[str, ...]) -> Dequantize:
        scale = self._stored.get(node.input[1])
        dims = None if scale is None else tuple(scale.dims)
        if attribute(node, "block_size", 0):
            # One group that spans the axis is a scale per channel of the other axes.
            one = bool(dims) and dims is not None and dims[attribute(node, "axis", 1)] == 1
            granularity = "channel" if one else "group"
        elif dims is None or dims in ((), (1,)):
            granularity, one = "tensor", False
        else:
            granularity, one = "channel", False
        stored, constant = self._stored_operand(node)
        rank = None if stored is None else len(stored.dims)
        axis = attribute(node, "axis", 1) if granularity == "channel" and not one else None
        return Dequantize(
            name=node.name,
            dtype=self._dtype(node.input[2] if len(node.input) > 2 else "")
            or ("" if stored is None else _DTYPES.get(stored.data_type, "")),
            granularity=granularity,
            axis=self._axis_after(axis, rank, through),
            rank=rank,
            constant_scale=node.input[1] in self._constant,
            constant=constant,
        )

    def _stored_operand(self, node: NodeProto) -> tuple[TensorProto | None, bool]:
        """What a DequantizeLinear reads, if stored, quantized already or by a QuantizeLinear."""
        tensor = node.input[0]
        producer = self._producers.get(tensor)
        if producer is not None and producer.op_type == "QuantizeLinear":
            tensor = producer.input[0]
        return self._stored.get(tensor), tensor in self._constant

    def _axis_after(
        self, axis: int | None, rank: int | None, through: tuple[str, ...]
    ) -> int | None:
        """The axis after the operators passed; ``None`` where they move it beyond following."""
        if axis is None or rank is None:
            return None
        axis %= rank
        for step in through:
            if not step.startswith("Transpose "):
                return None
            node = next(n for n in self.nodes if label(n) == step)
            permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            axis = (permutation or list(reversed(range(rank)))).index(axis)
        return axis

    def _compute(self, node: NodeProto) -> ComputeNode:
        right = self.source(node.input[1])
        weight_axis: int | None = None
        if node.op_type == "Conv":
            weight_axis = 0
        elif node.op_type == "ConvTranspose":
            weight_axis = 1
        elif node.op_type == "Gemm":
            weight_axis = 0 if attribute(node, "transB", 0) else 1
        elif right.dequantize is not None and right.dequantize.rank is not None:
            weight_axis = right.dequantize.rank - 1
        return ComputeNode(
            name=node.name,
            op_type=node.op_type,
            left=self.source(node.input[0]),
            right=right,
            reason=next((p.value for p in node.metadata_props if p.key == REASON_KEY), ""),
            weight_axis=weight_axis,
        )
