"""The kernels of an engine, and the format in which each multiplies.

They are the witness of what runs in low precision: an engine can hold int8 weights, or be small,
and still multiply in float.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: The SDKs' words for a number format, in quantkit's.
FORMATS: Final = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "FP8": "fp8",
    "Int4": "int4",
    "FP4": "fp4",
    "FP4E2M1": "fp4",
}
LOW: Final = frozenset({"int8", "fp8", "int4", "fp4"})

#: The format of a layer whose kernel the SDK does not describe.
UNTOLD: Final = "none told"

#: Types of layers that multiply and sum; other kernels that name a node are its prologue or
#: epilogue. ``correlation``, ``gemm`` and ``deconv`` are TensorRT-RTX's and TensorRT 10's and
#: later; ``CaskConvolution``, ``CaskGemmMatrixMultiply`` and their like TensorRT 8's to 10's.
_PRODUCTS = re.compile(r"correlation|deconv|conv(?!ert)|gemm|matrixmul|fullyconnected", re.I)
#: Fused kernels have generated names; other names hold those of ONNX nodes, and prove nothing.
_FUSED_PRODUCT = re.compile(r"^__myl_\w*(Fc|Corr|Conv|Deco)|^_gemm_")
_ATTENTION = re.compile(r"^_gemm_mha_")
#: Without a product of its own, a node is summed in a generated kernel (a matrix times a vector).
_SUM = re.compile(r"^__myl_\w*Sum")


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of a kernel: name, sizes as written, and format in quantkit's words.

    The format is empty where the SDK does not tell it.
    """

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
        weights: the format of its weights, where the SDK tells it apart from ``constants``.
        operands: the format that the name of its tactic says it multiplies, if it does.
        opaque: a region of many kernels, of which the SDK tells none.
    """

    name: str
    layer_type: str
    inputs: tuple[TensorInfo, ...]
    constants: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: tuple[str, ...]
    weights: str = ""
    operands: str = ""
    opaque: bool = False

    @property
    def is_product(self) -> bool:
        """Whether it multiplies and sums, as a convolution or a matrix product does."""
        return self.has_product_type or bool(_FUSED_PRODUCT.search(self.name))

    @property
    def has_product_type(self) -> bool:
        """Whether its type says so."""
        return bool(_PRODUCTS.search(self.layer_type))

    @property
    def stored(self) -> list[str]:
        """The formats of its weights; a constant of one dimension is a bias or a scale."""
        formats = [tensor.format for tensor in self.constants if len(tensor.dimensions) > 1]
        return [*formats, self.weights] if self.weights else formats


def kernel_for(kernels: Iterable[Kernel], node: str) -> Kernel | None:
    """The kernel that computes an ONNX node: its product, not its prologue or epilogue."""
    covering = [kernel for kernel in kernels if node in kernel.nodes]
    ranks = (
        lambda kernel: kernel.has_product_type,
        lambda kernel: kernel.is_product,
        lambda kernel: bool(_SUM.search(kernel.name)),
    )
    for rank in ranks:
        for kernel in covering:
            if rank(kernel):
                return kernel
    return covering[0] if covering else None


def precision(kernel: Kernel, *, quantized_weight: bool, float_weight: bool = False) -> str:
    """The format in which a kernel multiplies; ``UNTOLD`` where nothing tells.

    A product runs in the format of its first operand. Where that is float and the weights are
    stored in fewer bits, they are dequantized inside the kernel: ``int8 weights``.

    Args:
        kernel: from ``kernel_for``.
        quantized_weight: the node's weight comes from DequantizeLinear. A fused kernel may hold
            the small weights of one node and the float weights of another.
        float_weight: the node's weight is in float: a kernel that reads int8 beside it converts
            what it reads, and multiplies in float.
    """
    formats, stored = [tensor.format for tensor in kernel.inputs], kernel.stored
    if kernel.opaque:
        return UNTOLD
    if not any(formats):  # engines of dynamic shapes do not tell them in TensorRT 8 to 10
        weights = kernel.weights if kernel.is_product else ""
        return kernel.operands or weights or UNTOLD
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
