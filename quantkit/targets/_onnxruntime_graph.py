"""The layers of an ONNX file, and the kernels that ONNX Runtime made of them.

Nothing here imports ONNX Runtime: the graph that it wrote is only read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

#: Kernels that multiply integers.
INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulIntegerToFloat",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
    }
)
COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits"}) | INTEGER_KERNELS

#: What only moves values: a grid passes through unchanged.
_MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Slice", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Wiring:
    """Who makes and who reads each tensor of an ONNX graph.

    Attributes:
        model: the file's contents.
        folder: where its external data lies.
    """

    model: onnx.ModelProto
    folder: Path

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                found[name].append(node)
        return found

    @cached_property
    def constants(self) -> dict[str, onnx.TensorProto]:
        """The constant tensors: initializers and Constant nodes."""
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                found[node.output[0]] = node.attribute[0].t
        return found

    @cached_property
    def outputs(self) -> frozenset[str]:
        """The outputs of the model."""
        return frozenset(value.name for value in self.model.graph.output)

    def value(self, name: str) -> np.ndarray | None:
        """The value of a constant tensor; ``None`` where it is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor, str(self.folder))

    def dequantize(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto | None:
        """The DequantizeLinear from which an input comes, perhaps moved; else ``None``."""
        source = self.producer.get(input_name(node, index))
        while source is not None and source.op_type in _MOVES:
            source = self.producer.get(input_name(source, 0))
        return source if source is not None and source.op_type == "DequantizeLinear" else None

    def dtype(self, linear: onnx.NodeProto) -> int:
        """The storage format of a QuantizeLinear or DequantizeLinear node, ONNX's number."""
        for name in (input_name(linear, 2), input_name(linear, 0)):
            if name in self.constants and self.constants[name].data_type != onnx.TensorProto.FLOAT:
                return self.constants[name].data_type
        return onnx.TensorProto.UINT8  # what ONNX says of an omitted zero-point

    def next(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The only reader of a node's output; ``None`` where there are several, or an output."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and node.output[0] not in self.outputs else None


@dataclass(frozen=True)
class Kernel:
    """What ONNX Runtime runs a layer with.

    Attributes:
        op_type: its operator in the optimized graph; empty where it cannot be told.
        bits: of the weights, for MatMulNBits.
    """

    op_type: str
    bits: int | None = None

    @property
    def precision(self) -> str:
        """``int8``, ``int4`` … or ``float32``."""
        if self.bits is not None:
            return f"int{self.bits}"
        return "int8" if self.op_type in INTEGER_KERNELS else "float32"


@dataclass(frozen=True)
class Layer:
    """One compute layer of the file and its kernel."""

    node: onnx.NodeProto
    name: str
    kernel: Kernel


def label(model: onnx.ModelProto) -> dict[str, str]:
    """Give every node a name of its own, in place; returns the old name of each.

    Fusions derive the names of their nodes from the names of those they replace, and names may be
    empty or equal: only after this can a node of the optimized graph be traced to its origin.
    """
    old = {}
    for number, node in enumerate(model.graph.node):
        # The tilde ends the name: no label is the beginning of another.
        new = f"qk{number}~"
        old[new] = node.name or f"{node.op_type}({', '.join(node.output)})"
        node.name = new
    return old


def layers(wiring: Wiring, old: Mapping[str, str], optimized: onnx.ModelProto) -> list[Layer]:
    """The compute layers of a labelled file, in its order, with the kernel of each."""
    by_label: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    by_output: dict[str, onnx.NodeProto] = {}
    for node in optimized.graph.node:
        head, tilde, _ = node.name.partition("~")
        by_label[head + tilde].append(node)
        by_output.update((name, node) for name in node.output)
    found = []
    for node in wiring.model.graph.node:
        if node.op_type not in COMPUTE:
            continue
        made = by_label[node.name] or [by_output[n] for n in node.output if n in by_output]
        # An integer kernel first: the label may also stand on a Reshape that was put beside it.
        made = sorted(made, key=lambda n: (n.op_type not in COMPUTE, n.op_type))
        kernel = Kernel("")
        if made:
            kernel = Kernel(made[0].op_type, attribute(made[0], "bits", None))
        found.append(Layer(node, old[node.name], kernel))
    return found


def input_name(node: onnx.NodeProto, index: int) -> str:
    """The name of an input; empty where it is omitted."""
    return node.input[index] if index < len(node.input) else ""


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of an attribute, or the default."""
    for given in node.attribute:
        if given.name == name:
            return onnx.helper.get_attribute_value(given)
    return default
