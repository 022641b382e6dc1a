"""What a kernel can be: the unit, the data type and the kind of work, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """What of the GPU or processor did the work."""

    TENSOR_CORES = "tensor-cores"
    CUDA_CORES = "cuda-cores"
    MEMORY = "memory"  # a copy or a fill by the driver, with no kernel of a library
    VNNI = "vnni"  # the processor's products of 8-bit integers, summed in 32 bits
    AMX = "amx"  # the same by tiles
    CPU = "cpu"  # the processor; by which instructions is not told
    UNKNOWN = "unknown"


class Dtype(StrEnum):
    """What was multiplied, or what an element-wise kernel read; never what it was summed in."""

    INT4 = "int4"
    INT8 = "int8"
    FP4 = "fp4"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP16 = "fp16"
    BF16 = "bf16"
    TF32 = "tf32"
    FP32 = "fp32"
    FP64 = "fp64"
    UNKNOWN = "unknown"


class Work(StrEnum):
    """What was done. Softmax is a normalization here."""

    MATMUL = "matmul"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    NORMALIZATION = "normalization"
    POOLING = "pooling"
    REFORMAT = "reformat"
    COPY = "copy"
    FILL = "fill"
    COMMUNICATION = "communication"
    UNKNOWN = "unknown"


class Confidence(StrEnum):
    """How well the name, or a counter, supports the answer.

    ``CERTAIN``: the unit and the type (where one is given) stand in the name, in words that
    documents or open source explain. ``LIKELY``: one of them is what such kernels are known to
    use. ``UNKNOWN``: the name does not tell the unit. ``COUNTERS``: no name, but the hardware's own
    counters told the unit.
    """

    COUNTERS = "counters"
    CERTAIN = "certain"
    LIKELY = "likely"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class KernelKind:
    """What the name of a kernel tells of it.

    Attributes:
        unit: what of the GPU it ran on.
        dtype: what it multiplied, or read.
        family: the library or generator, such as ``cuBLAS``; empty where it is not known.
        work: what it did.
        confidence: of the unit and the type.
        why: which parts of the name told.
    """

    unit: Unit
    dtype: Dtype
    family: str
    work: Work
    confidence: Confidence
    why: str
