"""Where the table is from: pages of those who make the hardware and the runtimes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A page, or an experiment, which has no address."""

    title: str
    url: str | None = None

    def __str__(self) -> str:
        """The title, and the address where there is one."""
        return self.title if self.url is None else f"{self.title}: {self.url}"


_TRT = "https://docs.nvidia.com/deeplearning/tensorrt"
_RTX = "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest"
_PYTORCH = "https://github.com/pytorch/pytorch/blob/v2.13.0"

# Hardware
CUDA_GPUS = Source("NVIDIA, CUDA GPU Compute Capability", "https://developer.nvidia.com/cuda-gpus")
LEGACY_GPUS = Source(
    "NVIDIA, Legacy CUDA GPU Compute Capability", "https://developer.nvidia.com/cuda-legacy-gpus"
)
TENSOR_CORES = Source(
    "NVIDIA, CUDA Programming Guide, table 33: Input Data Types Supported by Tensor Cores",
    "https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html",
)
MIXED_PRECISION = Source(
    "NVIDIA, Mixed-Precision Programming with CUDA 8 (DP4A, half2)",
    "https://developer.nvidia.com/blog/mixed-precision-programming-cuda-8/",
)
SPARSITY = Source(
    "NVIDIA, Accelerating Inference with Sparsity Using the Ampere Architecture and TensorRT",
    "https://developer.nvidia.com/blog/accelerating-inference-with-sparsity-using-ampere-and-tensorrt",
)
TRANSFORMER_ENGINE = Source(
    "NVIDIA, Transformer Engine, Datatype and hardware support matrix",
    "https://nvidia.github.io/TransformerEngine/support_matrix.html",
)
NO_TENSOR_CORES = Source(
    "CubeCL, arch.rs (TU116 and TU117 report 7.5 and have no tensor cores)",
    "https://docs.rs/cubecl-cpp/0.11.0-pre.4/src/cubecl_cpp/cuda/arch.rs.html",
)
CUDA_13 = Source(
    "NVIDIA, CUDA Toolkit 13.0 Release Notes (no Maxwell, Pascal, Volta)",
    "https://docs.nvidia.com/cuda/archive/13.0.0/cuda-toolkit-release-notes/index.html",
)

# TensorRT
TRT_101 = Source(
    "NVIDIA, TensorRT 10.1 Support Matrix, Hardware and Precision",
    f"{_TRT}/archives/tensorrt-1010/support-matrix/index.html",
)
TRT_10 = Source(
    "NVIDIA, TensorRT 10.16.1 Support Matrix, GPU Architecture and Precision Support",
    f"{_TRT}/10.16.1/getting-started/support-matrix.html",
)
TRT_105 = Source(
    "NVIDIA, TensorRT 10.5.0 Release Notes (Volta removed)",
    f"{_TRT}/latest/getting-started/release-notes-10/10.5.0.html",
)
TRT_108 = Source(
    "NVIDIA, TensorRT 10.8.0 Release Notes (FP4, Blackwell)",
    f"{_TRT}/latest/getting-started/release-notes-10/10.8.0.html",
)
TRT_1012 = Source(
    "NVIDIA, TensorRT 10.12.0 Release Notes (MXFP8)",
    f"{_TRT}/latest/getting-started/release-notes-10/10.12.0.html",
)
TRT_1016 = Source(
    "NVIDIA, TensorRT 10.16.1 Release Notes (Orin by the SBSA build)",
    f"{_TRT}/10.16.1/getting-started/release-notes-10/10.16.1.html",
)
TRT_DRIVE = Source(
    "NVIDIA, DRIVE OS 7.0.3, TensorRT Release Properties (Thor)",
    "https://developer.nvidia.com/docs/drive/drive-os/7.0.3/public/"
    "drive-os-tensorrt-release-notes/release-properties.html",
)
TRT_11 = Source(
    "NVIDIA, TensorRT 11.3.0 Support Matrix, GPU Architecture and Precision Support",
    f"{_TRT}/11.3.0/getting-started/support-matrix.html",
)
TRT_11_NEEDS = Source(
    "NVIDIA, TensorRT 11.2.1 Prerequisites (Turing or later)",
    f"{_TRT}/11.2.1/installing-tensorrt/prerequisites.html",
)
TRT_11_JETSON = Source(
    "NVIDIA, Migrating TensorRT from 10.x to 11.x on Jetson/JetPack (11.4.1)",
    f"{_TRT}/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
)
TRT_115 = Source(
    "NVIDIA, TensorRT 11.5.0 Release Notes (precisions of 10.3)",
    f"{_TRT}/latest/getting-started/release-notes-11/11.5.0.html",
)
TRT_TYPES = Source(
    "NVIDIA, TensorRT 11, Working with Quantized Types (INT4 is weight-only)",
    f"{_TRT}/11.3.0/inference-library/work-with-quantized-types.html",
)
MODELOPT = Source(
    "NVIDIA, Model Optimizer, Support Matrix",
    "https://nvidia.github.io/Model-Optimizer/guides/0_support_matrix.html",
)

