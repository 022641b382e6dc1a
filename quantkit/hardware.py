"""What each processor can do in few bits, and what this machine has."""

from __future__ import annotations

import difflib
import functools
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import MissingDependencyError, RecipeError

#: Processor features, as Linux names them, that sum 8-bit products in 32 bits.
EXACT_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

#: Other names of the same features: py-cpuinfo on Windows and macOS.
_SAME_FEATURE = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "amxint8": "amx_int8"}

_AVX512 = frozenset({"avx2", "avx512f", "avx512bw", "avx512vl"})

#: Kinds of processors to plan for, when the model will not run on this machine.
_NAMED_CPUS = {
    "avx2": frozenset({"avx2"}),
    "avx512": _AVX512,
    "vnni": frozenset({"avx2", "avx_vnni"}),
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    "amx": _AVX512 | {"avx512_vnni", "amx_int8"},
    "arm_dotprod": frozenset({"asimd", "asimddp"}),
}

#: Products by compute capability: https://developer.nvidia.com/cuda-gpus and, for those no longer
#: sold, https://developer.nvidia.com/cuda-legacy-gpus. Messages name the first of each.
_PRODUCTS: dict[tuple[int, int], tuple[str, ...]] = {
    (6, 0): ("P100",),
    (6, 1): ("P4", "P40"),
    (6, 2): ("TX2",),
    (7, 0): ("V100",),
    (7, 2): ("Xavier",),
    (7, 5): ("T4", "RTX 2060", "RTX 2070", "RTX 2080"),
    (8, 0): ("A100", "A30"),
    (8, 6): ("A40", "A2", "A10", "A10G", "A16", "A6000", "RTX 3060", "RTX 3080", "RTX 3090"),
    (8, 7): ("Orin",),
    (8, 9): ("L4", "L40", "L40S", "RTX 6000 Ada", "RTX 4060", "RTX 4070", "RTX 4080", "RTX 4090"),
    (9, 0): ("H100", "H200", "GH200"),
    (10, 0): ("B200", "GB200"),
    (10, 3): ("B300", "GB300"),
    (11, 0): ("Thor",),
    (12, 0): ("RTX 5090", "RTX 5080", "RTX 5070", "RTX 5060", "RTX PRO 6000"),
    (12, 1): ("GB10",),
}


#: For each format the least compute capability, its architecture, and what to use instead.
_FORMATS = {
    "int8": ((6, 1), "Pascal", "use a float model"),
    "uint8": ((6, 1), "Pascal", "use a float model"),
    "int4": ((8, 0), "Ampere", "use int8_ptq"),
    "bf16": ((8, 0), "Ampere", "use fp16 or fp32"),
    "fp8_e4m3": ((8, 9), "Ada", "use int8_ptq"),
}


@dataclass(frozen=True)
class Cpu:
    """A processor and its instruction set extensions, by Linux's names.

    Example:
        >>> Cpu("EPYC", frozenset({"avx2", "avx512_vnni"})).has_vnni
        True
    """

    name: str
    features: frozenset[str]

    @property
    def has_vnni(self) -> bool:
        """Whether it multiplies 8-bit integers and sums them in 32 bits, in one instruction."""
        return bool(self.features & EXACT_INT8_FEATURES)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a kind of them, and its compute capability."""

    name: str
    compute_capability: tuple[int, int]


@functools.cache
def detect_cpu() -> Cpu:
    """Return the processor of this machine.

    Raises:
        MissingDependencyError: the operating system does not tell, and py-cpuinfo is not there.

    Example:
        >>> bool(detect_cpu().features)
        True
    """
    # py-cpuinfo takes a second, for it starts processes; Linux has the answer in a file.
    found = _parse_cpuinfo(Path("/proc/cpuinfo"))
    if found is not None:
        return found
    try:
        import cpuinfo
    except ImportError as error:
        raise MissingDependencyError(
            "the processor cannot be told without py-cpuinfo; run `pip install py-cpuinfo`, "
            f"or name its kind: {', '.join(_NAMED_CPUS)}"
        ) from error
    info = cpuinfo.get_cpu_info()
    features = {_SAME_FEATURE.get(flag, flag) for flag in info.get("flags", ())}
    if platform.machine().lower() in {"arm64", "aarch64"}:
        features.add("asimd")  # part of every 64-bit ARM processor
        if platform.system() == "Darwin":
            features.add("asimddp")  # part of every Apple processor since the A13 and M1
    return Cpu(info.get("brand_raw", platform.processor()), frozenset(features))


def _parse_cpuinfo(file: Path) -> Cpu | None:
    """Read the first processor of Linux's /proc/cpuinfo; ``None`` where it does not tell."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # "flags" on x86, "Features" on ARM.
    features = fields.get("flags") or fields.get("Features")
    if not features:
        return None
    name = fields.get("model name") or fields.get("CPU part") or platform.machine()
    return Cpu(name, frozenset(features.split()))


