"""``report``: quantize a model, look at it from all sides, and tell it on one page."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from quantkit import plugins
from quantkit.benching.report import Method
from quantkit.data import Data as OpenedData
from quantkit.data import DataSpec
from quantkit.interfaces import Target
from quantkit.recipe import Recipe
from quantkit.reporting import analysed, measured, told
from quantkit.reporting.joining import joined_findings, joined_layers
from quantkit.reporting.section import TITLES, Data, Section, attempt, require_known
from quantkit.reporting.subject import Model, Subject, made
from quantkit.reporting.values import Report as Report
from quantkit.reporting.values import summary
from quantkit.workflow import resolve_recipe

#: Samples by which sections judge, where none are told.
SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How the sections are made.

    Attributes:
        evaluation: data for a metric; ``None`` for none.
        labelled: whether they have labels.
        targets: where the model may run, by name.
        without: sections to leave out.
        trials: of changes of the recipe; 0 for none.
        batches: sizes to time; ``None`` for those of ``bench``.
        threads: of the processor, for times.
        method: how times are measured; ``None`` for the report's own way.
    """

    evaluation: Iterable[Any] | None
    labelled: bool
    targets: Mapping[str, Target | None]
    without: tuple[str, ...]
    trials: int
    batches: Sequence[int] | None
    threads: int
    method: Method | None


def report(
    model: Model,
    recipe: str | Path | Recipe = "int8_ptq",
    *,
    calibration: Iterable[Any],
    evaluation: Iterable[Any] | None = None,
    targets: Mapping[str, Target | None] | Sequence[str] | None = None,
    samples: int = SAMPLES,
    without: Sequence[str] = (),
    trials: int = 0,
    batches: Sequence[int] | None = None,
    threads: int = 1,
    method: Method | None = None,
    name: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Quantize ``model`` by ``recipe``, and tell what came of it and what to change.

    A section that cannot be made says why, and does not cost the others.

    Args:
        model: in float: a module, a program of ``torch.export``, or the path of an ONNX file; it
            is not changed.
        recipe: a name, a path to a YAML file, or a ``Recipe``.
        calibration: batches that can be read again.
        evaluation: batches for a metric of float and quantized: pairs with labels (or a
            ``DataSpec`` that names them), else the float model's predictions are the labels.
        targets: where the model may run, by name or with their options; by default all that read
            ONNX. ``None`` stands for one that is not asked.
        samples: the first so many of ``calibration`` are kept, and sections judge by them.
        without: names of sections that are not wanted.
        trials: so many changes of the recipe, which the errors of layers speak for, are tried, as
            ``diagnose`` does; each is calibrated and measured.
        batches: samples a run, for times.
        threads: of the processor for each timed run.
        method: how times are measured.
        name: what the model is called on the page.
        tell: is given each section's title before it is made.

    Raises:
        QuantkitError: the model cannot be quantized, as of ``quantize``; or a section that is to
            be left out, or a target, is unknown.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> others = ("latency", "accuracy", "profile", "layer_parity", "diagnosis", "sensitivity")
        >>> found = report(net, calibration=[torch.randn(8, 64)], targets=["onnxruntime"],
        ...                without=others)
        >>> found.summary["quantized"], found.failed
        (1, ())
    """
    started = time.perf_counter()
    require_known(without)
    chosen = Choices(
        evaluation=evaluation, labelled=_labelled(evaluation), targets=_targets(targets),
        without=tuple(without), trials=trials, batches=batches, threads=threads, method=method,
    )  # fmt: skip
    resolved = resolve_recipe(recipe)
    told_of = tell or (lambda title: None)
    with tempfile.TemporaryDirectory(prefix="quantkit-report-") as folder:
        told_of("Quantizing")
        called = name or (model.name if isinstance(model, Path) else type(model).__name__)
        subject = made(model, resolved, calibration, Path(folder), samples, called)
        sections = _sections(subject, chosen, told_of)
    return _joined(subject, sections, time.perf_counter() - started)


def _sections(
    subject: Subject, chosen: Choices, tell: Callable[[str], None]
) -> tuple[Section, ...]:
    diagnosed = cache(partial(analysed.diagnosis_of, subject))
    makers: dict[str, Callable[[], Data]] = {
        "outputs": lambda: measured.outputs_section(subject),
        "accuracy": lambda: measured.accuracy_section(subject, chosen.evaluation, chosen.labelled),
        "layer_parity": lambda: analysed.layer_parity_section(subject),
        "coverage": lambda: measured.coverage_section(subject, chosen.targets),
        "latency": lambda: measured.latency_section(
            subject, chosen.batches, chosen.threads, chosen.method
        ),
        "sensitivity": lambda: analysed.sensitivity_section(subject),
        "diagnosis": lambda: analysed.told_diagnosis(diagnosed()),
        "advice": lambda: analysed.advice_section(subject, diagnosed, chosen.trials),
        "profile": lambda: analysed.profile_section(subject, chosen.threads),
        "histograms": lambda: told.histograms_section(subject),
        "plan": lambda: told.plan_section(subject),
        "recipe": lambda: told.recipe_section(subject),
        "environment": lambda: told.environment_section(chosen.threads),
    }
    sections = []
    for name in TITLES:
        tell(TITLES[name])
        sections.append(attempt(name, makers[name], chosen.without))
    return tuple(sections)


def _joined(subject: Subject, sections: tuple[Section, ...], seconds: float) -> Report:
    """The report of all sections, with what they say together."""
    data = {s.name: s.data for s in sections if s.data is not None}
    others = {"plan": told.plan_findings(subject)}
    if "outputs" in data:
        others["outputs"] = measured.outputs_findings(data["outputs"])
    findings = joined_findings(data, others)
    return Report(
        model=subject.name,
        recipe=subject.recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        calibrated=subject.data.samples,
        seconds=seconds,
        summary=summary(data, findings),
        findings=tuple(findings),
        layers=tuple(joined_layers(data)),
        sections=sections,
    )


def _targets(
    given: Mapping[str, Target | None] | Sequence[str] | None,
) -> Mapping[str, Target | None]:
    if isinstance(given, Mapping):
        return given
    if given is not None:
        return {name: plugins.find("targets", name, Target)() for name in given}
    known = {n: plugins.find("targets", n, Target)() for n in plugins.names("targets")}
    return {name: place if place.reads == "onnx" else None for name, place in known.items()}


def _labelled(evaluation: Iterable[Any] | None) -> bool:
    """Whether data for a metric have labels, as far as they tell before they are read."""
    if isinstance(evaluation, OpenedData | DataSpec):
        spec = evaluation.spec if isinstance(evaluation, OpenedData) else evaluation
        return spec.label is not None
    return evaluation is not None
