"""Sections that tell what is known already: the plan, the recipe, the grids, the machine."""

from __future__ import annotations

import platform
from dataclasses import asdict

import torch

from quantkit import __version__, hardware
from quantkit.analysis.calibrators import TensorComparison
from quantkit.analysis.pictures import bars
from quantkit.graph.abstract import Kind
from quantkit.interfaces import Finding, Severity
from quantkit.model import QuantizedModel
from quantkit.numerics import QParams
from quantkit.observer import Observer
from quantkit.reporting.section import Data, Unavailable
from quantkit.reporting.subject import Subject

#: Bars of a histogram in a report: as many as can be told apart in a small picture.
BARS = 96


def plan_section(subject: Subject) -> Data:
    """Every decision with its reason, every activation with its grid."""
    plan = subject.quantized.plan
    return {
        "recipe": plan.recipe,
        "quantized": len(plan.quantized),
        "layers": sum(d.kind is not Kind.ADD for d in plan.decisions),
        "decisions": [
            {"layer": d.op, "kind": str(d.kind), "quantized": d.quantized, "why": d.reason}
            for d in plan.decisions
        ],
        "tensors": [
            {"tensor": t.tensor, "role": t.role, "form": str(t.spec), "grid": t.grid,
             "own_grid": t.grid == t.tensor, "readers": [edge.op for edge in t.edges],
             "why": t.reason}
            for t in plan.tensors
        ],
        "unused_overrides": list(plan.unused),
    }  # fmt: skip


def plan_findings(subject: Subject) -> list[Finding]:
    """Overrides of the recipe that matched no layer, and a plan that quantizes nothing."""
    plan = subject.quantized.plan
    found = [
        Finding(
            severity=Severity.WARNING,
            code="unused-override",
            where=f"recipe {plan.recipe}",
            why=f"The override {text} matched no layer.",
            fix="Correct its pattern; the plan lists the layers.",
        )
        for text in plan.unused
    ]
    if not plan.quantized:
        nothing = Finding(
            severity=Severity.WARNING,
            code="nothing-quantized",
            where="model",
            why="Nothing is quantized: the deployed file is the float model.",
            fix="Change what the plan's reasons name in the recipe.",
        )
        found.insert(0, nothing)
    return found


def recipe_section(subject: Subject) -> Data:
    """The recipe as a file, and what each step that learned from data was worth."""
    recipe = subject.recipe
    judged = subject.quantized.judged if isinstance(subject.quantized, QuantizedModel) else ()
    return {
        "name": recipe.name,
        "description": recipe.description,
        "yaml": recipe.to_yaml(),
        "steps": [asdict(step) for step in judged],
    }


def histograms_section(subject: Subject) -> Data:
    """Of each activation what calibration saw, and where its grid ends.

    Raises:
        Unavailable: no activation is quantized.
    """
    if subject.calibrators is None:
        raise Unavailable(
            f"Recipe {subject.recipe.name} quantizes no activation, so nothing was calibrated."
        )
    grids = _grids(subject)
    return {
        "samples": subject.data.samples,
        "calibrator": subject.recipe.calibrator.name,
        "tensors": [
            _histogram(observer, compared, grids[observer.name])
            for observer, compared in zip(
                subject.observers, subject.calibrators.tensors, strict=True
            )
        ],
    }


def _grids(subject: Subject) -> dict[str, QParams]:
    """The grids of activations by their names."""
    quantized = subject.quantized
    if isinstance(quantized, QuantizedModel):
        return {grid: q.qparams for grid, q in quantized.quantizers.items() if q.observer}
    return {grid: quantized.grids[grid] for grid in quantized.observers}


def _histogram(observer: Observer, compared: TensorComparison, qparams: QParams) -> Data:
    """One activation: the widest range of all channels, and the counts of all together."""
    state = observer.state
    drawn = bars(state["counts"], state["exponent"], BARS)
    low, high = ends(qparams)
    counts = drawn.counts.double()
    # Bars that lie outside as a whole: those across an end are counted inside.
    outside = (drawn.edges[1:] <= low) | (drawn.edges[:-1] >= high)
    return {
        "tensor": observer.name,
        "form": compared.form,
        "low": compared.low,
        "high": compared.high,
        "grid_low": low,
        "grid_high": high,
        "step": float(qparams.scale.max()),
        "outside": float(counts[outside].sum() / counts.sum().clamp(min=1.0)),
        "count": int(drawn.counts.sum()),
        "edges": [round_to(x) for x in drawn.edges.tolist()],
        "counts": drawn.counts.tolist(),
        "calibrators": [
            {"calibrator": r.calibrator, "low": r.low, "high": r.high, "sqnr": r.sqnr}
            for r in compared.ranges
        ],
    }


def ends(qparams: QParams) -> tuple[float, float]:
    """The least and the greatest value of a grid, the widest of all channels.

    Example:
        >>> from quantkit.spec import QuantSpec
        >>> one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
        >>> ends(QParams(scale=one, zero_point=zero, spec=QuantSpec()))
        (-128.0, 127.0)
    """
    spec = qparams.spec
    codes = torch.tensor([-448.0, 448.0] if spec.is_float else [spec.qmin, spec.qmax])
    values = (codes - qparams.zero_point.unsqueeze(-1)) * qparams.scale.unsqueeze(-1)
    return float(values.min()), float(values.max())


def round_to(value: float, digits: int = 6) -> float:
    """So many digits that count: a picture needs no more, and a report is to be small.

    Example:
        >>> round_to(0.123456789)
        0.123457
    """
    return float(f"{value:.{digits}g}")


def environment_section(threads: int) -> Data:
    """What everything was measured with."""
    machine = hardware.detect()
    cpu = machine.cpu
    return {
        "quantkit": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": None if cpu is None else cpu.name,
        "processor_kind": None if cpu is None else cpu.kind,
        "vnni": None if cpu is None else cpu.has_vnni,
        "threads": threads,
        "gpus": [device.gpu.name for device in machine.gpus.devices],
        "why_no_gpu": machine.gpus.why_none,
        "runtimes": dict(sorted(machine.runtimes.items())),
    }
