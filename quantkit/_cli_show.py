"""What commands print: tables for people on standard output, JSON for machines."""

from __future__ import annotations

import io
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from quantkit._cli_process import leads
from quantkit.interfaces import Finding, Inspection, Severity

if TYPE_CHECKING:
    from quantkit.checking import CheckReport
    from quantkit.graph.plan import Placement
    from quantkit.layer_parity import LayerParity
    from quantkit.model import Judged
    from quantkit.onnx.parity import OutputParity
    from quantkit.recipe import Recipe

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


class Screen:
    """Where one command prints: nothing but its JSON, or everything else."""

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._console = Console(file=stream, highlight=False, quiet=as_json)

    @property
    def width(self) -> int:
        """Characters on a line."""
        return self._console.width

    def json(self, value: Any) -> None:
        """Print ``value``, if JSON is wanted."""
        if self._as_json:
            print(json.dumps(value, indent=2), file=self._stream)

    def line(self, text: str = "", style: str = "", *, copied: bool = False) -> None:
        """One line of text, left whole where it is to be copied; nothing in it is markup."""
        self._console.print(Text(text, style=style), soft_wrap=copied)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; the last column takes the room that is left."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for index, title in enumerate(head):
            # Names are folded, never cut: people copy them from here.
            table.add_column(title, overflow="fold", ratio=1 if index == len(head) - 1 else None)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def findings(self, findings: Iterable[Finding], *, every_one: bool = True) -> None:
        """Where, why, and below it what to do; or of each rule the first, and where else."""
        groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
        for finding in findings:
            own = (finding.where, finding.why) if every_one else ()
            groups[finding.severity, finding.code, finding.fix, *own].append(finding)
        for first, *others in groups.values():
            text = Text(f"{first.severity}[{first.code}]", style=_STYLES[first.severity])
            text.append(f" {first.where}: {first.why}", style="not bold default")
            self._console.print(text)
            if others:
                self.line(f"  Also {_listed([finding.where for finding in others])}", "dim")
            self.line(f"  Fix: {first.fix}", "dim")

    def warnings(self, findings: Iterable[Finding]) -> None:
        """A line each on standard error, whatever is printed on standard output."""
        for finding in findings if leads() else ():
            print(finding, file=sys.stderr)

    def coverage(self, inspection: Inspection, *, every_layer: bool) -> None:
        """How many layers run in what, and why not in low precision; or each layer."""
        layers = inspection.layers
        self.line(f"Runs on {inspection.target}", "bold")
        if every_layer:
            head = ("layer", "operator", "runs in", "why")
            self.table(head, ((x.node, x.op_type, x.precision, x.reason) for x in layers))
        else:
            groups = _grouped(((x.op_type, x.precision, x.reason), x.node) for x in layers)
            self.table(("layers", "operator", "runs in", "why"), groups)
        left = len(layers) - inspection.planned
        also = f"; {count(left, 'layer')} left in float" if left else ""
        planned = count(inspection.planned, "quantized layer")
        self.line(f"In low precision: {inspection.covered} of {planned}{also}")

    def parity(self, outputs: Sequence[OutputParity], batches: int, runtime: str) -> None:
        """How far each output is from the reference's, in the runtime that ran them."""
        if not outputs:
            return
        told = f"{batches} {'batch' if batches == 1 else 'batches'}"
        self.line()
        self.line(f"Beside the reference, over {told}, in {runtime}", "bold")
        rows = [
            (
                f"{o.sqnr:.1f} dB",
                f"{o.largest:.3g}",
                "-" if o.agreement is None else f"{o.agreement:.2%}",
                o.name,
            )
            for o in outputs
        ]
        self.table(("SQNR", "largest difference", "predictions agree", "output"), rows)

    def layer_parity(self, found: LayerParity, *, every_layer: bool) -> None:
        """Where the file leaves the simulation; every tensor, or those that tell the most."""
        self.line()
        self.line(
            f"Layer by layer, over {count(found.samples, 'sample')}, in ONNX Runtime, SQNR", "bold"
        )
        head, rows = found.table()
        if not every_layer:
            told = set(found.telling())
            rows = [row for row, tensor in zip(rows, found.tensors, strict=True) if tensor in told]
        self.table(head, rows)
        left = len(found.tensors) - len(rows)
        if left:
            self.line(f"{count(left, 'tensor')} more: --layers shows all", "dim")
        for note in found.notes:
            self.line(note, "dim")

    def checked(self, report: CheckReport, *, every_layer: bool) -> None:
        """Findings first, then coverage and parity, then the verdict."""
        self.json(json.loads(report.to_json()))
        self.findings(report.findings, every_one=every_layer)
        if report.findings:
            self.line()
        self.coverage(report.coverage, every_layer=every_layer)
        program = report.model.endswith(".pt2")  # ONNX has one runtime that is everywhere
        runtime = report.target if program else "ONNX Runtime"
        self.parity(report.outputs, report.batches, runtime)
        if report.layer_parity is not None:
            self.layer_parity(report.layer_parity, every_layer=every_layer)
        self.line()
        errors = sum(finding.severity is Severity.ERROR for finding in report.findings)
        if report.ok:
            self.line(f"ok: {report.model} has no errors", "bold green")
        else:
            self.line(f"not ok: {report.model} has {count(errors, 'error')}", "bold red")

    def built(
        self, inspection: Inspection, output: Path, written: int, *, every_layer: bool
    ) -> None:
        """What a target wrote, and how it runs."""
        layers = [asdict(layer) for layer in inspection.layers]
        findings = [asdict(finding) for finding in inspection.findings]
        self.json({"output": str(output), "bytes": written, "target": inspection.target,
                   "seconds": inspection.seconds, "planned": inspection.planned,
                   "covered": inspection.covered, "layers": layers, "findings": findings,
                   })  # fmt: skip
        self.findings(inspection.findings, every_one=every_layer)
        self.coverage(inspection, every_layer=every_layer)
        self.line(f"Wrote {output}: {size(written)}, built in {inspection.seconds:.1f} s.", "green")

    def quantized(
        self,
        plan: Placement,
        recipe: Recipe,
        *,
        output: Path,
        form: str,
        bytes_before: int,
        bytes_after: int,
        seconds: float,
        warnings: Sequence[Finding] = (),
        training: Mapping[str, Any] | None = None,
        judged: Sequence[Judged] = (),
    ) -> None:
        """How many layers are quantized, what is float and why, and what was written."""
        lacking = _lacking(plan)
        self.warnings(lacking)
        told = [asdict(finding) for finding in (*warnings, *lacking)]
        self.json({"output": str(output), "bytes": bytes_after, "float_bytes": bytes_before,
                   "recipe": recipe.name, "form": form, "seconds": seconds, "warnings": told,
                   **({} if training is None else {"training": training}),
                   **({"judged": [_finite(asdict(step)) for step in judged]} if judged else {}),
                   "plan": json.loads(plan.to_json())})  # fmt: skip
        self.planned(plan, recipe)
        if judged:
            self.line("SQNR of the outputs on calibration samples held out, before and after")
        for step in judged:
            self.line(f"  {step}")
        self.line(
            f"Wrote {output}: {size(bytes_after)}; the float weights take {size(bytes_before)}, "
            f"{bytes_before / bytes_after:.1f} times that.",
            "green",
        )
        x86, nvidia = ("onnxruntime", "tensorrt_rtx")
        if output.suffix == ".pt2":
            x86, nvidia = ("inductor", "torch_tensorrt")
        runtime = x86 if form == "onnxruntime" else nvidia
        self.line(f"Next: quantkit check {output} --target {runtime}", "dim")

    def planned(self, plan: Placement, recipe: Recipe) -> None:
        """How many layers are quantized, to what, and what is float and why."""
        layers = [d for d in plan.decisions if d.kind != "add"]
        left = [d for d in layers if not d.quantized]
        self.line(f"{len(plan.quantized)} of {count(len(layers), 'layer')} quantized", "bold")
        for name, spec in _formats(recipe).items():
            self.line(f"  {name}: {spec}")
        if left:
            groups = _grouped(((d.kind, "float", d.reason), d.op) for d in left)
            self.table(("layers", "operator", "runs in", "why"), groups)

    def recipes(self, known: Sequence[Recipe]) -> None:
        """Every recipe, and what it is for."""
        self.json([{"name": r.name, "description": r.description} for r in known])
        self.table(("recipe", "what it is for"), ((r.name, r.description) for r in known))

    def recipe(self, recipe: Recipe, against: Mapping[str, Sequence[Finding]]) -> None:
        """One recipe as YAML, and what follows from it."""
        kinds = {scheme.kind for scheme in recipe.schemes()}
        calibrated = any(scheme.activations is not None for scheme in recipe.schemes())
        self.json({"name": recipe.name, **recipe.model_dump(mode="json", exclude={"name"}),
                   "kinds": sorted(kinds), "needs_data": calibrated,
                   "targets": {t: [asdict(f) for f in found] for t, found in against.items()},
                   })  # fmt: skip
        self.line(f"# {recipe.name}", "bold")
        self._console.print(Text(recipe.to_yaml()), soft_wrap=True)  # to be copied as it is
        for name, spec in _formats(recipe).items():
            self.line(f"{name}: {spec}")
        self.line(f"calibration data: {'needed' if calibrated else 'not needed'}")
        for target, found in against.items():
            errors = [f for f in found if f.severity is Severity.ERROR]
            verdict = "refuses it" if errors else "runs it, with warnings" if found else "runs it"
            self.line(f"{target}: {verdict}")
            self.findings(found)


