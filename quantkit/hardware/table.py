"""The table: every rule spread over GPUs, formats and runtimes, and one cell of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TypeAlias

from quantkit.hardware import (
    _rules_inductor,
    _rules_onnxruntime,
    _rules_rtx,
    _rules_tensorrt,
    sources,
)
from quantkit.hardware.chips import RENUMBERED, Capability, dotted
from quantkit.hardware.formats import Format, Runtime, Support, Verdict
from quantkit.hardware.gpus import Gpu, instead_of, needs
from quantkit.hardware.rules import Note, Rule

Cell: TypeAlias = tuple[Capability, Format, Runtime]

RULES: tuple[Rule, ...] = (
    _rules_tensorrt.RULES + _rules_rtx.RULES + _rules_inductor.RULES + _rules_onnxruntime.RULES
)
NOTES: tuple[Note, ...] = _rules_tensorrt.NOTES + _rules_rtx.NOTES + _rules_inductor.NOTES


@cache
def cells() -> Mapping[Cell, Rule]:
    """The rule of every cell: the first that covers it."""
    found: dict[Cell, Rule] = {}
    for rule in RULES:
        for cell in _covered(rule):
            found.setdefault(cell, rule)
    return MappingProxyType(found)


def _covered(rule: Rule) -> Iterable[Cell]:
    for runtime in rule.runtimes:
        for format in rule.formats:
            for chip in rule.chips:
                yield chip, format, runtime


def support(gpu: Gpu, format: Format, runtime: Runtime) -> Support:
    """How a GPU runs a format in a runtime.

    Example:
        >>> found = support(Gpu.of("A40"), Format.FP8, Runtime.TENSORRT_10)
        >>> str(found.verdict), found.instead
        ('no', 'Use int8_ptq.')
        >>> str(support(Gpu.of("L4"), Format.FP8, Runtime.TENSORRT_10).verdict)
        'tensor-core'
    """
    chip = RENUMBERED.get(gpu.compute_capability, gpu.compute_capability)
    rule = cells().get((chip, format, runtime))
    if rule is None:
        return _not_in_the_table(gpu)
    if rule.verdict is Verdict.TENSOR_CORE and not gpu.has_tensor_cores:
        return _without_tensor_cores(gpu, format)
    notes = [n for n in NOTES if runtime in n.runtimes and chip in n.chips]
    notes = notes if rule.verdict not in (Verdict.NO, Verdict.UNKNOWN) else []
    instead = instead_of(format, gpu.chip) if rule.instead is None else rule.instead
    why = rule.why.format(
        gpu=gpu.name or "this GPU",
        cc=dotted(gpu.compute_capability),
        format=format.value,
        runtime=runtime.short,
        needs=needs(format, gpu) if "{needs}" in rule.why else "",
    )
    return Support(
        verdict=rule.verdict,
        why=" ".join([why, *(note.text for note in notes)]),
        instead=_sentence(instead),
        sources=rule.sources + tuple(s for note in notes for s in note.sources),
        only=rule.only,
    )


def _sentence(words: str) -> str:
    if not words:
        return ""
    return f"{words[0].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


def _not_in_the_table(gpu: Gpu) -> Support:
    return Support(
        verdict=Verdict.UNKNOWN,
        why=f"Compute capability {dotted(gpu.compute_capability)} is not in the table.",
        instead="Look in the support matrix of the runtime.",
        sources=(sources.CUDA_GPUS,),
    )


def _without_tensor_cores(gpu: Gpu, format: Format) -> Support:
    return Support(
        verdict=Verdict.CUDA_CORE,
        why=f"{gpu} is of compute capability {dotted(gpu.compute_capability)} and has no tensor "
        f"cores: instructions for {format.value} run on other units, much slower.",
        instead="",
        sources=(sources.NO_TENSOR_CORES,),
    )
