"""TensorRT 10 and 11, and what is built on them: Torch-TensorRT, a provider of ONNX Runtime.

The matrices of TensorRT 10.16 and 11 are interactive pages: what is said here follows from the
matrix of 10.1, from release notes, and from which types the tensor cores take.
"""

from __future__ import annotations

from quantkit.hardware import sources as s
from quantkit.hardware.formats import Format, Runtime, Verdict
from quantkit.hardware.rules import EVERY_CHIP, Note, Rule, lacking, since

_T10, _T11, _TORCH, _ORT = (
    Runtime.TENSORRT_10,
    Runtime.TENSORRT_11,
    Runtime.TORCH_TENSORRT,
    Runtime.ONNXRUNTIME_TENSORRT,
)
_ALL = (_T10, _T11, _TORCH, _ORT)
_FORMATS = tuple(Format)
_TURING = since((7, 5))

_TOO_OLD = (
    Rule(
        runtimes=(_T10,),
        formats=_FORMATS,
        chips=since((5, 0), before=(7, 0)),
        verdict=Verdict.NO,
        why="TensorRT 10 is built for compute capability 7.0 and later; {gpu} is {cc}.",
        instead="Use TensorRT 8.5 or earlier.",
        sources=(s.TRT_101,),
    ),
    Rule(
        runtimes=(_T11, _TORCH),
        formats=_FORMATS,
        chips=since((5, 0), before=(7, 5)),
        verdict=Verdict.NO,
        why="{runtime} needs compute capability 7.5 (Turing) or later; {gpu} is {cc}.",
        instead="Use an older TensorRT, or another GPU.",
        sources=(s.TRT_11_NEEDS, s.TORCH_TRT),
    ),
    Rule(
        runtimes=(_ORT,),
        formats=_FORMATS,
        chips=since((5, 0), before=(7, 5)),
        verdict=Verdict.NO,
        why="ONNX Runtime is built with TensorRT 10.9, which needs compute capability 7.5 (Turing) "
        "or later; {gpu} is {cc}.",
        instead="Use an older ONNX Runtime, or another GPU.",
        sources=(s.ORT_TRT, s.TRT_105),
    ),
)

_LACKING = tuple(
    Rule(
        runtimes=_ALL,
        formats=(format,),
        chips=lacking(format),
        verdict=Verdict.NO,
        why="{needs}.",
        instead=None,
        sources=evidence,
    )
    for format, evidence in (
        (Format.TF32, (s.TENSOR_CORES, s.TRT_101)),
        (Format.BF16, (s.TENSOR_CORES, s.TRT_101)),
        (Format.FP8, (s.TENSOR_CORES, s.TRT_101)),
        (Format.NVFP4, (s.TENSOR_CORES, s.TRT_108)),
        (Format.SPARSE, (s.SPARSITY,)),
    )
)

_XAVIER = (
    Rule(
        runtimes=(_T10,),
        formats=_FORMATS,
        chips=((7, 2),),
        verdict=Verdict.UNKNOWN,
        why="The notes of TensorRT 10 name Jetson from Orin (8.7) on, and {gpu} is {cc}.",
        instead="Use the TensorRT 8 of its JetPack.",
        sources=(s.TRT_101,),
    ),
)

_FLOATS = (
    Rule(
        runtimes=_ALL,
        formats=(Format.FP32,),
        chips=EVERY_CHIP,
        verdict=Verdict.CUDA_CORE,
        why="No tensor core multiplies fp32.",
        sources=(s.TRT_101,),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.FP16,),
        chips=EVERY_CHIP,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply fp16.",
        sources=(s.TRT_101, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.TF32, Format.BF16),
        chips=since((8, 0)),
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply {format}.",
        sources=(s.TRT_101, s.TENSOR_CORES),
    ),
)

_INTEGERS = (
    Rule(
        runtimes=(_T10,),
        formats=(Format.INT8,),
        chips=((7, 0),),
        verdict=Verdict.CUDA_CORE,
        why="It runs, and no tensor core of {gpu} multiplies int8: four products an instruction.",
        instead="Use fp16, which has tensor cores.",
        sources=(s.TRT_101, s.MIXED_PRECISION),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.INT8,),
        chips=_TURING,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply int8, from Q/DQ (TensorRT 10 also by its calibrator).",
        sources=(s.TRT_101, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=(_T10,),
        formats=(Format.INT4,),
        chips=((7, 0),),
        verdict=Verdict.UNKNOWN,
        why="NVIDIA's documents name INT4 weights for Ampere (8.0) and later; {gpu} is {cc}.",
        instead="Use fp16.",
        sources=(s.MODELOPT,),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.INT4,),
        chips=((7, 5),),
        verdict=Verdict.NO,
        why="{needs}.",
        instead=None,
        sources=(s.MODELOPT,),
    ),
    Rule(
        runtimes=(_TORCH,),
        formats=(Format.INT4,),
        chips=since((8, 0)),
        verdict=Verdict.UNKNOWN,
        why="The guide of Torch-TensorRT names int8, fp8 and fp4, not int4.",
        instead="Build the ONNX file with TensorRT, which takes int4 weights.",
        sources=(s.TORCH_TRT_QUANT,),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.INT4,),
        chips=since((8, 0)),
        verdict=Verdict.WEIGHT_ONLY,
        why="TensorRT has int4 for weights alone; products are in fp16 or bf16.",
        sources=(s.TRT_TYPES, s.MODELOPT),
    ),
)

