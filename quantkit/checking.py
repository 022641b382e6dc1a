"""``check``: is a file what it says, on the target and beside its reference?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantkit import nvtx, plugins
from quantkit.checking_files import facts_of, parity, require_kind
from quantkit.comparing import DEPLOYED as DEPLOYED
from quantkit.comparing import NotRunError, Reference, deployment
from quantkit.comparing import judge as judge
from quantkit.errors import DataError
from quantkit.interfaces import Finding, Inspection, LayerCoverage, Severity, Target
from quantkit.layer_parity import LayerParity, compare_layers
from quantkit.model import QuantizedModel
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.lint import lint
from quantkit.onnx.parity import OutputParity
from quantkit.parity.findings import DEPARTS
from quantkit.parity.kept import Kept
from quantkit.targets._tensorrt_gpu import this_gpu
from quantkit.targets.onnxruntime import OnnxRuntime

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What ``check`` found out about a file.

    Attributes:
        model: the file.
        target: what it was checked for, such as ``tensorrt_rtx (SM86)``.
        recipe: the recipe that made it; ``None`` where the file does not tell.
        layers: how each compute layer runs there, in graph order.
        findings: what is wrong or slow, the worst first.
        outputs: how far each output is from the reference's; empty where there was none.
        layer_parity: float, simulated and deployed, layer by layer; ``None`` where there was no
            quantized model to compare with.
        batches: how many batches were compared.
        seconds: how long the target took to build it.
    """

    model: str
    target: str
    recipe: str | None
    layers: tuple[LayerCoverage, ...]
    findings: tuple[Finding, ...]
    outputs: tuple[OutputParity, ...]
    layer_parity: LayerParity | None
    batches: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not any(f.severity is Severity.ERROR for f in self.findings)

    @property
    def coverage(self) -> Inspection:
        """The layers alone, with their counts."""
        return Inspection(target=self.target, layers=self.layers, seconds=self.seconds)

    def to_json(self) -> str:
        """Every field, and ``ok``; ``null`` where a figure is not finite (no noise, or NaN)."""
        return json.dumps(_plain({"ok": self.ok, **asdict(self)}))

    def __str__(self) -> str:
        """The verdict, the findings, coverage and parity, a line each."""
        verdict = "ok" if self.ok else "not ok"
        lines = [f"{self.model} on {self.target}: {verdict}"]
        lines += [str(finding) for finding in self.findings]
        counts = self.coverage
        lines.append(
            f"{counts.covered} of {counts.planned} layers that the file quantizes run in low "
            f"precision, of {len(self.layers)} layers in all"
        )
        lines += [_told(output) for output in self.outputs]
        return "\n".join(lines if self.layer_parity is None else [*lines, str(self.layer_parity)])


@nvtx.phase("check")
def check(
    model: Path | str,
    target: str | Target = "tensorrt_rtx",
    *,
    reference: Reference | None = None,
    data: Iterable[Any] | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    simulated: QuantizedModel | None = None,
    floating: QuantizedModel | None = None,
    layer_samples: int = 64,
    min_layer_sqnr: float = DEPARTS,
) -> CheckReport:
    """Tell what is wrong or slow about a quantized file, before it is deployed.

    The file is linted (if it is ONNX), then built by the target, which tells how each layer runs.
    With a reference and data it is also run, batch by batch, and compared: an ONNX file in ONNX
    Runtime, a program on the target itself. With the quantized model, an ONNX file is compared
    layer by layer too (`compare_layers`): in ONNX Runtime, and on the target where there is a GPU.

    Args:
        model: the file that the target reads: ONNX, or a program of ``export_pt2``.
        target: a name or a target with its options.
        reference: the float model (a module, a program of ``torch.export`` or an ONNX file), or
            the ``QuantizedModel``, whose outputs the file should repeat.
        data: batches, as for ``quantize``.
        min_sqnr: an error where an output has less, in dB. A ``QuantizedModel`` as the reference
            has ``DEPLOYED`` where none is given: the file is that model.
        min_agreement: an error where predictions agree in less than this share, from 0 to 1.
        simulated: the quantized model that the file was written of; the reference, if that is one.
        floating: the same in float, see `float_twin`: tells what quantization costs each layer.
        layer_samples: about how many samples to compare layer by layer; 0 for none.
        min_layer_sqnr: an error where a layer, or an activation behind its Q/DQ, repeats the
            simulation worse than this by its own doing, in dB.

    Raises:
        ModelFileError: there is no such file, or it is not one that the target reads.
        DataError: the data do not fit, or only one of ``reference`` and ``data`` is given.
        TargetError: a model fails on the data.
        MissingDependencyError: the target's SDK is not installed.
    """
    _consistent(reference, data, min_sqnr, min_agreement, layer_samples, min_layer_sqnr)
    path, place = Path(model), find_target(target)
    require_kind(path, place)
    facts = facts_of(path, place)
    findings = lint(path, place.form) if place.reads == "onnx" else []
    inspection = place.inspect(path)
    findings += [*_none_in_int8(place, inspection, facts), *inspection.findings, *_unused(facts)]
    outputs: tuple[OutputParity, ...] = ()
    count, layers = 0, None
    if simulated is None and isinstance(reference, QuantizedModel):
        simulated = reference
    if reference is not None and data is not None:
        kept = Kept(data, layer_samples if simulated is not None and place.reads == "onnx" else 0)
        try:
            outputs, count = parity(path, place, inspection, facts, reference, kept)
            if simulated is not None and kept.batches:
                layers = compare_layers(
                    path, simulated, kept.batches, floating=floating, samples=layer_samples,
                    target=_runs_beside(place), min_sqnr=min_layer_sqnr,
                )  # fmt: skip
                findings += layers.findings
        except NotRunError as error:
            findings.append(_not_run(path, str(error)))
        findings += [f for o in outputs for f in judge(o, min_sqnr, min_agreement)]
        if isinstance(reference, QuantizedModel) and min_sqnr is None:
            sound = layers is not None and layers.departs is None
            findings += [f for o in outputs for f in deployment(o, sound=sound)]
    # The linter and the target may tell of one thing: the first to tell is kept.
    unique: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        unique.setdefault((finding.code, finding.where), finding)
    return CheckReport(
        model=str(path),
        target=inspection.target,
        recipe=facts.recipe,
        layers=with_reasons(inspection.layers, facts),
        findings=tuple(sorted(unique.values(), key=lambda f: _ORDER[f.severity])),
        outputs=outputs,
        layer_parity=layers,
        batches=count,
        seconds=inspection.seconds,
    )


