"""Tells from the name of a CUDA kernel what it ran on, in which type, whose it is and what it does.

The tables are in ``_works.py``, ``_units.py`` and ``_dtypes.py``, their sources in ``_clue.py``. A
name of which no library is known stays unknown in everything: ``my_sgemm_wmma`` may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

from quantkit.profiling._clue import Clue
from quantkit.profiling._dtypes import DTYPES
from quantkit.profiling._units import UNITS
from quantkit.profiling._works import FAMILIES, WORKS
from quantkit.profiling.kinds import Confidence as Confidence
from quantkit.profiling.kinds import Dtype as Dtype
from quantkit.profiling.kinds import KernelKind as KernelKind
from quantkit.profiling.kinds import Unit as Unit
from quantkit.profiling.kinds import Work as Work

T = TypeVar("T")

#: Pieces of a mangled name: those without words (literals, back references, lambdas), then a length
#: with the word after it, then the types of a template that are one letter each.
_PIECE = re.compile(
    r"L[a-z]\d+E|[ST][0-9A-Z]*_|E\d?_|(?P<length>\d+)|I(?P<types>[a-z]+)(?=[A-Z_]|$)"
)
_LETTERS = {"f": "float", "d": "double", "a": "signed char"}
_SHOWN = 48  # of a part of the name that is quoted


@lru_cache(maxsize=4096)
def classify(name: str) -> KernelKind:
    """What the name of a kernel, as a profiler printed it, tells.

    Args:
        name: mangled, demangled or cut short; of nsys, ncu, nvprof, ``torch.profiler`` or TensorRT.

    Example:
        >>> kind = classify("ampere_fp16_s16816gemm_fp16_64x64_sliced1x2_ldg8_relu_f2f_tn")
        >>> str(kind.unit), str(kind.dtype), kind.family, str(kind.work), str(kind.confidence)
        ('tensor-cores', 'fp16', 'cuBLAS', 'matmul', 'certain')
        >>> print(classify("[CUDA memcpy DtoH]").why)
        "[CUDA memcpy": a copy or fill of the driver
        >>> str(classify("my_sgemm_wmma").unit)
        'unknown'
    """
    text = _readable(name)
    family = _first(FAMILIES, text)
    if family is None:
        return _told(why="no part of the name is that of a known library")
    work = _first(WORKS, text)
    unit = _first(UNITS, text)
    dtype = _first(DTYPES, text)
    reasons = [found[1:] for found in (unit or family, dtype) if found is not None]
    if unit is None:
        confidence = Confidence.UNKNOWN
    else:
        sure = all(sure for _, sure in reasons)
        confidence = Confidence.CERTAIN if sure else Confidence.LIKELY
    return _told(
        unit=unit[0] if unit else Unit.UNKNOWN,
        dtype=dtype[0] if dtype else Dtype.UNKNOWN,
        family=family[0],
        work=work[0] if work else Work.UNKNOWN,
        confidence=confidence,
        why="; ".join(dict.fromkeys(why for why, _ in reasons)),
    )


def _told(
    *,
    unit: Unit = Unit.UNKNOWN,
    dtype: Dtype = Dtype.UNKNOWN,
    family: str = "",
    work: Work = Work.UNKNOWN,
    confidence: Confidence = Confidence.UNKNOWN,
    why: str,
) -> KernelKind:
    return KernelKind(
        unit=unit, dtype=dtype, family=family, work=work, confidence=confidence, why=why
    )


def _first(clues: Iterable[Clue[T]], text: str) -> tuple[T, str, bool] | None:
    """What the first clue that is in the name says, the reason, and whether it is sure."""
    for clue in clues:
        if match := clue.pattern.search(text):
            part = match[0].strip()
            shown = part if len(part) <= _SHOWN else part[:_SHOWN] + "..."
            return clue.value_of(match), f'"{shown}": {clue.why}', clue.sure
    return None


def _readable(name: str) -> str:
    """The words of a mangled name, joined as C++ would; any other name with even spaces.

    Not a demangler: what is left out is neither a word nor a type that a table asks for.

    Example:
        >>> _readable("_ZN7cutlass7Kernel2I43cutlass_80_simt_sgemm_128x128_8x4_nt_align1EEvNT_6Par")
        'cutlass::Kernel2::cutlass_80_simt_sgemm_128x128_8x4_nt_align1::Par'
        >>> _readable("void  gemmSN_TN_kernel<float, (int)128>")
        'gemmSN_TN_kernel<float, (int)128>'
    """
    if not name.startswith("_Z"):
        return re.sub(r"\s+", " ", name).strip().removeprefix("void ")
    words: list[str] = []
    at = 2
    while at < len(name):
        match = _PIECE.match(name, at)
        if match is None:
            at += 1
            continue
        at = match.end()
        if match["length"]:
            end = at + int(match["length"][:4])  # a name is shorter than 10,000 characters
            words.append(name[at:end])
            at = end
        elif match["types"]:
            words.append(
                "<" + ", ".join(_LETTERS.get(letter, letter) for letter in match["types"]) + ">"
            )
    return "::".join(word for word in words if word)
