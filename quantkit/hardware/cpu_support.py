"""INT8 on processors: kinds x runtimes, and what follows for a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantkit.hardware import sources
from quantkit.hardware.cpus import Cpu, weight_bits
from quantkit.hardware.sources import Source


class CpuRuntime(StrEnum):
    """What runs a model on a processor."""

    ONNXRUNTIME = "onnxruntime"
    INDUCTOR = "inductor"


@dataclass(frozen=True, kw_only=True)
class CpuSupport:
    """How a processor runs INT8 in a runtime.

    Attributes:
        instruction: what it multiplies with.
        sum_bits: the width in which it adds products: 16 saturates, 32 does not.
        weight_bits: how many bits weights may use.
        why: what that does to a model; one sentence or two.
        instead: what to use; imperative sentences.
        sources: where it stands, or how it was measured.
    """

    instruction: str
    sum_bits: int
    weight_bits: int
    why: str
    instead: str
    sources: tuple[Source, ...]


#: The instruction of each kind, and what is known of it.
_INSTRUCTIONS: dict[str, tuple[str, Source]] = {
    "avx2": ("VPMADDUBSW", sources.INTEL_SDM),
    "avx512": ("VPMADDUBSW, 512 bits", sources.INTEL_SDM),
    "vnni": ("VPDPBUSD (AVX-VNNI)", sources.INTEL_SDM),
    "avx512_vnni": ("VPDPBUSD, 512 bits", sources.INTEL_SDM),
    "amx": ("TDPBUSD (AMX tiles)", sources.INTEL_SDM),
    "arm_neon": ("SMULL, SADALP (NEON)", sources.ARM_ARM),
    "arm_dotprod": ("SDOT, UDOT", sources.ARM_ARM),
    "arm_i8mm": ("SMMLA, USMMLA (i8mm)", sources.ARM_ARM),
}


def cpu_support(cpu: Cpu, runtime: CpuRuntime) -> CpuSupport:
    """How a processor runs INT8 in a runtime.

    Example:
        >>> from quantkit.hardware import named_cpu
        >>> found = cpu_support(named_cpu("avx2"), CpuRuntime.ONNXRUNTIME)
        >>> found.sum_bits, found.weight_bits
        (16, 7)
    """
    bits = weight_bits(cpu)
    instruction, source = _INSTRUCTIONS.get(cpu.kind or "", ("no 8-bit product", sources.ORT_QUANT))
    x86 = not (cpu.features & {"asimd", "neon"})
    if runtime is CpuRuntime.ONNXRUNTIME:
        why, instead = _onnxruntime(saturates=bits < 8, x86=x86)
        evidence = (source, sources.ORT_QUANT) + ((sources.ORT_SEEN,) if bits < 8 else ())
    else:
        why, instead = _inductor(saturates=bits < 8, x86=x86)
        evidence = (source, sources.ONEDNN, sources.TORCHAO_X86)
    return CpuSupport(
        instruction=instruction,
        sum_bits=16 if bits < 8 else 32,
        weight_bits=bits,
        why=why,
        instead=instead,
        sources=evidence,
    )


def _onnxruntime(*, saturates: bool, x86: bool) -> tuple[str, str]:
    if saturates:
        return (
            "Sums of two products saturate in 16 bits, so 8-bit weights give wrong results by "
            "default: EfficientNet-Lite0 had 83.4 % top-1 where the same file had 88.4 % exact. "
            "Depthwise layers ran at 0.7 times the speed of float.",
            "Use int8_cpu (7-bit weights, exact and fast); leave depthwise layers in float by an "
            "override if speed counts.",
        )
    if x86:
        return (
            "Sums are exact in 32 bits, with 8-bit weights; uint8 activations are the fast ones.",
            "Use int8_cpu, which writes uint8 activations.",
        )
    return (
        "Sums are exact in 32 bits, with 8-bit weights. How fast it is has not been measured.",
        "Use int8_cpu, and compare the latency with float.",
    )


def _inductor(*, saturates: bool, x86: bool) -> tuple[str, str]:
    if saturates:
        return (
            "oneDNN sums two products in 16 bits as well: 8-bit weights saturate.",
            "Use 7-bit weights (int8_cpu; reduce_range=True in X86InductorQuantizer).",
        )
    if x86:
        return (
            "oneDNN sums in 32 bits, with 8-bit weights.",
            "Use int8_cpu or int8_asymmetric.",
        )
    return (
        "Sums are exact in 32 bits; which layers get integer kernels on ARM has not been seen.",
        "Compare the latency with float, or use ONNX Runtime.",
    )
