"""Reads the list of kernels that the TensorRT-RTX builder logs, the message ``Layers:``.

The list exists when the profiling verbosity is DETAILED and the logger takes VERBOSE messages.
It names for each kernel the tensors with their formats and the ONNX nodes that it computes, so
it is the witness of what runs in low precision: an engine can hold int8 weights, or be small,
and still multiply in float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: The builder's words for a number format, in quantkit's.
FORMATS = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "FP8": "fp8",
    "Int4": "int4",
    "FP4": "fp4",
}
LOW = frozenset({"int8", "fp8", "int4", "fp4"})

#: Layer types that multiply and sum; other kernels that name a node are its prologue or epilogue.
_PRODUCTS = frozenset({"correlation", "deconv", "gemm"})
#: Fused kernels have generated names; other names hold those of ONNX nodes, and prove nothing.
_FUSED_PRODUCT = re.compile(r"^__myl_\w*(Fc|Corr|Conv|Deco)|^_gemm_")
_ATTENTION = re.compile(r"^_gemm_mha_")
#: Without a product of its own, a node is summed in a generated kernel (a matrix times a vector).
_SUM = re.compile(r"^__myl_\w*Sum")

_HEAD = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>.*?), Inputs: \[")
_LISTS = re.compile(r", Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: \[(.*?)\], TacticName: ")
_TENSOR = re.compile(r"Name: (.*?), Dimensions: \[([^\]]*)\].*?, Datatype: (.*?), Format: ")
#: Entries are parted by ASCII unit and record separators (which ``str.splitlines`` cuts at).
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\s*$)")


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of a kernel: name, sizes as written, and format in quantkit's words."""

    name: str
    dimensions: tuple[str, ...]
    format: str


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of the engine.

    Attributes:
        name: the builder's name.
        layer_type: ``correlation`` (convolution), ``gemm``, ``runtime_fusion``, ``kgen`` …
        inputs: the tensors that it reads, the first operand first.
        constants: weights and scales.
        outputs: the tensors that it writes.
        nodes: the names of the ONNX nodes it computes, or helps to compute.
    """

    name: str
    layer_type: str
    inputs: tuple[TensorInfo, ...]
    constants: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """Whether it multiplies and sums, as a convolution or a matrix product does."""
        return self.layer_type in _PRODUCTS or bool(_FUSED_PRODUCT.search(self.name))


def parse_layers(message: str) -> tuple[Kernel, ...]:
    r"""The kernels of a ``Layers:`` message, in execution order.

    Example:
        >>> line = (
        ...     "Name: conv1_myl0_1, LayerType: correlation, Inputs: [ { Name: x, Dimensions: "
        ...     "[1,8,4,4], Strides: [], Datatype: Int8, Format: (NHWC) }], Constants: [], "
        ...     "Outputs: [], TacticName: , StreamId: 0, Metadata: [ONNX Layer: conv1]"
        ... )
        >>> kernel, = parse_layers("Layers:\n" + line)
        >>> kernel.nodes, kernel.inputs[0].format
        (('conv1',), 'int8')
    """
    return tuple(
        kernel for line in message.split("\n") if (kernel := _parse_line(line)) is not None
    )


def _parse_line(line: str) -> Kernel | None:
    head, lists = _HEAD.match(line), _LISTS.search(line)
    if head is None or lists is None:
        return None  # the heading, and the tables after the list
    inputs, constants, outputs = (_tensors(text) for text in lists.groups())
    metadata = line[line.rfind(", Metadata: ") :]
    return Kernel(
        name=head["name"],
        layer_type=head["type"],
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        nodes=tuple(dict.fromkeys(_METADATA.findall(metadata))),
    )


def _tensors(text: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            name=name,
            dimensions=tuple(size.strip() for size in sizes.split(",")),
            format=FORMATS.get(word, word.lower()),
        )
        for name, sizes, word in _TENSOR.findall(text)
    )


def kernel_for(kernels: Iterable[Kernel], node: str) -> Kernel | None:
    """The kernel that computes an ONNX node: its product, not its prologue or epilogue."""
    covering = [kernel for kernel in kernels if node in kernel.nodes]
    ranks = (
        lambda kernel: kernel.layer_type in _PRODUCTS,
        lambda kernel: kernel.is_product,
        lambda kernel: bool(_SUM.search(kernel.name)),
    )
    for rank in ranks:
        for kernel in covering:
            if rank(kernel):
                return kernel
    return covering[0] if covering else None


def precision(kernel: Kernel, *, quantized_weight: bool, float_weight: bool = False) -> str:
    """The format in which a kernel multiplies.

    A product runs in the format of its first operand. Where that is float and the weights are
    stored in fewer bits, they are dequantized inside the kernel: ``int8 weights``.

    Args:
        kernel: from ``kernel_for``.
        quantized_weight: the node's weight comes from DequantizeLinear. A fused kernel may hold
            the small weights of one node and the float weights of another.
        float_weight: the node's weight is in float: a kernel that reads int8 beside it converts
            what it reads, and multiplies in float.
    """
    formats = [tensor.format for tensor in kernel.inputs]
    stored = [tensor.format for tensor in kernel.constants if len(tensor.dimensions) > 1]
    low = [name for name in formats if name in LOW]
    if kernel.is_product and low and not float_weight:
        if _ATTENTION.search(kernel.name):
            if len(low) >= 3:  # queries, keys and values; a mask may be float
                return low[0]
        elif formats[0] in LOW:
            return formats[0]
    if kernel.is_product and quantized_weight:
        for name in stored + formats[1:]:
            if name in LOW:
                return f"{name} weights"
    every = formats + [tensor.format for tensor in kernel.outputs] + stored
    return next((name for name in every if name.startswith(("float", "bfloat"))), "float32")
