"""Processors: what this machine has, kinds to plan for, and how each sums 8-bit products."""

from __future__ import annotations

import difflib
import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import MissingDependencyError, RecipeError

#: Processor features, as Linux names them, that sum 8-bit products in 32 bits.
EXACT_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

#: Other names of the same features: py-cpuinfo on Windows and macOS.
_SAME_FEATURE = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "amxint8": "amx_int8"}

_AVX512 = frozenset({"avx2", "avx512f", "avx512bw", "avx512vl"})
_VNNI = _AVX512 | {"avx512_vnni"}
_DOTPROD = frozenset({"asimd", "asimddp"})

#: Kinds of processors to plan for, when the model will not run on this machine; the plainest first.
_NAMED_CPUS = {
    "avx2": frozenset({"avx2"}),
    "avx512": _AVX512,
    "vnni": frozenset({"avx2", "avx_vnni"}),
    "avx512_vnni": _VNNI,
    "amx": _VNNI | {"amx_int8"},
    "arm_neon": frozenset({"asimd"}),
    "arm_dotprod": _DOTPROD,
    "arm_i8mm": _DOTPROD | {"i8mm"},
}

KINDS: tuple[str, ...] = tuple(_NAMED_CPUS)


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

    @property
    def kind(self) -> str | None:
        """The richest named kind whose features it has; ``None`` where it has those of none.

        Example:
            >>> Cpu("EPYC", frozenset({"fpu", "avx2"})).kind, Cpu("i486", frozenset()).kind
            ('avx2', None)
        """
        fits = [name for name, features in _NAMED_CPUS.items() if features <= self.features]
        return max(fits, key=lambda name: (len(_NAMED_CPUS[name]), KINDS.index(name)), default=None)


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
    found = parse_cpuinfo(Path("/proc/cpuinfo"))
    if found is not None:
        return found
    try:
        import cpuinfo
    except ImportError as error:
        raise MissingDependencyError(
            "the processor cannot be told without py-cpuinfo; run `pip install py-cpuinfo`, "
            f"or name its kind: {', '.join(KINDS)}"
        ) from error
    info = cpuinfo.get_cpu_info()
    features = {_SAME_FEATURE.get(flag, flag) for flag in info.get("flags", ())}
    if platform.machine().lower() in {"arm64", "aarch64"}:
        features.add("asimd")  # part of every 64-bit ARM processor
        if platform.system() == "Darwin":
            features.add("asimddp")  # part of every Apple processor since the A13 and M1
    return Cpu(info.get("brand_raw", platform.processor()), frozenset(features))


def parse_cpuinfo(file: Path) -> Cpu | None:
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
        known = ["auto", *KINDS]
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
