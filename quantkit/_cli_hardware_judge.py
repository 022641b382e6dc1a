"""Whether a recipe, or a format, runs on a GPU or processor."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit import _cli_work as work
from quantkit import hardware, plugins
from quantkit.errors import RecipeError
from quantkit.hardware import CpuRuntime, Format, Gpu, Runtime, Verdict
from quantkit.hardware.gpus import instead_of, needs
from quantkit.interfaces import Finding, Severity, Target
from quantkit.spec import Scheme

#: Whose target of quantkit tells what else it has against a recipe.
_TENSORRTS = ("tensorrt", "tensorrt_rtx", "torch_tensorrt")
#: What ends the codes of findings that a scheme runs in float as a whole.
_IN_FLOAT = ("-emulated", "no-integer-kernel")
#: What ends the codes of findings that the table makes.
_OF_THE_TABLE = ("-hardware", "-emulated", "-in-part")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The question: a recipe or format, and where it is to run.

    Attributes:
        name: a recipe, a YAML file, or a format.
        gpu: the one that is named.
        cpu: the kind of processor.
        runtimes: those that are asked for.
        here: with none named, that of this machine; recipes for processors do not ask it.
    """

    name: str
    gpu: Gpu | None
    cpu: str
    runtimes: tuple[Runtime, ...]
    here: Gpu | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The answer of one runtime.

    Attributes:
        runtime: its name.
        title: its name for people.
        ok: whether it runs.
        verdict: ``runs``, ``refused`` …, or that of the table for a format.
        why: the reasons, and the way out.
    """

    runtime: str
    title: str
    ok: bool
    verdict: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether it runs.

    Attributes:
        name: what was asked for.
        where: the GPU or processor.
        ok: whether it runs in one of the runtimes at least.
        reason: one line: why not, or what follows; no dot at its end.
        rows: each runtime; none where the chip itself lacks it.
    """

    name: str
    where: str
    ok: bool
    reason: str
    rows: tuple[Row, ...] = ()


def judge(asked: Asked) -> Answer:
    """The answer for a recipe or a format.

    Raises:
        RecipeError: there is no such recipe or format, or the recipe is malformed.

    Example:
        >>> gpu, every = Gpu.of("A40"), tuple(Runtime)
        >>> judge(Asked(name="fp8", gpu=gpu, cpu="auto", runtimes=every)).reason
        'fp8 needs compute capability 8.9 (Ada) or later; A40 is 8.6; use int8_ptq'
    """
    names = plugins.names("recipes")
    # A recipe that bears the name of a format (fp8) is answered for as the format.
    if (asked.name in names and asked.name not in set(Format)) or Path(asked.name).suffix in (
        ".yaml",
        ".yml",
    ):
        recipe = work.accepted_recipe(asked.name, None, asked.cpu, None, any_data=True)
        gpu = asked.gpu or (asked.here if recipe.target == "tensorrt" else None)
        if gpu is None:
            return _recipe_on_cpu(recipe.name, recipe.schemes(), asked.cpu)
        return _recipe_on_gpu(recipe.name, recipe.schemes(), gpu, asked.runtimes)
    format, gpu = _format(asked.name, names), asked.gpu or asked.here
    if gpu is None:
        return _format_on_cpu(asked.name, format, asked.cpu)
    return _format_on_gpu(asked.name, format, gpu, asked.runtimes)


