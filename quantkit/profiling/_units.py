"""What a kernel runs on, by parts of its name. The first that matches counts."""

from __future__ import annotations

from quantkit.profiling._clue import MEMORY, MOVES, OPERANDS, XMMA_TYPES, Clue, clue
from quantkit.profiling.kinds import Unit

_TENSOR, _CUDA = Unit.TENSOR_CORES, Unit.CUDA_CORES
_NO_PRODUCT = "it multiplies no matrices, which is all that tensor cores do"
_SHAPES = "884|1688|16816|16832|16864|8816|8832|161616"
_GEMM_UTILS = "PyTorch's gemm_kernel_utils.h"

UNITS: tuple[Clue[Unit], ...] = (
    clue(MEMORY, Unit.MEMORY, "a copy or fill of the driver"),
    # Words that say it.
    clue(r"(?<![a-z])simt_", _CUDA, "CUTLASS's opcode class of CUDA cores"),
    clue(r"_ffma_", _CUDA, "the instruction FFMA"),
    clue(
        r"int8x4|_igemm_",
        _CUDA,
        "DP4A on four int8 in a word, and no shape of a matrix instruction",
        sure=False,
    ),
    clue(r"^(?:trt_)?(?:maxwell|pascal)_|^sm[56]\d_", _CUDA, "for chips without tensor cores"),
    clue(
        r"tensor_?op(?![a-z])|(?<![a-z])(?:[hidq]mma|wmma|w?gmma|qgmma|UMMA)(?![a-z])",
        _TENSOR,
        "a matrix instruction, or CUTLASS's opcode class of them",
    ),
    clue(
        rf"(?:^|[_<:])[hsidcz](?:{_SHAPES})(?:tf32)?(?=[a-z.…]|$)",
        _TENSOR,
        "accumulator and shape of a matrix instruction",
    ),
    clue(r"_tensor\d+x\d+x\d+", _TENSOR, "the shape of a matrix instruction"),
    clue(
        r"_warpgroupsize\d", _TENSOR, "warpgroups, which only matrix instructions of sm_90 work in"
    ),
    # Libraries with kernels for one unit.
    clue(r"\bdeep_gemm::\w*gemm", _TENSOR, "DeepGEMM has products on tensor cores alone"),
    clue(
        r"\bflash_bwd_(?:dot_do_o|convert)\w*|\bflash_fwd_\w*combine\w*",
        _CUDA,
        "a step beside FlashAttention's products",
        sure=False,
    ),
    clue(
        r"\bflash_(?:fwd|bwd)_\w*kernel|\bFlashAttn(?:Fwd|Bwd)",
        _TENSOR,
        "FlashAttention multiplies 16 bits or fewer, on tensor cores",
    ),
    clue(
        r"\bfmha_cutlass[FB]_(?:b?f16\w*_sm[789]\d|f32\w*_sm[89]\d)",
        _TENSOR,
        f"{_GEMM_UTILS}: OpClassTensorOp, from sm80 on for fp32 too",
    ),
    clue(
        r"\bfmha_cutlass[FB]_f32\w*_sm[567]\d",
        _CUDA,
        f"{_GEMM_UTILS}: OpClassSimt for fp32 before sm80",
    ),
    clue(r"^nvjet_", _TENSOR, "products of cuBLAS from sm_90 on", sure=False),
    clue(
        r"\bfmha_v2_|\bfmhaSm\d+|^bmm_|\bcutlass_3x_gemm|::Marlin\b|(?<![a-z0-9])m\d+n\d+k\d+",
        _TENSOR,
        "written for tensor cores",
        sure=False,
    ),
    # Products without a matrix instruction in the name.
    clue(
        r"winograd",
        _CUDA,
        "Winograd's transforms, and no shape of a matrix instruction",
        sure=False,
    ),
    clue(
        r"_g?[scdzh](?:gemm|cudnn)_",
        _CUDA,
        "one letter for FFMA math, and no shape of a matrix instruction",
    ),
    clue(
        r"\b(?:im|ex)plicit_convolve_\wgemm|\b[wd]grad(?:2d)?_(?:alg\d|engine)",
        _CUDA,
        "kernels of cuDNN from before tensor cores",
        sure=False,
    ),
    clue(r"xmma_\w*depthwise", _CUDA, "depthwise: one product a channel", sure=False),
    clue(
        XMMA_TYPES,
        {word: _CUDA if word == "f32" else _TENSOR for word in OPERANDS.split("|")},
        "operands that xmma multiplies there; the instruction is not in the name",
        sure=False,
    ),
    clue(
        r"xmma_\w+_image_first_layer_f16", _TENSOR, "PyProf counts it to tensor cores", sure=False
    ),
    clue(
        r"^triton_(?:tem|mm|gemm)_",
        _TENSOR,
        "Triton's dot: tensor cores, unless it is in full fp32",
        sure=False,
    ),
    clue(
        r"\bgemv|\bgemmSN_|\bgemmk1_", _CUDA, "a product with a vector, or nearly one", sure=False
    ),
    # No products.
    clue(
        rf"{MOVES}<|\bsplitKreduce_kernel|\bgenericReformat::|\bcu(?:Int8|Eltwise|SliceLayer)::"
        r"|^generatedNative|\bbn_(?:fw|bw)_|\bsoftmax_fw|\bop_(?:generic_)?tensor_|_reduction_kernel"
        r"|\breduce_wgrad",
        _CUDA,
        _NO_PRODUCT,
    ),
    clue(
        r"\bat::|\bcunn_|softmax_warp_|elementwise_kernel|\bCatArray|\bcub::|\bthrust::",
        _CUDA,
        _NO_PRODUCT,
    ),
    clue(
        r"\bvllm::(?:\w*act|fused_add|rms|rotary|reshape)|\bflashinfer::norm|\bk(?:Deq|Q)uantizeB",
        _CUDA,
        _NO_PRODUCT,
        sure=False,
    ),
    clue(r"^triton_(?:poi|for|red|per)_", _CUDA, "Inductor's kernels without a dot", sure=False),
    clue(r"^nccl", _CUDA, "NCCL adds and moves on the SMs", sure=False),
    clue(
        r"^__myl_(?!\w*(?:Fc|Dot|Conv|Gemm|MatM))",
        _CUDA,
        "fused operators, none of them a product",
        sure=False,
    ),
)