_NARROW_FLOATS = (
    Rule(
        runtimes=(_TORCH,),
        formats=(Format.FP8,),
        chips=((8, 9),),
        verdict=Verdict.TENSOR_CORE,
        why="The guide of Torch-TensorRT asks for Hopper; TensorRT itself has fp8 on Ada.",
        sources=(s.TORCH_TRT_QUANT, s.TENSOR_CORES, s.TRT_101),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.FP8,),
        chips=since((8, 9)),
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply fp8.",
        sources=(s.TENSOR_CORES, s.TRT_101, s.MODELOPT),
    ),
    Rule(
        runtimes=(_TORCH,),
        formats=(Format.MXFP8,),
        chips=since((8, 9)),
        verdict=Verdict.UNKNOWN,
        why="The guide of Torch-TensorRT names int8, fp8 and fp4, not mxfp8.",
        instead="Use fp8.",
        sources=(s.TORCH_TRT_QUANT,),
    ),
    Rule(
        runtimes=(_T10, _T11),
        formats=(Format.MXFP8,),
        chips=((10, 0), (10, 3)),
        verdict=Verdict.TENSOR_CORE,
        why="TensorRT has mxfp8 since 10.12, and the tensor cores read its scales. That both meet "
        "is concluded, not written.",
        sources=(s.TRT_1012, s.TRANSFORMER_ENGINE),
    ),
    Rule(
        runtimes=(_T10, _T11),
        formats=(Format.MXFP8,),
        chips=since((8, 9)),
        verdict=Verdict.UNKNOWN,
        why="TensorRT has mxfp8 since 10.12, and does not say for which GPUs.",
        instead="Use fp8.",
        sources=(s.TRT_1012, s.TRANSFORMER_ENGINE),
    ),
    Rule(
        runtimes=(_ORT,),
        formats=(Format.MXFP8,),
        chips=since((10, 0)),
        verdict=Verdict.NO,
        why="ONNX Runtime is built with TensorRT 10.9, and mxfp8 came with 10.12.",
        instead="Use fp8.",
        sources=(s.ORT_TRT, s.TRT_1012),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.MXFP8,),
        chips=lacking(Format.MXFP8),
        verdict=Verdict.NO,
        why="{needs}.",
        instead=None,
        sources=(s.TENSOR_CORES, s.TRANSFORMER_ENGINE),
    ),
    Rule(
        runtimes=(_ORT,),
        formats=(Format.NVFP4,),
        chips=since((10, 0)),
        verdict=Verdict.UNKNOWN,
        why="TensorRT 10.9 has fp4, and ONNX Runtime does not say whether it hands it over.",
        instead="Build the ONNX file with TensorRT.",
        sources=(s.ORT_TRT, s.TRT_108),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.NVFP4,),
        chips=since((10, 0)),
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply fp4, since TensorRT 10.8.",
        sources=(s.TRT_108, s.TENSOR_CORES, s.TORCH_TRT_QUANT),
    ),
    Rule(
        runtimes=_ALL,
        formats=(Format.SPARSE,),
        chips=since((8, 0)),
        verdict=Verdict.TENSOR_CORE,
        why="Sparse tensor cores skip the zeros, if sparse weights are allowed (SPARSE_WEIGHTS, "
        "sparse_weights, trt_sparsity_enable).",
        sources=(s.SPARSITY, s.ORT_TRT),
    ),
)

RULES = _TOO_OLD + _LACKING + _XAVIER + _FLOATS + _INTEGERS + _NARROW_FLOATS

NOTES = (
    Note(
        runtimes=(_T10,),
        chips=((7, 0),),
        text="TensorRT 10.4 is the last with Volta.",
        sources=(s.TRT_105,),
    ),
    Note(
        runtimes=(_T10,),
        chips=((8, 7),),
        text="On Orin it comes with JetPack 6, and from 10.16.1 on by the SBSA build.",
        sources=(s.TRT_1016,),
    ),
    Note(
        runtimes=(_T10,),
        chips=((11, 0),),
        text="NVIDIA's list of precisions for Thor is that of DRIVE OS, where it was 10.1.",
        sources=(s.TRT_DRIVE,),
    ),
    Note(
        runtimes=(_T11,),
        chips=((8, 7), (11, 0)),
        text="On Jetson from TensorRT 11.4.1 and JetPack 7.2.2 on.",
        sources=(s.TRT_11_JETSON,),
    ),
    Note(
        runtimes=(_T11,),
        chips=((10, 3),),
        text="NVIDIA lists TF32, FP32, FP16, FP8, FP4, BF16 and INT8 for 10.3.",
        sources=(s.TRT_115,),
    ),
)