def _format(name: str, recipes: Sequence[str]) -> Format:
    try:
        return Format.of(name)
    except RecipeError as error:
        close = difflib.get_close_matches(name, [*recipes, *Format], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(
            f"no recipe or format {name!r}; formats are {', '.join(Format)}; `quantkit recipes` "
            f"lists the recipes{hint}"
        ) from error


def _absent(formats: Iterable[Format], gpu: Gpu) -> str | None:
    """One line on the first format that a chip lacks."""
    for format in formats:
        if gpu.chip is not None and not gpu.chip.has(format):
            return f"{needs(format, gpu)}; {instead_of(format, gpu.chip)}"
    return None


def _format_on_gpu(name: str, format: Format, gpu: Gpu, runtimes: Iterable[Runtime]) -> Answer:
    absent = _absent([format], gpu)
    if absent is not None:
        return Answer(name=name, where=str(gpu), ok=False, reason=absent)
    rows = []
    for runtime in runtimes:
        cell = hardware.support(gpu, format, runtime)
        why = f"{cell.why} {cell.instead}".strip()
        rows.append(
            Row(runtime=runtime, title=runtime.short, ok=cell.runs, verdict=cell.verdict, why=why)
        )
    return _summed(name, gpu, rows)


def _recipe_on_gpu(
    name: str, schemes: Sequence[Scheme], gpu: Gpu, runtimes: Iterable[Runtime]
) -> Answer:
    formats = [Format.of(s.dtype) for x in schemes for s in (x.weights, x.activations) if s]
    absent = _absent(dict.fromkeys(formats), gpu)
    if absent is not None:
        return Answer(name=name, where=str(gpu), ok=False, reason=absent)
    rows = []
    for runtime in runtimes:
        found = hardware.refusals(schemes, gpu, runtime)
        found += _otherwise(schemes, runtime)
        unknown = {f for f in formats if _verdict(gpu, f, runtime) is Verdict.UNKNOWN}
        rows.append(_row(runtime, found, [hardware.support(gpu, f, runtime).why for f in unknown]))
    return _summed(name, gpu, rows)


def _verdict(gpu: Gpu, format: Format, runtime: Runtime) -> Verdict:
    return hardware.support(gpu, format, runtime).verdict


def _otherwise(schemes: Sequence[Scheme], runtime: Runtime) -> list[Finding]:
    """What the target of a runtime has against schemes, whatever the GPU."""
    if runtime is Runtime.INDUCTOR:
        from quantkit.targets.inductor import Inductor

        return Inductor(device="cuda").refusals(schemes)
    target = "tensorrt" if runtime is Runtime.ONNXRUNTIME_TENSORRT else runtime.target
    if target not in _TENSORRTS:
        return []
    found = plugins.find("targets", target, Target)().refusals(schemes)
    return [finding for finding in found if not finding.code.endswith(_OF_THE_TABLE)]


def _row(runtime: Runtime, found: Sequence[Finding], unknown: Sequence[str]) -> Row:
    errors = [f for f in found if f.severity is Severity.ERROR]
    floats = [f for f in found if f.code.endswith(_IN_FLOAT)]
    told = list(dict.fromkeys(f"{f.why} {f.fix}" for f in (errors or floats or found)))
    verdict = "refused" if errors else "in float" if floats else "unknown" if unknown else "runs"
    return Row(
        runtime=runtime,
        title=runtime.short,
        ok=verdict == "runs",
        verdict=verdict,
        why=" ".join(told or unknown),
    )


def _summed(name: str, gpu: Gpu, rows: Sequence[Row]) -> Answer:
    runs = [row.title for row in rows if row.ok]
    if runs:
        reason = f"{name} runs on {gpu} in {', '.join(runs)}"
    elif len(rows) == 1:
        reason = f"{name} on {gpu} in {rows[0].title}: {rows[0].why.rstrip('.')}"
    else:
        reason = f"{name} runs on {gpu} in none of {', '.join(row.title for row in rows)}"
    return Answer(name=name, where=str(gpu), ok=bool(runs), reason=reason, rows=tuple(rows))


def _format_on_cpu(name: str, format: Format, kind: str) -> Answer:
    if format is not Format.INT8:
        raise RecipeError(
            f"the table of processors tells of int8, not of {format}; give --gpu for a GPU"
        )
    cpu = hardware.named_cpu(kind)
    rows = []
    for runtime in CpuRuntime:
        cell = hardware.cpu_support(cpu, runtime)
        verdict = f"{cell.weight_bits}-bit weights"
        why = f"{cell.why} {cell.instead}"
        rows.append(Row(runtime=runtime, title=runtime, ok=True, verdict=verdict, why=why))
    bits = hardware.weight_bits(cpu)
    reason = f"{name} runs on {cpu.name} with weights of {bits} bits"
    return Answer(name=name, where=cpu.name, ok=True, reason=reason, rows=tuple(rows))


def _recipe_on_cpu(name: str, schemes: Sequence[Scheme], kind: str) -> Answer:
    """By ONNX Runtime, as the recipe is fitted to the processor."""
    from quantkit.targets.onnxruntime import OnnxRuntime

    cpu = hardware.named_cpu(kind)
    found = OnnxRuntime(cpu=kind).refusals(schemes)
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    told = " ".join(dict.fromkeys(_sentences(finding) for finding in (errors or found)))
    weights = [s.weights for s in schemes if s.weights is not None]
    bits = {w.bits or 8 for w in weights if w.dtype in ("int8", "uint8")}
    uses = f" with weights of {' or '.join(map(str, sorted(bits)))} bits" if bits else ""
    row = Row(
        runtime=CpuRuntime.ONNXRUNTIME,
        title="onnxruntime",
        ok=not errors,
        verdict="refused" if errors else "with warnings" if found else "runs",
        why=told,
    )
    runs = "does not run" if errors else "runs"
    reason = f"{name} {runs} on {cpu.name}{uses}"
    return Answer(name=name, where=cpu.name, ok=not errors, reason=reason, rows=(row,))


def _sentences(finding: Finding) -> str:
    return f"{finding.why[0].upper()}{finding.why[1:]} {finding.fix}"