def _lacking(plan: Placement) -> list[Finding]:
    """What a user who sees the exit code alone would miss: nothing quantized, a vain override."""
    found = [
        Finding(
            severity=Severity.WARNING,
            code="unused-override",
            where=f"recipe {plan.recipe}",
            why=f"The override {text} matched no layer.",
            fix="Correct its pattern; without --json, quantize lists what is float and why.",
        )
        for text in plan.unused
    ]
    if not plan.quantized:
        groups: dict[str, list[str]] = defaultdict(list)
        for decision in plan.decisions:
            if decision.kind != "add":
                groups[decision.reason].append(decision.op)
        reasons = [f"{reason} ({_listed(names)})" for reason, names in groups.items()]
        none = "it has no convolution, linear layer or matrix product"
        nothing = Finding(
            severity=Severity.WARNING,
            code="nothing-quantized",
            where="model",
            why=f"Nothing is quantized, the file is the float model: {'; '.join(reasons) or none}.",
            fix="Change what the reasons name in the recipe, or deploy the float model.",
        )
        found.insert(0, nothing)
    return found


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for it."""
    infinite = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in infinite else value for key, value in values.items()}


def _formats(recipe: Recipe) -> dict[str, str]:
    """Weights and activations of the recipe's own scheme, in words."""
    scheme = recipe.scheme.scheme()
    parts = {"weights": scheme.weights, "activations": scheme.activations}
    return {name: "float" if spec is None else str(spec) for name, spec in parts.items()}


@contextmanager
def screen(as_json: bool) -> Iterator[Screen]:
    """The screen of a command; what others print meanwhile goes to standard error."""
    stream = sys.stdout if leads() else io.StringIO()
    with redirect_stdout(sys.stderr):
        yield Screen(stream, as_json)


def count(number: int, noun: str) -> str:
    """``1 layer``, ``2 layers``.

    Example:
        >>> count(1, "error"), count(0, "error")
        ('1 error', '0 errors')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """Bytes for people, such as ``1.2 MB``."""
    return decimal(number)


def _grouped(layers: Iterable[tuple[tuple[str, str, str], str]]) -> Iterator[tuple[str, ...]]:
    """Layers that run alike and for one reason, together; those with a reason are named."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for kind, name in layers:
        groups[kind].append(name)
    for (operator, precision, reason), names in groups.items():
        yield str(len(names)), operator, precision, reason and f"{reason} ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
