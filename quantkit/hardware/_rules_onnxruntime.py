"""ONNX Runtime with its CUDA execution provider."""

from __future__ import annotations

from quantkit.hardware import sources as s
from quantkit.hardware.formats import Format, Runtime, Verdict
from quantkit.hardware.rules import Note, Rule, lacking, since

_CUDA = (Runtime.ONNXRUNTIME_CUDA,)
_TURING = since((7, 5))

RULES = (
    *(
        Rule(
            runtimes=_CUDA,
            formats=(format,),
            chips=lacking(format),
            verdict=Verdict.NO,
            why="{needs}.",
            instead=None,
            sources=evidence,
        )
        for format, evidence in (
            (Format.TF32, (s.TENSOR_CORES,)),
            (Format.BF16, (s.TENSOR_CORES,)),
            (Format.INT4, (s.MODELOPT,)),
            (Format.FP8, (s.MODELOPT, s.TENSOR_CORES)),
            (Format.MXFP8, (s.TENSOR_CORES, s.TRANSFORMER_ENGINE)),
            (Format.NVFP4, (s.MODELOPT, s.TENSOR_CORES)),
            (Format.SPARSE, (s.SPARSITY,)),
        )
    ),
    Rule(
        runtimes=_CUDA,
        formats=tuple(Format),
        chips=since((5, 0), before=(7, 5)),
        verdict=Verdict.UNKNOWN,
        why="ONNX Runtime names no compute capability, and what is built with CUDA 13 has no code "
        "for GPUs before 7.5; {gpu} is {cc}.",
        instead="Use a package built with CUDA 12, and try it.",
        sources=(s.ORT_CUDA, s.CUDA_13),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.FP32,),
        chips=_TURING,
        verdict=Verdict.CUDA_CORE,
        why="No tensor core multiplies fp32.",
        sources=(s.ORT_CUDA,),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.TF32,),
        chips=_TURING,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply tf32, unless the option use_tf32 is off.",
        sources=(s.ORT_CUDA, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.FP16, Format.BF16),
        chips=_TURING,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply {format}, in operators that have a kernel for it.",
        sources=(s.ORT_CUDA, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.INT8,),
        chips=_TURING,
        verdict=Verdict.EMULATED,
        why="The CUDA provider has no integer kernels for Q/DQ: it rounds, and computes in float.",
        instead="Use the TensorRT provider, TensorRT itself, or int8_cpu on the processor.",
        sources=(s.OPTIMUM, s.ORT_QUANT),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.INT4,),
        chips=_TURING,
        verdict=Verdict.WEIGHT_ONLY,
        why="MatMulNBits unpacks int4 weights; products are in fp16 or fp32.",
        sources=(s.MODELOPT, s.ORT_QUANT),
        only="matrix products",
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.FP8,),
        chips=_TURING,
        verdict=Verdict.UNKNOWN,
        why="NVIDIA lists the CUDA provider for fp8, and does not say what products are in.",
        instead="Build the ONNX file with TensorRT.",
        sources=(s.MODELOPT,),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.MXFP8,),
        chips=_TURING,
        verdict=Verdict.NO,
        why="ONNX has no operator for mxfp8; those of TensorRT are its own.",
        instead=None,
        sources=(s.ORT_QUANT, s.TRT_1012),
    ),
    Rule(
        runtimes=_CUDA,
        formats=(Format.NVFP4, Format.SPARSE),
        chips=_TURING,
        verdict=Verdict.UNKNOWN,
        why="ONNX Runtime's documents do not tell of {format} in the CUDA provider.",
        instead="Build the ONNX file with TensorRT.",
        sources=(s.ORT_CUDA, s.ORT_QUANT),
    ),
)

NOTES: tuple[Note, ...] = ()
