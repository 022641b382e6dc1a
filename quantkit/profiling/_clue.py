"""A part of a kernel's name and what it says; the words that the tables share.

Sources of the tables, and what they explain:

- CUTLASS, ``python/cutlass_library/gemm_operation.py`` (``procedural_name``) and
  ``media/docs/cpp/profiler.md``: opcode class, type of the result, letter of the accumulator, shape
  of the instruction, types of the operands, tile.
- PTX ISA, "Matrix multiply-accumulate": which shapes take which types. m8n8k4, m16n8k8, m16n8k16:
  fp16 (8 and 16 also bf16); m16n8k8: tf32; m8n8k16, m16n8k32: int8; m8n8k32, m16n8k64: int4;
  m8n8k4: fp64; warpgroups from sm_90 on.
- NVIDIA PyProf, ``pyprof/prof/tc.py``: words of kernels on tensor cores.
- PyTorch, ``mem_eff_attention/gemm_kernel_utils.h``, and the sources of vLLM, FlashAttention,
  DeepGEMM and Inductor, for their own kernels.

NVIDIA documents no names of cuBLAS, cuDNN, xmma and TensorRT. They are read by the same words; what
is known from traces alone is not ``sure``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar, cast

from quantkit.profiling.kinds import Dtype

T = TypeVar("T")


@dataclass(frozen=True)
class Clue(Generic[T]):
    """A part of a name, and what it says.

    Attributes:
        pattern: the part; its named group is the key where ``value`` is a mapping.
        value: what it says.
        why: what the part means.
        sure: whether documents or sources say so, and not traces alone.
    """

    pattern: re.Pattern[str]
    value: T | Mapping[str, T]
    why: str
    sure: bool = True

    def value_of(self, match: re.Match[str]) -> T:
        """What a match of the pattern says."""
        if isinstance(self.value, Mapping):
            return cast("T", self.value[match[match.lastgroup or 0]])
        return self.value


def clue(pattern: str, value: T | Mapping[str, T], why: str, *, sure: bool = True) -> Clue[T]:
    """A clue, of the pattern as it is written."""
    return Clue(re.compile(pattern), value, why, sure)


def either(words: Mapping[str, object]) -> str:
    """A pattern for any of some words, the longest first."""
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True)))


#: Types as NVIDIA's names write them.
WORDS: Mapping[str, Dtype] = MappingProxyType(
    {
        **dict.fromkeys(("i4", "s4", "u4"), Dtype.INT4),
        **dict.fromkeys(("i8", "s8", "u8", "int8x4", "int8"), Dtype.INT8),
        **dict.fromkeys(("e4m3", "E4m3", "fp8"), Dtype.FP8_E4M3),
        **dict.fromkeys(("e5m2", "E5m2"), Dtype.FP8_E5M2),
        **dict.fromkeys(("bf16", "Bfloat16"), Dtype.BF16),
        **dict.fromkeys(("fp16", "f16", "Fp16"), Dtype.FP16),
        "tf32": Dtype.TF32,
        **dict.fromkeys(("f32", "fp32"), Dtype.FP32),
        **dict.fromkeys(("f64", "fp64"), Dtype.FP64),
    }
)
#: Types as C++ writes them.
CPP: Mapping[str, Dtype] = MappingProxyType(
    {
        **dict.fromkeys(("int8_t", "signed char"), Dtype.INT8),
        **dict.fromkeys(("__nv_fp8_e4m3", "Float8_e4m3fn", "float_e4m3_t"), Dtype.FP8_E4M3),
        **dict.fromkeys(("__nv_fp8_e5m2", "Float8_e5m2", "float_e5m2_t"), Dtype.FP8_E5M2),
        **dict.fromkeys(("__nv_bfloat16", "BFloat16", "bfloat16_t"), Dtype.BF16),
        **dict.fromkeys(("__half2", "__half", "Half", "half_t", "half"), Dtype.FP16),
        **dict.fromkeys(("float", "float2", "float4"), Dtype.FP32),
        **dict.fromkeys(("double", "double2"), Dtype.FP64),
    }
)

#: A type of C++, with or without its namespace.
CPP_TYPE = rf"(?<!\w)(?:[a-z]\w*::)?(?P<t>{either(CPP)})(?!\w)"

OPERANDS = "i8|i4|u8|e4m3|e5m2|bf16|tf32|f16|f32|f64"
_ALL = f"{OPERANDS}|i32"
#: ``..._f16f16_f16f32_f32``: input and output, then operands and accumulators.
XMMA_TYPES = rf"xmma_\w*?_(?:{_ALL})(?:{_ALL})_(?P<t>{OPERANDS})(?:{_ALL})(?![a-z0-9])"

#: Kernels that move values from one layout into another, up to their template's arguments.
MOVES = r"\b\w*(?:[tT]ranspose_|Transpose\w*_kernel|ToNhwc|ToNchw|AddPadding|im2col)\w*"
MEMORY = r"^\[CUDA (?:Unified Memory )?mem(?:cpy|set)|^Mem(?:cpy|set)\b|^memset(?:8|32)?$"
FILLS = r"^\[CUDA memset|^Memset\b|^memset(?:8|32)?$"
