"""TensorRT-RTX: NVIDIA's matrix, and what its builder makes on a CPU for each target.

What was seen: networks of one convolution or matrix product each, built for SM75, SM80, SM86, SM89,
SM120 and SM121; the builder's own list of kernels tells the types that each reads.
"""

from __future__ import annotations

from quantkit.hardware import sources as s
from quantkit.hardware.formats import Format, Runtime, Verdict
from quantkit.hardware.rules import EVERY_CHIP, Note, Rule, lacking

_RTX = (Runtime.TENSORRT_RTX,)
_TURING = ((7, 5),)
_AMPERE = ((8, 0), (8, 6))
_ADA = ((8, 9),)
_BLACKWELL = ((12, 0), (12, 1))
_TARGETS = _TURING + _AMPERE + _ADA + _BLACKWELL

RULES = (
    Rule(
        runtimes=_RTX,
        formats=tuple(Format),
        chips=tuple(chip for chip in EVERY_CHIP if chip not in _TARGETS),
        verdict=Verdict.NO,
        why="TensorRT-RTX builds for 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1; {gpu} is {cc}.",
        instead="Use TensorRT (the target tensorrt).",
        sources=(s.RTX_MATRIX, s.SEEN),
    ),
    *(
        Rule(
            runtimes=_RTX,
            formats=(format,),
            chips=tuple(chip for chip in lacking(format) if chip in _TARGETS and chip not in built),
            verdict=Verdict.NO,
            why="{needs}.",
            instead=None,
            sources=(s.RTX_MATRIX, s.SEEN, s.TENSOR_CORES),
        )
        for format, built in (
            (Format.TF32, ()),
            (Format.BF16, ()),
            (Format.INT4, ()),
            (Format.FP8, ()),
            (Format.MXFP8, _ADA),
            (Format.NVFP4, ()),
        )
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.FP32,),
        chips=_TURING,
        verdict=Verdict.CUDA_CORE,
        why="Convolutions run; the builder refuses matrix products in fp32 for Turing.",
        instead="Use fp16.",
        sources=(s.RTX_MATRIX, s.SEEN),
        only="convolutions",
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.FP32,),
        chips=_TARGETS,
        verdict=Verdict.CUDA_CORE,
        why="No tensor core multiplies fp32.",
        sources=(s.RTX_MATRIX, s.SEEN),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.TF32,),
        chips=_TARGETS,
        verdict=Verdict.UNKNOWN,
        why="The builder has a flag for it, and neither NVIDIA's matrix nor its list of kernels "
        "tells of tf32.",
        instead="Use fp16.",
        sources=(s.RTX_MATRIX, s.SEEN),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.FP16, Format.BF16),
        chips=_TARGETS,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply {format}.",
        sources=(s.RTX_MATRIX, s.SEEN, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.INT8,),
        chips=_TURING,
        verdict=Verdict.TENSOR_CORE,
        why="The builder makes int8 x int8 kernels for matrix products, in an fp16 network, and "
        "runs convolutions in float. NVIDIA's matrix has no int8 for Turing.",
        instead="Use TensorRT (the target tensorrt), which has int8 convolutions for Turing.",
        sources=(s.SEEN, s.RTX_MATRIX),
        only="matrix products",
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.INT8,),
        chips=_TARGETS,
        verdict=Verdict.TENSOR_CORE,
        why="The builder makes int8 x int8 kernels for convolutions and matrix products. NVIDIA's "
        "matrix lists weight-only products alone; how fast the others are was not seen on a GPU.",
        sources=(s.SEEN, s.RTX_MATRIX),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.INT4,),
        chips=_TARGETS,
        verdict=Verdict.WEIGHT_ONLY,
        why="Weights are unpacked inside the matrix product, which is in fp16, bf16 or fp32; "
        "convolutions run in float.",
        sources=(s.RTX_MATRIX, s.SEEN),
        only="matrix products",
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.FP8,),
        chips=_TARGETS,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply fp8. NVIDIA's guide names matrix products alone; the builder "
        "makes fp8 convolutions too.",
        sources=(s.RTX_MATRIX, s.RTX_TYPES, s.SEEN),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.MXFP8,),
        chips=_TARGETS,
        verdict=Verdict.EMULATED,
        why="The builder takes mxfp8, turns it back to fp16, and multiplies in fp16.",
        instead="Use fp8.",
        sources=(s.SEEN,),
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.NVFP4,),
        chips=_BLACKWELL,
        verdict=Verdict.TENSOR_CORE,
        why="Matrix products read fp4 on both sides; weights alone in fp4 are turned back to fp16.",
        sources=(s.RTX_MATRIX, s.RTX_TYPES, s.SEEN),
        only="matrix products",
    ),
    Rule(
        runtimes=_RTX,
        formats=(Format.SPARSE,),
        chips=_TARGETS,
        verdict=Verdict.NO,
        why="With SPARSE_WEIGHTS the builder makes the dense kernel, and an engine of the same "
        "size (a product of 512 x 512 in fp16, for SM86 and SM120).",
        instead="Use TensorRT (the target tensorrt), or dense weights.",
        sources=(s.SEEN,),
    ),
)

NOTES = (
    Note(
        runtimes=_RTX,
        chips=((8, 0),),
        text="8.0 is a target of the builder and not a row of NVIDIA's matrix.",
        sources=(s.RTX_CPU,),
    ),
)