def named_cpu(name: str) -> Cpu:
    """Return the kind of processor that a model will be deployed on.

    Args:
        name: ``auto`` for this machine's, else a kind such as ``avx2`` or ``avx512_vnni``.

    Raises:
        RecipeError: there is no such kind.

    Example:
        >>> named_cpu("avx2").has_vnni, named_cpu("amx").has_vnni
        (False, True)
    """
    if name == "auto":
        return detect_cpu()
    if name not in _NAMED_CPUS:
        known = ["auto", *_NAMED_CPUS]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"no CPU kind {name!r}; there are: {', '.join(known)}{hint}")
    return Cpu(name, _NAMED_CPUS[name])


def weight_bits(cpu: Cpu) -> int:
    """Return how many bits the weights may use without integer sums saturating: 8 or 7.

    x86 before VNNI multiplies with ``vpmaddubsw``: it adds two uint8 x int8 products in *16* bits,
    and saturates. 2 * 255 * 127 = 64770 does not fit in 32767; 2 * 255 * 64 = 32640 does, so
    7-bit weights are exact there. VNNI and AMX sum in 32 bits (Intel 64 and IA-32 Software
    Developer's Manual, volume 2, ``VPMADDUBSW`` and ``VPDPBUSD``). So does ARM, with or without
    the dot product: NEON adds its 16-bit products pairwise into 32 bits (``SADALP``).

    Example:
        >>> weight_bits(named_cpu("avx2")), weight_bits(named_cpu("vnni"))
        (7, 8)
    """
    return 8 if cpu.has_vnni or cpu.features & {"asimd", "neon"} else 7


def compute_capability(text: str) -> tuple[int, int]:
    """Read a compute capability, or look up the one of an NVIDIA product.

    Source: https://developer.nvidia.com/cuda-gpus.

    Raises:
        RecipeError: it is neither.

    Example:
        >>> compute_capability("8.6"), compute_capability("sm_120"), compute_capability("A40")
        ((8, 6), (12, 0), (8, 6))
    """
    # sm_90a and sm_100f are the same hardware, with code for that hardware alone.
    number = re.fullmatch(r"(?:sm|compute)?_?(\d{1,2})\.?(\d)[af]?", text.strip().lower())
    if number:
        return int(number[1]), int(number[2])
    words = _words(text)
    names = {_words(name): cc for cc, products in _PRODUCTS.items() for name in products}
    # "NVIDIA A100-SXM4-80GB" and "NVIDIA GeForce RTX 4090 Laptop GPU" are what drivers say.
    fits = [name for name in names if _contains(words, name)]
    if not fits:
        raise RecipeError(
            f"no compute capability or known GPU in {text!r}; write it as 8.6 or SM86 "
            "(https://developer.nvidia.com/cuda-gpus lists them)"
        )
    return names[max(fits, key=len)]


def _words(text: str) -> tuple[str, ...]:
    spaced = re.sub(r"(?<=rtx)(?=\d)", " ", text.lower())  # "RTX5090"
    return tuple(re.findall(r"[a-z]+\d*[a-z]*|\d+", spaced))


def _contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


def gpu_supports(cc: tuple[int, int], dtype: str) -> str | None:
    """Return ``None`` where GPUs of a compute capability have a format, else the reason.

    Sources: NVIDIA's "CUDA C++ Programming Guide", tables of "Compute Capabilities" (int8 ``dp4a``
    from 6.1, in tensor cores from 7.2; bfloat16 from 8.0; FP8 from 8.9); the TensorRT "Support
    Matrix", section "Hardware and Precision" (no INT8 on 6.2; INT4 is weight-only).

    Args:
        cc: the compute capability, such as ``(8, 6)``.
        dtype: ``int8``, ``int4``, ``fp8_e4m3`` or ``bf16`` (``uint8`` is as int8).

    Raises:
        RecipeError: the format is none of these.

    Example:
        >>> gpu_supports((8, 9), "fp8_e4m3")
        >>> gpu_supports((8, 6), "fp8_e4m3")
        'fp8_e4m3 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq'
    """
    if dtype not in _FORMATS:
        raise RecipeError(f"no format {dtype!r}; there are: {', '.join(_FORMATS)}")
    least, architecture, instead = _FORMATS[dtype]
    # The one exception to "or later": Jetson TX2 has no dp4a.
    if cc >= least and not (cc == (6, 2) and least == (6, 1)):
        return None
    product = _PRODUCTS.get(cc, ("this GPU",))[0]
    return (
        f"{dtype} needs compute capability {least[0]}.{least[1]} ({architecture}) or later; "
        f"{product} is {cc[0]}.{cc[1]}; {instead}"
    )
