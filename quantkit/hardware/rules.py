"""One rule of the table: a verdict for some chips, formats and runtimes."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.hardware.chips import CHIPS, Capability
from quantkit.hardware.formats import Format, Runtime, Verdict
from quantkit.hardware.sources import Source

EVERY_CHIP: tuple[Capability, ...] = tuple(chip.capability for chip in CHIPS)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A verdict for each of ``runtimes`` x ``formats`` x ``chips``, unless a rule before has one.

    Attributes:
        runtimes: the columns.
        formats: the formats.
        chips: compute capabilities.
        verdict: how they run it.
        why: one sentence; ``{gpu}``, ``{cc}``, ``{format}`` and ``{runtime}`` are filled in.
        instead: what to use; ``None``: the widest-known way down from the format on the chip.
        sources: where it stands.
        only: the operators that run so.
    """

    runtimes: tuple[Runtime, ...]
    formats: tuple[Format, ...]
    chips: tuple[Capability, ...]
    verdict: Verdict
    why: str
    sources: tuple[Source, ...]
    instead: str | None = ""
    only: str = ""


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence that is added to what every cell of some chips in some runtimes says."""

    runtimes: tuple[Runtime, ...]
    chips: tuple[Capability, ...]
    text: str
    sources: tuple[Source, ...]


def since(capability: Capability, *, before: Capability = (99, 0)) -> tuple[Capability, ...]:
    """The compute capabilities of the table from one on, up to another.

    Example:
        >>> since((8, 9), before=(10, 0))
        ((8, 9), (9, 0))
    """
    return tuple(known for known in EVERY_CHIP if capability <= known < before)


def lacking(format: Format) -> tuple[Capability, ...]:
    """The compute capabilities whose chips do not have a format.

    Example:
        >>> lacking(Format.FP8)[-1], lacking(Format.INT8)[-1]
        ((8, 7), (6, 2))
    """
    return tuple(chip.capability for chip in CHIPS if not chip.has(format))
