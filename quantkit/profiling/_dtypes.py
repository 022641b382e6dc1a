"""What a kernel multiplies or reads, by parts of its name. The first that matches counts."""

from __future__ import annotations

from quantkit.profiling._clue import (
    CPP,
    CPP_TYPE,
    MOVES,
    OPERANDS,
    WORDS,
    XMMA_TYPES,
    Clue,
    clue,
    either,
)
from quantkit.profiling.kinds import Dtype

_WORD = either(WORDS)
_OPERAND = "the type of the operands"
_BOTH_SIDES = rf"{MOVES}<|\bgenericReformat::\w+<|winograd\w*<"

DTYPES: tuple[Clue[Dtype], ...] = (
    clue(
        r"^nvjet_(?:sm\d+_)?(?P<t>qq|h|t)[a-z]*_",
        {"qq": Dtype.FP8_E4M3, "h": Dtype.FP16, "t": Dtype.BF16},
        "letters of the operands, then of the sum and the result",
        sure=False,
    ),
    clue(XMMA_TYPES, WORDS, "types of input and result, then of operands and sum"),
    clue(r"xmma_\w*?_(?P<t>f32)f32_f32_f32", WORDS, "types of input and result"),
    clue(rf"xmma_\w+?_first_layer_(?P<t>{OPERANDS})", WORDS, "the type of the input", sure=False),
    clue(r"u?e4m3xf4|u?e4m3xe2m1", Dtype.FP4, "fp4 with scales in e4m3"),
    clue(rf"^bmm_\w+?_(?P<t>{_WORD})(?P=t)_", WORDS, "both operands", sure=False),
    clue(
        r"\bfmhaSm\w+_Q(?P<t>E4m3|Bfloat16|Fp16)Kv(?P=t)", WORDS, "query, key and value", sure=False
    ),
    clue(r"\bfmha_cutlass[FB]_(?P<t>bf16|f16)_", WORDS, _OPERAND),
    clue(
        r"\bfmha_cutlass[FB]_f32\w*_sm[89]\d",
        Dtype.TF32,
        "PyTorch's gemm_kernel_utils.h: OpMultiplyAddFastF32, three products in tf32",
    ),
    clue(r"\bfmha_cutlass[FB]_(?P<t>f32)_", WORDS, _OPERAND),
    # Values in one type, multiplied in another.
    clue(
        r"_scudnn_fp16_|convolve_sgemm<",
        Dtype.FP32,
        "s, single precision, whatever the values are kept in",
        sure=False,
    ),
    # CUTLASS's order: result, accumulator and shape, operands.
    clue(
        r"(?:gemm|cudnn|fprop|dgrad|wgrad)(?:_(?:relu|optimized|analytic|block_scaled))*"
        rf"_(?P<t>{_WORD})_",
        WORDS,
        _OPERAND,
    ),
    clue(r"_fprop_(?P<t>f16|bf16)(?:f16|bf16)f32", WORDS, _OPERAND),
    clue(r"_s1688(?:tf32)?gemm_\d", Dtype.TF32, "fp32 values, which m16n8k8 takes as tf32"),
    clue(r"_h(?:884|1688|16816|161616)[a-z]", Dtype.FP16, "h, half precision, the sum too"),
    clue(r"_d884gemm", Dtype.FP64, "d, double precision"),
    clue(r"_i(?:16864|8832)", Dtype.INT4, "a shape that takes int4"),
    clue(r"_i(?:8816|16816|16832|161616|gemm|cudnn)", Dtype.INT8, "i, integers", sure=False),
    clue(
        r"_(?P<t>bf16|f16|fp16)_s\d{3,6}[a-z]",
        WORDS,
        "the type of the result, mostly the operands' too",
        sure=False,
    ),
    clue(
        r"_g?(?P<t>s|c|d|z|h)(?:gemm|cudnn)_",
        {
            **dict.fromkeys("sc", Dtype.FP32),
            **dict.fromkeys("dz", Dtype.FP64),
            "h": Dtype.FP16,
        },
        "s single, d double, h half; c and z the same for complex numbers",
    ),
    # Libraries' own words.
    clue(r"\bdeep_gemm::\w*?_(?P<t>fp8|bf16)_gemm", WORDS, _OPERAND),
    clue(r"^nccl\w+_(?:Sum|Prod|Max|Min)_(?P<t>bf16|f16|f32|f64)_", WORDS, "what is added"),
    clue(r"\bfmha_v2_\w*?attention_(?P<t>fp16|bf16|e4m3|int8)_", WORDS, _OPERAND),
    clue(r"_singleread_(?P<t>fp16)", WORDS, "the type of the values"),
    # Arguments of templates. Which side is read and which written is not the same everywhere.
    clue(rf"(?:{_BOTH_SIDES}){CPP_TYPE}, (?:[a-z]\w*::)?(?P=t)\b", CPP, "one type on both sides"),
    clue(r"\bim2col\w*<(?P<t>float|__half)", CPP, "the type of the values"),
    clue(_BOTH_SIDES, Dtype.UNKNOWN, "two types, or one of two"),
    clue(CPP_TYPE, CPP, "the first type among the arguments"),
)
