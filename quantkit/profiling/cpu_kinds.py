"""What operators on a processor are: work, type and, as far as that is known, instructions.

Names of operators say nothing of instructions. What is known comes from the libraries: ONNX
Runtime's MLAS multiplies 8-bit integers with VNNI or AMX where the processor has them
(``onnxruntime/core/mlas/lib/platform.cpp``), and so does oneDNN ("Nuances of int8 Computations").
Both are told as likely, never as certain: no counter was read.
"""

from __future__ import annotations

import re
from typing import Final

from quantkit.profiling.kinds import Confidence, Dtype, KernelKind, Unit, Work
from quantkit.profiling.recording import Call

#: Types as PyTorch and ONNX Runtime write them.
_DTYPES: Final = {
    "float": Dtype.FP32,
    "double": Dtype.FP64,
    "float16": Dtype.FP16,
    "c10::half": Dtype.FP16,
    "half": Dtype.FP16,
    "bfloat16": Dtype.BF16,
    "c10::bfloat16": Dtype.BF16,
    "int8": Dtype.INT8,
    "uint8": Dtype.INT8,
    "signed char": Dtype.INT8,
    "unsigned char": Dtype.INT8,
}
#: quantkit's words for types that kernels' names have others for.
WORDS: Final = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp64": "float64",
}
#: The first that is found in a name without its namespace counts.
_WORKS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), work)
    for pattern, work in (
        (r"(?<!de)quantize", Work.ELEMENTWISE),
        (r"dequantize", Work.ELEMENTWISE),
        (r"conv(?!ert)", Work.CONVOLUTION),
        (r"attention", Work.ATTENTION),
        # No QLinearConcat of ONNX Runtime, and no upsample_bilinear2d.
        (r"gemm|mat_?mul|addmm|bmm|linear(?![a-z0-9])|^mm$", Work.MATMUL),
        (r"norm|softmax", Work.NORMALIZATION),
        (r"pool", Work.POOLING),
        (r"reorder|transpose|contiguous|permute", Work.REFORMAT),
        (r"copy|clone|concat|cat$|gather|pad|slice|^to$|cast", Work.COPY),
        (r"fill|zero_|empty", Work.FILL),
        (r"mean|sum|reduce|arg(?:max|min)|amax|amin", Work.REDUCTION),
        (
            r"relu|add|mul|sub|div|sigmoid|silu|gelu|erf|clamp|clip|tanh|exp|swish|sqrt|pow",
            Work.ELEMENTWISE,
        ),
    )
)
_INTEGER_PRODUCT = re.compile(
    r"^(?:QLinear(?:Conv|MatMul)|QGemm|MatMulInteger(?:ToFloat)?|ConvInteger"
    r"|DynamicQuantizeMatMul)$|^onednn::q(?:conv|linear)|^quantized::"
)
_UNITS: Final = {"vnni": Unit.VNNI, "avx512_vnni": Unit.VNNI, "amx": Unit.AMX}


def cpu_kind(call: Call, cpu: str | None, family: str) -> KernelKind:
    """What an operator on a processor is.

    Args:
        call: of it.
        cpu: the kind of processor, of ``quantkit.hardware.Cpu.kind``; ``None`` where not known.
        family: the runtime.

    Example:
        >>> call = Call(name="QLinearConv", op="QLinearConv", layer="c", run=0, start=0.0,
        ...             seconds=1.0, dtype="uint8")
        >>> kind = cpu_kind(call, "avx512_vnni", "ONNX Runtime")
        >>> str(kind.unit), str(kind.confidence), str(kind.dtype)
        ('vnni', 'likely', 'int8')
        >>> str(cpu_kind(call, None, "ONNX Runtime").unit)
        'cpu'
    """
    name = call.name.removeprefix("aten::")
    work = next((work for pattern, work in _WORKS if pattern.search(name)), Work.UNKNOWN)
    dtype = _DTYPES.get(call.dtype.lower(), Dtype.UNKNOWN)
    if _INTEGER_PRODUCT.match(call.name):
        unit = _UNITS.get(cpu or "", Unit.CPU)
        if unit is not Unit.CPU:
            return KernelKind(
                unit=unit,
                dtype=Dtype.INT8,
                family=family,
                work=work,
                confidence=Confidence.LIKELY,
                why="an integer product, for which the library takes this where it is",
            )
        dtype = Dtype.INT8
    return KernelKind(
        unit=Unit.CPU,
        dtype=dtype,
        family=family,
        work=work,
        confidence=Confidence.CERTAIN,
        why="it ran on the processor; its name does not tell the instructions",
    )
