"""Inductor: what ``torch.compile`` and torchao do with each format on a GPU."""

from __future__ import annotations

from quantkit.hardware import sources as s
from quantkit.hardware.formats import Format, Runtime, Verdict
from quantkit.hardware.rules import Note, Rule, lacking, since

_INDUCTOR = (Runtime.INDUCTOR,)
_VOLTA = since((7, 0))

RULES = (
    Rule(
        runtimes=_INDUCTOR,
        formats=tuple(Format),
        chips=since((5, 0), before=(7, 0)),
        verdict=Verdict.NO,
        why="Inductor writes Triton kernels, which need compute capability 7.0; {gpu} is {cc}.",
        instead="Run PyTorch without torch.compile.",
        sources=(s.TRITON,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.FP32,),
        chips=_VOLTA,
        verdict=Verdict.CUDA_CORE,
        why="No tensor core multiplies fp32.",
        sources=(s.TORCH_CUDA,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.TF32,),
        chips=since((8, 0)),
        verdict=Verdict.TENSOR_CORE,
        why='Tensor cores multiply tf32, after torch.set_float32_matmul_precision("high").',
        sources=(s.TORCH_CUDA, s.TENSOR_CORES),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.TF32, Format.SPARSE),
        chips=lacking(Format.TF32),
        verdict=Verdict.NO,
        why="{needs}.",
        instead=None,
        sources=(s.TENSOR_CORES, s.TORCH_SPARSE),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.FP16,),
        chips=_VOLTA,
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply fp16.",
        sources=(s.TENSOR_CORES,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.BF16,),
        chips=since((8, 0)),
        verdict=Verdict.TENSOR_CORE,
        why="Tensor cores multiply bf16.",
        sources=(s.TENSOR_CORES,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.BF16,),
        chips=since((7, 0), before=(8, 0)),
        verdict=Verdict.EMULATED,
        why="PyTorch stores bf16 here, and its units compute it in fp32.",
        instead="Use fp16.",
        sources=(s.TORCH_BUILDS,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.INT8,),
        chips=since((7, 5)),
        verdict=Verdict.TENSOR_CORE,
        why="Linear layers that are written with torch._int_mm, as torchao writes them; Q/DQ in a "
        "graph, and convolutions, are computed in float.",
        instead="Build the ONNX file with TensorRT, for convolutions and Q/DQ.",
        sources=(s.TORCHAO, s.TENSOR_CORES),
        only="linear layers of torchao",
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.INT8,),
        chips=((7, 0), (7, 2)),
        verdict=Verdict.EMULATED,
        why="Q/DQ is computed in float; for products of int8 no kernel is documented before 7.5.",
        instead="Use fp16.",
        sources=(s.TORCHAO,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.INT4,),
        chips=since((8, 0)),
        verdict=Verdict.WEIGHT_ONLY,
        why="Linear layers of torchao unpack int4 weights; products are in bf16.",
        sources=(s.TORCHAO,),
        only="linear layers of torchao",
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.INT4,),
        chips=since((7, 0), before=(8, 0)),
        verdict=Verdict.UNKNOWN,
        why="torchao does not say for which GPUs before 8.0 its int4 kernels are built.",
        instead="Use fp16.",
        sources=(s.TORCHAO,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.FP8,),
        chips=since((8, 9)),
        verdict=Verdict.TENSOR_CORE,
        why="Linear layers that are written with torch._scaled_mm, as torchao writes them.",
        sources=(s.TORCH_PLATFORMS, s.TENSOR_CORES, s.TORCHAO),
        only="linear layers of torchao",
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.FP8,),
        chips=since((7, 0), before=(8, 9)),
        verdict=Verdict.EMULATED,
        why="fp8 is stored, and computed in float: Triton has it from 8.9 on.",
        instead=None,
        sources=(s.TRITON_FP8, s.TORCH_PLATFORMS),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.MXFP8, Format.NVFP4),
        chips=((10, 0), (10, 3)),
        verdict=Verdict.TENSOR_CORE,
        why="Linear layers of torchao (prototype) multiply {format} in tensor cores.",
        sources=(s.TORCHAO_MX, s.TORCH_PLATFORMS),
        only="linear layers of torchao",
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.MXFP8, Format.NVFP4),
        chips=since((11, 0)),
        verdict=Verdict.UNKNOWN,
        why="torchao asks for SM100 or later; Transformer Engine has no mxfp8 and part of nvfp4 on "
        "12.0, and does not name 11.0 and 12.1.",
        instead="Use fp8.",
        sources=(s.TORCHAO_MX, s.TRANSFORMER_ENGINE),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.MXFP8, Format.NVFP4),
        chips=since((7, 0), before=(10, 0)),
        verdict=Verdict.EMULATED,
        why="torchao can round to {format}, and products are in bf16.",
        instead=None,
        sources=(s.TORCHAO_MX,),
    ),
    Rule(
        runtimes=_INDUCTOR,
        formats=(Format.SPARSE,),
        chips=since((8, 0)),
        verdict=Verdict.TENSOR_CORE,
        why="Linear layers with torch.sparse.to_sparse_semi_structured weights.",
        sources=(s.TORCH_SPARSE, s.SPARSITY),
        only="linear layers",
    ),
)

NOTES = (
    Note(
        runtimes=_INDUCTOR,
        chips=((7, 0),),
        text="Of PyTorch's packages only those for CUDA 12.6 have code for it.",
        sources=(s.TORCH_BUILDS,),
    ),
    Note(
        runtimes=_INDUCTOR,
        chips=((7, 2), (8, 7)),
        text="PyTorch's own packages have no code for it; those that NVIDIA makes for Jetson have.",
        sources=(s.TORCH_BUILDS,),
    ),
)
