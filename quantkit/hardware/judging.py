"""What a GPU lacks of the formats that schemes or a file ask for, as findings."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping

from quantkit.hardware.chips import dotted
from quantkit.hardware.formats import Format, Runtime, Support, Verdict
from quantkit.hardware.gpus import Gpu, first_with
from quantkit.hardware.table import support
from quantkit.interfaces import Finding, Severity
from quantkit.spec import Scheme


def refusals(schemes: Iterable[Scheme], gpu: Gpu, runtime: Runtime) -> list[Finding]:
    """What a GPU cannot run of some schemes in a runtime, or runs in float.

    What the table does not know is not refused.

    Example:
        >>> from quantkit.spec import QuantSpec
        >>> fp8 = Scheme(weights=QuantSpec(dtype="fp8_e4m3"), activations=None)
        >>> [found.code for found in refusals([fp8], Gpu.of("A40"), Runtime.TENSORRT_11)]
        ['fp8-hardware']
        >>> refusals([fp8], Gpu.of("L4"), Runtime.TENSORRT_11)
        []
    """
    found: list[Finding] = []
    for scheme in schemes:
        both = scheme.weights is not None and scheme.activations is not None
        for where, spec in (("weights", scheme.weights), ("activations", scheme.activations)):
            if spec is None:
                continue
            format = Format.of(spec.dtype)
            cell = support(gpu, format, runtime)
            found += judged(where, format, cell, gpu, recipe=True)
            if cell.runs and cell.only and both and where == "weights":
                found.append(_in_part(where, format, cell))
    return list(dict.fromkeys(found))


def lacking(uses: Mapping[Format, str], gpu: Gpu, runtime: Runtime) -> list[Finding]:
    """The errors of a file: ``uses`` has the formats in it, each with a node that has it.

    Example:
        >>> found, = lacking({Format.FP8: "conv1"}, Gpu.of("A40"), Runtime.TENSORRT_11)
        >>> found.where, found.code
        ('conv1', 'fp8-hardware')
    """
    cells = [(f, where, support(gpu, f, runtime)) for f, where in uses.items()]
    refused = [(f, where, cell) for f, where, cell in cells if cell.verdict is Verdict.NO]
    return [x for f, where, cell in refused for x in judged(where, f, cell, gpu, recipe=False)]


def runtime_of(target: str) -> Runtime:
    """The column of a target of quantkit; of TensorRT that of the version that is installed.

    Example:
        >>> str(runtime_of("tensorrt_rtx"))
        'tensorrt_rtx'
    """
    first, *others = Runtime.of(target)
    if target != "tensorrt":
        return first
    try:
        major = importlib.metadata.version("tensorrt").partition(".")[0]
    except importlib.metadata.PackageNotFoundError:
        return others[0]
    return first if int(major) < 11 else others[0]


def judged(where: str, format: Format, cell: Support, gpu: Gpu, *, recipe: bool) -> list[Finding]:
    """An error where a cell is ``no``, a warning where it is ``emulated``, else nothing.

    Args:
        where: the part of a scheme, or a node.
        format: that of the cell.
        cell: from ``support``.
        gpu: that of the cell.
        recipe: whether it is a recipe that can be changed, or a file.
    """
    if cell.verdict not in (Verdict.NO, Verdict.EMULATED):
        return []
    refused = cell.verdict is Verdict.NO
    why = _absent(format, gpu) if refused and _lacks(gpu, format) else _first(cell.why)
    fix = cell.instead
    if recipe and refused and fix == "Use int8_ptq.":
        fix = "Set dtype to int8, or use the recipe int8_ptq."
    elif fix == "Use int8_ptq.":
        fix = "Quantize with the recipe int8_ptq, or build for a GPU that has the format."
    return [
        Finding(
            severity=Severity.ERROR if refused else Severity.WARNING,
            code=f"{format}-{'hardware' if refused else 'emulated'}",
            where=where,
            why=why,
            fix=fix,
        )
    ]


def _in_part(where: str, format: Format, cell: Support) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code=f"{format}-in-part",
        where=where,
        why=_first(cell.why),
        fix=cell.instead or "Leave other layers in float.",
    )


def _lacks(gpu: Gpu, format: Format) -> bool:
    return gpu.chip is not None and not gpu.chip.has(format)


def _absent(format: Format, gpu: Gpu) -> str:
    of = f" ({gpu.name})" if gpu.name else ""
    first = first_with(format)
    return (
        f"GPUs of compute capability {dotted(gpu.compute_capability)}{of} have no {format}: it "
        f"needs {dotted(first.capability)} ({first.architecture}) or later."
    )


def _first(text: str) -> str:
    """The first sentence: a finding has one."""
    return text.partition(". ")[0].rstrip(".") + "."
