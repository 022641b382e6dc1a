"""A GPU by its name or compute capability, and which formats its chip has."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache

from quantkit.errors import RecipeError
from quantkit.hardware.chips import (
    CHIPS,
    RENUMBERED,
    WITHOUT_TENSOR_CORES,
    Capability,
    Chip,
    dotted,
)
from quantkit.hardware.formats import Format

#: What to fall back to, from the narrowest to the widest, and how it is asked for.
_INSTEAD: tuple[tuple[Format, str], ...] = (
    (Format.FP8, "use fp8"),
    (Format.INT8, "use int8_ptq"),
    (Format.FP16, "use fp16"),
    (Format.FP32, "use a float model"),
)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a kind of them, and its compute capability.

    Attributes:
        name: as its maker or its driver calls it; empty where only the capability is known.
        compute_capability: such as ``(8, 6)``.
    """

    name: str
    compute_capability: Capability

    @classmethod
    def of(cls, text: str) -> Gpu:
        """The GPU of a product name or a compute capability.

        Raises:
            RecipeError: it is neither.

        Example:
            >>> Gpu.of("nvidia a40"), Gpu.of("SM86")
            (Gpu(name='A40', compute_capability=(8, 6)), Gpu(name='', compute_capability=(8, 6)))
        """
        number = _number(text)
        if number is not None:
            return cls("", number)
        product = _product(text)
        if product is None:
            raise RecipeError(
                f"no compute capability or known GPU in {text!r}; write it as 8.6 or SM86 "
                f"(https://developer.nvidia.com/cuda-gpus lists them){_meant(text)}"
            )
        return cls(product, _capabilities()[product])

    @property
    def chip(self) -> Chip | None:
        """What is known of its compute capability."""
        wanted = RENUMBERED.get(self.compute_capability, self.compute_capability)
        return next((chip for chip in CHIPS if chip.capability == wanted), None)

    @property
    def has_tensor_cores(self) -> bool:
        """Whether it has any: some products of 7.5 have none, unlike others of 7.5."""
        lacks = self.name != "" and _product(self.name) in WITHOUT_TENSOR_CORES
        return self.chip is not None and bool(self.chip.tensor_core) and not lacks

    def __str__(self) -> str:
        """The name, or such as ``SM86``."""
        return self.name or "SM{}{}".format(*self.compute_capability)


def compute_capability(text: str) -> Capability:
    """Read a compute capability, or look up the one of an NVIDIA product.

    Source: https://developer.nvidia.com/cuda-gpus.

    Raises:
        RecipeError: it is neither.

    Example:
        >>> compute_capability("8.6"), compute_capability("sm_120"), compute_capability("A40")
        ((8, 6), (12, 0), (8, 6))
    """
    return Gpu.of(text).compute_capability


def first_with(format: Format) -> Chip:
    """The oldest chip that multiplies in a format.

    Example:
        >>> first_with(Format.FP8).label, first_with(Format.NVFP4).label
        ('8.9 Ada', '10.0 Blackwell')
    """
    return next(chip for chip in CHIPS if chip.has(format))


def needs(format: Format, gpu: Gpu, *, called: str | None = None) -> str:
    """Why a chip lacks a format, without a dot at the end.

    Example:
        >>> needs(Format.FP8, Gpu.of("A40"))
        'fp8 needs compute capability 8.9 (Ada) or later; A40 is 8.6'
    """
    first = first_with(format)
    have = dotted(gpu.compute_capability)
    return (
        f"{called or format.value} needs compute capability {dotted(first.capability)} "
        f"({first.architecture}) or later; {gpu.name or 'this GPU'} is {have}"
    )


def instead_of(format: Format, chip: Chip | None) -> str:
    """What to use on a chip that lacks a format, as an imperative without a dot.

    Example:
        >>> instead_of(Format.FP8, Gpu.of("A40").chip), instead_of(Format.BF16, Gpu.of("T4").chip)
        ('use int8_ptq', 'use fp16')
    """
    if format is Format.SPARSE:
        return "use dense weights"
    floats = format in (Format.FP32, Format.TF32, Format.BF16, Format.FP16)
    for candidate, words in _INSTEAD:
        narrow = candidate in (Format.FP8, Format.INT8)
        if chip is not None and chip.has(candidate) and not (floats and narrow):
            return words
    return "use a float model"


def gpu_supports(cc: Capability, dtype: str) -> str | None:
    """Return ``None`` where GPUs of a compute capability have a format, else the reason.

    It tells of the chip alone; ``hardware.support`` tells of a runtime on it.

    Args:
        cc: the compute capability, such as ``(8, 6)``.
        dtype: ``int8``, ``int4`` (weights), ``fp8_e4m3``, ``bf16`` … (``uint8`` is as int8).

    Raises:
        RecipeError: there is no such format.

    Example:
        >>> gpu_supports((8, 9), "fp8_e4m3")
        >>> gpu_supports((8, 6), "fp8_e4m3")
        'fp8_e4m3 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq'
    """
    format = Format.of(dtype)
    chip = Gpu("", cc).chip
    # Newer than the table: what was there before is there still.
    if cc >= first_with(format).capability if chip is None else chip.has(format):
        return None
    gpu = Gpu(chip.products[0] if chip else "", cc)
    return f"{needs(format, gpu, called=dtype)}; {instead_of(format, chip)}"


def _number(text: str) -> Capability | None:
    # sm_90a and sm_100f are the same hardware, with code for that hardware alone.
    found = re.fullmatch(r"(?:sm|compute)?_?(\d{1,2})\.?(\d)[af]?", text.strip().lower())
    return (int(found[1]), int(found[2])) if found else None


@cache
def _capabilities() -> dict[str, Capability]:
    return {product: chip.capability for chip in CHIPS for product in chip.products}


@cache
def _product(text: str) -> str | None:
    """The longest product name in a text.

    ``NVIDIA A100-SXM4-80GB`` and ``NVIDIA GeForce RTX 4090 Laptop GPU`` are what drivers say.
    """
    words = _words(text)
    fits = [name for name in _capabilities() if _contains(words, _words(name))]
    return max(fits, key=lambda name: len(_words(name)), default=None)


@cache
def _words(text: str) -> tuple[str, ...]:
    # "RTX5090" and "1080Ti".
    spaced = re.sub(r"(?<=[rg]tx)(?=\d)|(?<=\d)(?=(ti|super)\b)", " ", text.lower())
    return tuple(re.findall(r"[a-z]+\d*[a-z]*|\d+[a-z]*", spaced))


def _meant(text: str) -> str:
    """The products that a text may mean, such as ``RTX 6000``, of which there are several."""
    words = set(_words(text))
    fits = [name for name in _capabilities() if words and words <= set(_words(name))]
    fits = fits or difflib.get_close_matches(text, _capabilities(), n=3)
    return f"; did you mean {', '.join(fits[:4])}?" if fits else ""


def _contains(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))