def find_target(target: str | Target) -> Target:
    """A target by its name, with its own defaults.

    Raises:
        RecipeError: there is no such target.

    Example:
        >>> find_target("onnxruntime").form
        'onnxruntime'
    """
    return plugins.find("targets", target, Target)() if isinstance(target, str) else target


def _runs_beside(place: Target) -> Target | None:
    """The target, where it runs files here and is not ONNX Runtime."""
    return None if isinstance(place, OnnxRuntime) or this_gpu() is None else place


def _none_in_int8(place: Target, inspection: Inspection, facts: FileFacts) -> list[Finding]:
    """A file for TensorRT, whose convolutions ONNX Runtime runs in float one and all."""
    activations = facts.plan is None or any(t.role == "activation" for t in facts.plan.tensors)
    runs = inspection.covered or not inspection.planned
    if not isinstance(place, OnnxRuntime) or facts.recipe == "int8_cpu" or runs or not activations:
        return []
    made = f"recipe {facts.recipe}" if facts.recipe else "it"
    return [
        Finding(
            severity=Severity.WARNING,
            code="none-in-int8",
            where=f"{inspection.planned} layers",
            why=f"Of the layers that {made} quantizes none runs in INT8 in ONNX Runtime.",
            fix="Quantize with --recipe int8_cpu for ONNX Runtime.",
        )
    ]


def _not_run(path: Path, why: str) -> Finding:
    return Finding(
        severity=Severity.ERROR,
        code="parity-not-run",
        where=path.name,
        why=f"It could not be compared: {why.rstrip('.')}.",
        fix="Mend the errors beside this one, or export it for ONNX Runtime and compare that.",
    )


def _consistent(
    reference: Reference | None,
    data: Iterable[Any] | None,
    min_sqnr: float | None,
    min_agreement: float | None,
    layer_samples: int,
    min_layer_sqnr: float,
) -> None:
    if (reference is None) != (data is None):
        missing = "reference" if reference is None else "data"
        raise DataError(f"parity needs a reference and data, and {missing} is missing; give both")
    if data is None and (min_sqnr is not None or min_agreement is not None):
        raise DataError(
            "min_sqnr and min_agreement judge a comparison; give reference and data as well"
        )
    if not layer_samples >= 0 or math.isnan(min_layer_sqnr):
        raise DataError(
            f"layer_samples is a count and min_layer_sqnr a number of dB, got {layer_samples} and "
            f"{min_layer_sqnr}; write 64 and 50"
        )
    if min_agreement is not None and not 0.0 <= min_agreement <= 1.0:
        raise DataError(
            f"min_agreement is a share from 0 to 1, got {min_agreement}; write 0.99 for 99 %"
        )


def _unused(facts: FileFacts) -> list[Finding]:
    """Overrides of the recipe that matched no layer."""
    return [
        Finding(
            severity=Severity.WARNING,
            code="unused-override",
            where=f"recipe {facts.recipe}",
            why=f"The override {text} matched no layer.",
            fix="Correct its pattern; `quantkit check --layers` lists the layers.",
        )
        for text in (facts.plan.unused if facts.plan else ())
    ]


def with_reasons(layers: Iterable[LayerCoverage], facts: FileFacts) -> tuple[LayerCoverage, ...]:
    """The plan knows why a layer was left in float; a target sees only that it is."""
    decisions = {d.op: d for d in facts.plan.decisions} if facts.plan else {}

    def explain(layer: LayerCoverage) -> LayerCoverage:
        decision = decisions.get(facts.layer_of.get(layer.node, layer.node))
        if layer.quantized or decision is None or decision.quantized:
            return layer
        return replace(layer, reason=decision.reason)

    return tuple(explain(layer) for layer in layers)


def _told(output: OutputParity) -> str:
    agreement = "" if output.agreement is None else f", predictions agree in {output.agreement:.2%}"
    return (
        f"{output.name}: SQNR {output.sqnr:.1f} dB, off by {output.largest:.3g} at most{agreement}"
    )


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
