"""Sections that run something: outputs, accuracy, targets, latency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from quantkit.benching.bench import bench
from quantkit.benching.report import BenchReport, Method
from quantkit.benching.sources import UnfitError
from quantkit.checking import CheckReport, check
from quantkit.checking_files import facts_of
from quantkit.comparing import compare, deployment
from quantkit.errors import QuantkitError
from quantkit.interfaces import Finding, Target
from quantkit.model import QuantizedModel
from quantkit.onnx.facts import FileFacts, bytes_on_disk
from quantkit.onnx.parity import OutputParity, ParityMeter
from quantkit.recovering.deployed import Deployed
from quantkit.recovering.metrics import Outputs, find_metric, outputs_of
from quantkit.reporting.section import Data, Unavailable, line
from quantkit.reporting.subject import Subject

#: How times are measured: fewer turns than a bench, which a report is not.
METHOD = Method(turns=10, seconds=5.0)


def outputs_section(subject: Subject) -> Data:
    """The outputs of the float, the simulated and the deployed model, beside one another."""
    file = subject.file()
    pairs: list[tuple[str, str, Iterable[OutputParity]]] = []
    found, _ = compare(file, _reference(subject), subject.batches)
    pairs.append(("deployed", "float", found))
    if isinstance(subject.quantized, QuantizedModel):
        found, _ = compare(file, subject.quantized, subject.batches)
        pairs.append(("deployed", "simulated", found))
        pairs.append(("simulated", "float", _simulated(subject, FileFacts.of(file).outputs)))
    return {
        "samples": subject.samples,
        "form": subject.form,
        "float_bytes": _float_bytes(subject),
        "file_bytes": bytes_on_disk(file),
        "rows": [
            {"model": model, "beside": beside, **asdict(output)}
            for model, beside, outputs in pairs
            for output in outputs
        ],
    }


def _reference(subject: Subject) -> Any:
    return subject.model


def _simulated(subject: Subject, names: Sequence[str]) -> Iterator[OutputParity]:
    """The quantized model beside the float one, both in PyTorch."""
    floating, quantized = subject.float_model(), subject.of_pytorch()[0]
    meters = [ParityMeter(name) for name in names]
    with torch.inference_mode():
        for args, kwargs in subject.calls():
            wanted, got = (_arrays(model(*args, **kwargs)) for model in (floating, quantized))
            for meter, want, own in zip(meters, wanted, got, strict=True):
                meter.update(want, own, own)
    yield from (meter.result() for meter in meters)


def _arrays(outputs: Any) -> list[Any]:
    return [x.numpy() for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor)]


def outputs_findings(data: Data) -> list[Finding]:
    """Outputs of the deployed file that are not those of the simulated model."""
    known = OutputParity.__dataclass_fields__
    rows = [row for row in data["rows"] if row["beside"] == "simulated"]
    outputs = [OutputParity(**{key: row[key] for key in known}) for row in rows]
    return [finding for output in outputs for finding in deployment(output)]


def _float_bytes(subject: Subject) -> int | None:
    """Of the float ONNX file; ``None`` where the model has no such form."""
    try:
        return bytes_on_disk(subject.original.file("onnx", subject.form, half=False))
    except UnfitError:
        return None


def accuracy_section(subject: Subject, evaluation: Iterable[Any] | None, labelled: bool) -> Data:
    """A metric of the float, the simulated and the deployed model.

    Args:
        subject: the model.
        evaluation: batches, as pairs with labels where there are any; read several times.
        labelled: whether there are labels: accuracy, else agreement with the float model.

    Raises:
        Unavailable: there are no data to evaluate on.
    """
    if evaluation is None:
        raise Unavailable("No data to evaluate on were given; give --evaluate EVAL.yaml.")
    metric = find_metric("accuracy" if labelled else "agreement", labelled=labelled)
    found = dict(_all_outputs(subject, evaluation, labelled))
    reference = found["float"]
    return {
        "metric": metric.name,
        "unit": metric.unit,
        "samples": reference.samples,
        "resolution": metric.resolution(reference.verdicts),
        "rows": [
            {"model": name, "value": metric.of(outputs, reference)}
            for name, outputs in found.items()
        ],
    }


def _all_outputs(
    subject: Subject, evaluation: Iterable[Any], labelled: bool
) -> Iterator[tuple[str, Outputs]]:
    if isinstance(subject.quantized, QuantizedModel):
        yield "float", outputs_of(subject.float_model(), evaluation, labelled=labelled)
        yield "simulated", outputs_of(subject.quantized, evaluation, labelled=labelled)
    else:
        original = subject.original.file("onnx", "onnxruntime", half=False)
        yield "float", outputs_of(Deployed(original, "tensorrt"), evaluation, labelled=labelled)
    deployed = Deployed(subject.file(), subject.form)
    yield "deployed", outputs_of(deployed, evaluation, labelled=labelled)


def coverage_section(subject: Subject, targets: Mapping[str, Target | None]) -> Data:
    """How each target runs each layer; of a target that is not here, why.

    Args:
        subject: the model.
        targets: with their options, by name; ``None`` for those that were not asked for.
    """
    return {"targets": [_covered(subject, name, place) for name, place in targets.items()]}


def _covered(subject: Subject, name: str, place: Target | None) -> Data:
    absent: dict[str, Any] = {"target": name, "label": name, "layers": [], "findings": []}
    if place is None:
        return absent | {
            "why": "Not asked: it reads programs, not ONNX, and compiling one may take longer than "
            f"all else here; give --target {name}."
        }
    try:
        if place.reads not in subject.deployed.formats:
            raise UnfitError(f"It reads .{place.reads} files, and there is none of an ONNX model.")
        file = subject.deployed.file(place.reads, place.form, half=False)
        report = check(file, place)
    except (QuantkitError, UnfitError) as error:
        told = line(error) if isinstance(error, QuantkitError) else str(error)
        return absent | {"why": told}
    return _told(name, file, place, report)


def _told(name: str, file: Path, place: Target, report: CheckReport) -> Data:
    known = facts_of(file, place).layer_of
    # Of a target that is not here the findings say why, and nothing of the model.
    absent = [] if report.layers else [f for f in report.findings if f.code == "not-parsed"]
    return {
        "target": name,
        "label": report.target,
        "why": " ".join(f"{finding.why} {finding.fix}" for finding in absent),
        "form": place.form,
        "reads": place.reads,
        "ok": report.ok,
        "planned": report.coverage.planned,
        "covered": report.coverage.covered,
        "seconds": report.seconds,
        "layers": [{"layer": known.get(x.node, x.node), **asdict(x)} for x in report.layers],
        "findings": [
            {**asdict(f), "layer": known.get(f.where, f.where)}
            for f in report.findings
            if f not in absent
        ],
    }


def latency_section(
    subject: Subject, batches: Sequence[int] | None, threads: int, method: Method | None
) -> Data:
    """The float and the quantized file in the runtimes of this machine, in turns.

    Raises:
        Unavailable: the float model has no ONNX form to compare with.
    """
    try:
        original = subject.original.file("onnx", "onnxruntime", half=False)
    except UnfitError as error:
        raise Unavailable(f"There is nothing to compare with: {error}") from error
    # The runtime that every machine has is ONNX Runtime on its processor: the file is in its form.
    quantized = subject.file("onnxruntime")
    report = bench(
        [original, quantized], data=subject.batches, samples=0, batches=batches, threads=threads,
        method=method or METHOD,
    )  # fmt: skip
    return _timed(report, {original.stem: "float", quantized.stem: subject.recipe.name})


def _timed(report: BenchReport, names: Mapping[str, str]) -> Data:
    """The rows, called by the models that the files are of."""
    return {
        "threads": report.threads,
        "method": str(report.method),
        "rows": [
            {"target": row.target, "device": row.device,
             "precision": names.get(row.precision, row.precision),
             "batch": row.batch, "reference": row.reference, "error": row.error,
             "median_ms": row.median_ms, "p95_ms": row.p95_ms,
             "samples_per_s": row.samples_per_s,
             "ratio": None
             if row.ratio is None
             else {**asdict(row.ratio), "spread": row.ratio.spread},
             "memory_bytes": None if row.memory is None else row.memory.model,
             "file_bytes": row.file_bytes}
            for row in report.rows
        ],
        "left_out": [
            {**asdict(item), "precision": names.get(item.precision or "", item.precision)}
            for item in report.left_out
        ],
    }  # fmt: skip
