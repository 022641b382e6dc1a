"""The whole table as Markdown, for the documentation, and in rows of GPUs that run alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from quantkit.hardware.chips import CHIPS, Chip, dotted
from quantkit.hardware.cpu_support import CpuRuntime, cpu_support
from quantkit.hardware.cpus import KINDS, named_cpu
from quantkit.hardware.formats import Format, Runtime, Support, Verdict
from quantkit.hardware.gpus import Gpu, first_with, instead_of
from quantkit.hardware.rules import Rule
from quantkit.hardware.sources import CUDA_GPUS, LEGACY_GPUS, Source
from quantkit.hardware.table import NOTES, RULES, cells, support

#: What each verdict means, in the order of what it gains.
LEGEND: tuple[tuple[Verdict, str], ...] = (
    (Verdict.TENSOR_CORE, "tensor cores multiply it"),
    (Verdict.CUDA_CORE, "other units multiply it"),
    (Verdict.WEIGHT_ONLY, "weights are stored in it, and products are wider"),
    (Verdict.EMULATED, "values are rounded to it, and products are in float"),
    (Verdict.NO, "refused, or there is no way to ask for it"),
    (Verdict.UNKNOWN, "documents do not say, and it was not seen"),
)

PARTLY = "some operators alone, as the reasons say"


def rows(runtime: Runtime) -> Iterator[tuple[tuple[Chip, ...], tuple[Support, ...]]]:
    """GPUs in order, those that run every format alike together, with the cells of the first.

    Example:
        >>> chips, found = list(rows(Runtime.TENSORRT_RTX))[-1]
        >>> [chip.capability for chip in chips], str(found[0].verdict)
        ([(12, 0), (12, 1)], 'cuda-core')
    """

    def found(chip: Chip) -> tuple[Support, ...]:
        return tuple(support(Gpu("", chip.capability), format, runtime) for format in Format)

    def alike(chip: Chip) -> tuple[tuple[Verdict, str], ...]:
        return tuple((cell.verdict, cell.mark) for cell in found(chip))

    for _, group in groupby(CHIPS, key=alike):
        chips = tuple(group)
        yield chips, found(chips[0])


def span(chips: Sequence[Chip]) -> str:
    """Such as ``8.0 to 8.7``.

    Example:
        >>> span(CHIPS[:3]), span(CHIPS[:1])
        ('5.0 to 5.3', '5.0')
    """
    first, last = (dotted(chip.capability) for chip in (chips[0], chips[-1]))
    return first if first == last else f"{first} to {last}"


def markdown() -> str:
    """Every GPU, format and runtime, the rule behind each cell, processors, and the sources."""
    numbers = {source: index for index, source in enumerate(_sources(), start=1)}
    lines = ["### GPUs", "", "| compute capability | architecture | products |", "|---|---|---|"]
    lines += [
        f"| {dotted(chip.capability)} | {chip.architecture} | {', '.join(chip.products)} |"
        for chip in CHIPS
    ]
    lines += ["", f"Sources: {_cited((CUDA_GPUS, LEGACY_GPUS), numbers)}.", ""]
    lines += [f"- **{verdict}**: {meaning}." for verdict, meaning in LEGEND]
    lines += [f"- **\\***: {PARTLY}."]
    for runtime in Runtime:
        lines += ["", f"### {runtime.label}", "", *_table(runtime), "", *_why(runtime, numbers)]
    lines += ["", "### INT8 on processors", "", *_processors(numbers)]
    lines += ["", "### Sources", ""]
    lines += [f"{number}. {_linked(source)}" for source, number in numbers.items()]
    return "\n".join(lines) + "\n"


def _table(runtime: Runtime) -> Iterator[str]:
    yield f"| GPU | {' | '.join(Format)} |"
    yield "|---" * (len(Format) + 1) + "|"
    for chips, found in rows(runtime):
        yield f"| {span(chips)} | {' | '.join(cell.verdict + cell.mark for cell in found)} |"


def _why(runtime: Runtime, numbers: dict[Source, int]) -> Iterator[str]:
    """A line a rule, with the GPUs that it decides on."""
    decided: dict[tuple[int, Format], list[Chip]] = {}
    for chip in CHIPS:
        for format in Format:
            rule = cells()[chip.capability, format, runtime]
            decided.setdefault((RULES.index(rule), format), []).append(chip)
    told: dict[str, list[str]] = {}
    for (index, format), chips in sorted(decided.items(), key=lambda item: item[0][0]):
        rule = RULES[index]
        text = f"({_where(chips)}) *{rule.verdict}*: {_generally(rule, format, runtime, chips)}"
        told.setdefault(f"{text} {_cited(rule.sources, numbers)}", []).append(format)
    every = list(Format)
    for text, formats in told.items():
        yield f"- **{'every format' if formats == every else ', '.join(formats)}** {text}"
    for note in NOTES:
        if runtime in note.runtimes:
            where = ", ".join(map(dotted, note.chips))
            yield f"- **note** ({where}): {note.text} {_cited(note.sources, numbers)}"


def _where(chips: Sequence[Chip]) -> str:
    """Runs of neighbours in the table, such as ``7.5, 8.6 to 8.9``."""
    order = {chip: index for index, chip in enumerate(CHIPS)}
    runs = groupby(enumerate(chips), key=lambda pair: order[pair[1]] - pair[0])
    return ", ".join(span([chip for _, chip in run]) for _, run in runs)


def _generally(rule: Rule, format: Format, runtime: Runtime, chips: Iterable[Chip]) -> str:
    """What a rule says of no GPU in particular."""
    first = first_with(format)
    needs = f"{format} needs {dotted(first.capability)} ({first.architecture}) or later"
    why = rule.why.replace("; {gpu} is {cc}", "").replace(", and {gpu} is {cc}", "")
    why = why.format(gpu="the GPU", cc="it", format="it", runtime=runtime.short, needs=needs)
    instead = rule.instead
    if instead is None:
        ways = dict.fromkeys(instead_of(format, c).removeprefix("use ") for c in chips)
        instead = f"Use {' or '.join(ways)}."
    return f"{why} {instead}".strip()


def _processors(numbers: dict[Source, int]) -> Iterator[str]:
    yield "| kind | runtime | instruction | sums in | weights | what follows |"
    yield "|---|---|---|---|---|---|"
    for kind in KINDS:
        for runtime in CpuRuntime:
            found = cpu_support(named_cpu(kind), runtime)
            follows = f"{found.why} {found.instead} {_cited(found.sources, numbers)}"
            yield (
                f"| {kind} | {runtime} | {found.instruction} | {found.sum_bits} bits "
                f"| {found.weight_bits} bits | {follows} |"
            )


def _sources() -> Iterable[Source]:
    """Every source that something rests on, once, in order."""
    every = [CUDA_GPUS, LEGACY_GPUS]
    every += [source for rule in RULES for source in rule.sources]
    every += [source for note in NOTES for source in note.sources]
    every += [
        source
        for kind in KINDS
        for runtime in CpuRuntime
        for source in cpu_support(named_cpu(kind), runtime).sources
    ]
    return dict.fromkeys(every)


def _cited(sources: Sequence[Source], numbers: dict[Source, int]) -> str:
    return "".join(f"[{numbers[source]}]" for source in dict.fromkeys(sources))


def _linked(source: Source) -> str:
    return source.title if source.url is None else f"[{source.title}]({source.url})"
