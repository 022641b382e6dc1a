"""Whose kernel it is, and what it does, by parts of its name. The first that matches counts."""

from __future__ import annotations

from quantkit.profiling._clue import FILLS, MEMORY, MOVES, Clue, clue
from quantkit.profiling.kinds import Work

_GPU = "maxwell|pascal|volta|turing|ampere|hopper"

FAMILIES: tuple[Clue[str], ...] = (
    clue(MEMORY, "memory", "a copy or fill of the driver"),
    clue(r"^nccl\w*Kernel", "NCCL", "NCCL's prefix"),
    clue(
        r"^trt_|_kernel_trt\b|\bgenericReformat::|\bcu(?:Int8|Eltwise|SliceLayer)::"
        r"|^generatedNativePointwise$",
        "TensorRT",
        "TensorRT's own",
    ),
    clue(r"^__myl|_myl\d+_\d+$", "Myelin", "TensorRT's compiler Myelin"),
    clue(
        r"cudnn|\b(?:nchwTo|nhwcTo|nchwAdd)\w+Kernel|\bop_(?:generic_)?tensor_kernel"
        r"|\bim2col4d_kernel|_c1_k1_nhwc",
        "cuDNN",
        "cuDNN's name or one of its kernels",
    ),
    clue(
        r"\bflash_(?:fwd|bwd)_|\b(?:pytorch_)?flash::|\bFlashAttn",
        "FlashAttention",
        "FlashAttention's namespace",
    ),
    clue(r"\bdeep_gemm::", "DeepGEMM", "DeepGEMM's namespace"),
    clue(
        r"\bfmha_cutlass|\bcutlass_(?:\d|simt|tensorop|wmma)|\bcutlass\dx_"
        r"|\bcutlass::(?:Kernel|device_kernel)",
        "CUTLASS",
        "CUTLASS's name for a kernel",
    ),
    clue(
        r"\bfmha_v2_|\bfmhaSm\d+|^bmm_\w+_t\d+x\d+x\d+|\btensorrt_llm::",
        "TensorRT-LLM",
        "a kernel of TensorRT-LLM",
    ),
    clue(r"\bvllm::|\bmarlin(?:_moe_wna16)?::Marlin", "vLLM", "vLLM's namespace"),
    clue(r"\bflashinfer::", "FlashInfer", "FlashInfer's namespace"),
    clue(r"\bcublasLt::", "cuBLASLt", "cuBLASLt's namespace"),
    clue(
        rf"cublas|^nvjet_|^(?:{_GPU})_\w*gemm_|\bgemvx::kernel"
        r"|\b(?:gemv\w+|gemmSN_\w+|gemmk1_|splitKreduce_)kernel",
        "cuBLAS",
        "one of cuBLAS's kernels",
    ),
    clue(r"^sm\d+_xmma_", "xmma", "NVIDIA's xmma, in cuBLAS, cuDNN and TensorRT alike"),
    clue(r"^triton_", "Triton", "made by Inductor or XLA with Triton"),
    clue(r"\bk(?:Quantize|Dequantize)Blockwise", "bitsandbytes", "a kernel of bitsandbytes"),
    clue(
        r"\bat::|\bcunn_|\bsoftmax_warp_(?:for|back)ward|\b(?:vectorized|unrolled|index)_elementwise"
        r"_kernel\b|\belementwise_kernel_with_index|\bCatArrayBatchedCopy",
        "PyTorch",
        "ATen's own kernels",
    ),
    clue(r"\bcub::|\bthrust::", "CUB", "CUB or Thrust"),
)

WORKS: tuple[Clue[Work], ...] = (
    clue(FILLS, Work.FILL, "a fill"),
    clue(MEMORY, Work.COPY, "a copy"),
    clue(r"^nccl", Work.COMMUNICATION, "between GPUs"),
    clue(
        r"\bflash_(?:fwd|bwd)|\bfmha|_flash_[fb]prop|sdpa|FlashAttn|flex_attention",
        Work.ATTENTION,
        "attention",
    ),
    clue(rf"\bgenericReformat::|\bcuInt8::nchw|{MOVES}<", Work.REFORMAT, "another layout"),
    clue(r"_reduction_kernel|\breduce_wgrad|splitKreduce", Work.REDUCTION, "a sum of parts"),
    clue(
        r"fprop|[dw]grad|implicit_gemm|[0-9sdih]cudnn_|convolve|winograd|conv_depthwise"
        r"|conv2d|_convolution|\bconv::",
        Work.CONVOLUTION,
        "a convolution",
    ),
    clue(r"^triton_(?:poi|for)_", Work.ELEMENTWISE, "Inductor's point-wise kernels"),
    clue(
        r"batch_norm|\bbn_(?:fw|bw)|layer_?norm|LayerNorm|rms_norm|RMSNorm|GammaBeta|[sS]oft[mM]ax",
        Work.NORMALIZATION,
        "a normalization",
    ),
    clue(r"max_?pool|MaxPool|average_pool|avg_pool|pooling", Work.POOLING, "a pooling"),
    clue(
        r"direct_copy|copy_device_to_device|copy_kernel|CatArrayBatched|reshape_and_cache|_Mov\b",
        Work.COPY,
        "a copy",
    ),
    clue(r"\breduce_kernel|^triton_(?:red|per)_|nll_loss", Work.REDUCTION, "a reduction"),
    clue(
        r"elementwise|op_(?:generic_)?tensor|multi_tensor_apply|\bact_and_mul|rotary|cuEltwise"
        r"|generatedNativePointwise|\bk(?:Quant|Dequant)",
        Work.ELEMENTWISE,
        "value by value",
    ),
    clue(
        r"gemm|gemv|^nvjet_|^bmm_|::Marlin\b|^triton_tem_\w*mm|^__myl_\w*Fc|Gemm_|MatMul",
        Work.MATMUL,
        "a matrix product",
    ),
    clue(r"^__myl_", Work.ELEMENTWISE, "fused operators, none of them a product"),
)