# TensorRT-RTX
RTX_MATRIX = Source(
    "NVIDIA, TensorRT-RTX 1.5 Support Matrix",
    f"{_RTX}/getting-started/support-matrix-1/1.5.html",
)
RTX_CPU = Source(
    "NVIDIA, TensorRT-RTX, CPU-Only AOT (targets 7.5, 8.0, 8.6, 8.9, 12.0)",
    f"{_RTX}/inference-library/cpu-engines.html",
)
RTX_TYPES = Source(
    "NVIDIA, TensorRT-RTX, Working with Quantized Types",
    f"{_RTX}/inference-library/work-quantized-types.html",
)
SEEN = Source("seen: TensorRT-RTX 1.7.1 builder, on a CPU")

# Torch-TensorRT, PyTorch
TORCH_TRT = Source(
    "PyTorch, Torch-TensorRT 2.13.0 release notes",
    "https://github.com/pytorch/TensorRT/releases/tag/v2.13.0",
)
TORCH_TRT_QUANT = Source(
    "PyTorch, Torch-TensorRT, Quantization (INT8 / FP8 / FP4)",
    "https://docs.pytorch.org/TensorRT/user_guide/shapes_precision/quantization.html",
)
TORCH_BUILDS = Source(
    "PyTorch 2.13, torch/cuda/__init__.py (what its packages are built for)",
    f"{_PYTORCH}/torch/cuda/__init__.py",
)
TRITON = Source(
    "PyTorch 2.13, torch/_inductor/scheduler.py (GPUTooOldForTriton)",
    f"{_PYTORCH}/torch/_inductor/scheduler.py",
)
TRITON_FP8 = Source(
    "PyTorch 2.13, torch/_inductor/codegen/triton_utils.py (no FP8 in Triton before 8.9)",
    f"{_PYTORCH}/torch/_inductor/codegen/triton_utils.py",
)
TORCH_PLATFORMS = Source(
    "PyTorch 2.13, torch/testing/_internal/common_cuda.py (FP8 from 8.9, MX from 10.0)",
    f"{_PYTORCH}/torch/testing/_internal/common_cuda.py",
)
TORCH_CUDA = Source(
    "PyTorch, CUDA semantics (TF32)", "https://docs.pytorch.org/docs/stable/notes/cuda.html"
)
TORCH_SPARSE = Source(
    "PyTorch, torch.sparse, semi-structured tensors",
    "https://docs.pytorch.org/docs/stable/sparse.html",
)
TORCHAO = Source(
    "PyTorch, torchao, quantization API",
    "https://docs.pytorch.org/ao/main/api_reference/api_ref_quantization.html",
)
TORCHAO_MX = Source(
    "PyTorch, torchao, MXDynamicActivationMXWeightConfig (SM100 or later)",
    "https://docs.pytorch.org/ao/main/api_reference/generated/"
    "torchao.prototype.mx_formats.MXDynamicActivationMXWeightConfig.html",
)
TORCHAO_X86 = Source(
    "PyTorch, torchao, PT2E quantization (X86InductorQuantizer)",
    "https://docs.pytorch.org/ao/stable/pt2e_quantization/index.html",
)

# ONNX Runtime
ORT_CUDA = Source(
    "ONNX Runtime, CUDA Execution Provider",
    "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html",
)
ORT_TRT = Source(
    "ONNX Runtime, TensorRT Execution Provider",
    "https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html",
)
ORT_QUANT = Source(
    "ONNX Runtime, Quantize ONNX models",
    "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
)
OPTIMUM = Source(
    "Hugging Face, Optimum, Accelerated inference on NVIDIA GPUs (no INT8 in the CUDA provider)",
    "https://huggingface.co/docs/optimum/v1.19.0/onnxruntime/usage_guides/gpu",
)
ORT_SEEN = Source("measured: ONNX Runtime 1.32 on a processor with AVX2 and no VNNI")

# Processors
INTEL_SDM = Source(
    "Intel, Software Developer's Manual, volume 2 (VPMADDUBSW, VPDPBUSD, TDPBUSD)",
    "https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html",
)
ONEDNN = Source(
    "oneDNN, Nuances of int8 Computations",
    "https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html",
)
ARM_ARM = Source(
    "Arm, Intrinsics (SADALP, SDOT, SMMLA)",
    "https://developer.arm.com/architectures/instruction-sets/intrinsics/",
)
