"""Runs an ONNX file beside the model it was made of, and judges how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit import batches as batches_of
from quantkit.errors import DataError, TargetError
from quantkit.graph.capture import capture
from quantkit.graph.exporting import told_inputs
from quantkit.interfaces import Finding, Severity, Target
from quantkit.model import QuantizedModel
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.parity import OutputParity, ParityMeter
from quantkit.progress import track
from quantkit.targets.onnxruntime import OnnxRuntime

#: What a file may be compared with: a model, or the path of a float ONNX file.
Reference: TypeAlias = nn.Module | torch.export.ExportedProgram | Path | str

#: One batch by the names of a file's inputs.
Feed: TypeAlias = Mapping[str, np.ndarray]

#: One call of a model, with inputs by order and by name.
Run: TypeAlias = Callable[[tuple[Tensor, ...], dict[str, Tensor]], list[np.ndarray]]


#: A share of the largest value: rounding in float differs less than this, saturated sums more.
SAME = 1e-4

#: A file this far, in dB, from the quantized model that it was made of computes something else.
DEPLOYED = 20.0


@dataclass(frozen=True, kw_only=True)
class TargetParity:
    """One output of a file on a target, beside the same in ONNX Runtime.

    Attributes:
        name: the output's name in the file.
        sqnr: signal to noise in dB, as of ``OutputParity``.
        largest: the largest absolute difference.
        relative: the largest difference of an element as a share of its own magnitude; where that
            is 0, the element is left out. Elements near 0 make it large, and mean little.
        agreement: the share of rows that agree in their largest value, as of ``OutputParity``.
    """

    name: str
    sqnr: float
    largest: float
    relative: float
    agreement: float | None


class NotRunError(Exception):
    """The file does not load in ONNX Runtime: a finding, not a failure of the check."""


def compare(
    path: Path, reference: Reference, data: Iterable[Any]
) -> tuple[tuple[OutputParity, ...], int]:
    """The outputs of a file beside those of its reference, and over how many batches.

    Batches stream: none is kept. The file runs in ONNX Runtime's exact mode, and in its default
    mode beside it.

    Raises:
        NotRunError: the file does not load in ONNX Runtime.
        DataError: the data do not fit the reference or the file.
        TargetError: the file fails on the data.
    """
    facts = FileFacts.of(path)
    try:
        exact, default = OnnxRuntime(exact=True).opened(path), OnnxRuntime().opened(path)
    except TargetError as error:
        raise NotRunError(str(error)) from error
    return compare_runs(facts, lambda feed: (exact(feed), default(feed)), reference, data)


def compare_runs(
    facts: FileFacts,
    run: Callable[[Feed], tuple[list[np.ndarray], list[np.ndarray]]],
    reference: Reference,
    data: Iterable[Any],
) -> tuple[tuple[OutputParity, ...], int]:
    """As `compare`, of whatever runs a file.

    Args:
        facts: the names of its inputs and outputs.
        run: from one batch to its outputs, in the exact and in the default mode.
        reference: what they should be like.
        data: batches.
    """
    meters = [ParityMeter(name) for name in facts.outputs]
    count = 0
    with _runner(reference) as refer:
        for args, kwargs in track(batches_of.as_batches(data), "comparing"):
            wanted = refer(args, kwargs)
            exact, default = run(feed_of(args, kwargs, facts.inputs))
            for meter, *values in _matched(meters, wanted, exact, default):
                meter.update(*values)
            count += 1
    return tuple(meter.result() for meter in meters), count


def compare_target(
    model: Path | str, target: Target, data: Iterable[Any]
) -> tuple[tuple[TargetParity, ...], int]:
    """The outputs of a file on a target beside those of ONNX Runtime, and over how many batches.

    Both run the same file, ONNX Runtime in its exact mode: what differs is how. The target may
    build the file first, once for all batches: so all of them, and the outputs, are in memory.

    Args:
        model: the ONNX file, in a form that both take.
        target: such as ``TensorRT()``.
        data: batches, as for ``quantize``.

    Raises:
        DataError: the data do not fit the file, or are empty.
        TargetError: the file does not run on the target, or in ONNX Runtime, or their outputs are
            not of one shape.
    """
    path = Path(model)
    facts = FileFacts.of(path)
    feeds = [feed_of(args, kwargs, facts.inputs) for args, kwargs in batches_of.as_batches(data)]
    wanted, got = OnnxRuntime(exact=True).run(path, feeds), target.run(path, feeds)
    meters = [ParityMeter(name) for name in facts.outputs]
    relative = [0.0] * len(meters)
    for reference, outputs in zip(wanted, got, strict=True):
        shapes = [[tuple(array.shape) for array in arrays] for arrays in (reference, outputs)]
        if shapes[0] != shapes[1]:
            raise TargetError(
                f"{path.name} puts out the shapes {shapes[1]} on {type(target).__name__}, and "
                f"{shapes[0]} in ONNX Runtime; give the target a file of known output shapes"
            )
        for index, (want, out) in enumerate(zip(reference, outputs, strict=True)):
            meters[index].update(want, out, out)
            relative[index] = float(np.maximum(relative[index], _relative(want, out)))
    results = zip([meter.result() for meter in meters], relative, strict=True)
    return tuple(
        TargetParity(name=r.name, sqnr=r.sqnr, largest=r.largest, relative=x, agreement=r.agreement)
        for r, x in results
    ), len(feeds)


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    """The largest difference of an element that is not 0, as a share of its magnitude."""
    want, other = wanted.astype(np.float64), got.astype(np.float64)
    counted = (want != 0.0) & (want != other)
    with np.errstate(invalid="ignore"):
        shares = np.abs(other[counted] - want[counted]) / np.abs(want[counted])
    return float(shares.max(initial=0.0))


def _matched(
    meters: list[ParityMeter], wanted: list[np.ndarray], exact: list[Any], default: list[Any]
) -> Iterator[tuple[Any, ...]]:
    if len(wanted) != len(meters):
        raise DataError(
            f"the reference puts out {len(wanted)} tensors, the file {len(meters)} "
            f"({', '.join(m.name for m in meters)}); give the model that the file was made of"
        )
    for meter, want, *got in zip(meters, wanted, exact, default, strict=True):
        if want.shape != got[0].shape:
            raise DataError(
                f"output {meter.name}: the reference has shape {want.shape}, the file "
                f"{got[0].shape}; give the model that the file was made of"
            )
        yield meter, want, *got


def feed_of(
    args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """One batch by the names of the file's inputs."""
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or set(given) != set(names):
        listed = ", ".join([*(f"input {i}" for i in range(len(args))), *kwargs])
        raise DataError(
            f"data has the inputs {listed}; the file takes {', '.join(names)}; name them alike"
        )
    return {name: value.detach().cpu().numpy() for name, value in given.items()}


@contextmanager
def _runner(reference: Reference) -> Iterator[Run]:
    """Call any reference alike; a module is in evaluation mode meanwhile."""
    if isinstance(reference, str | Path):
        names = FileFacts.of(Path(reference)).inputs
        run = OnnxRuntime(exact=True).opened(Path(reference))
        yield lambda args, kwargs: run(feed_of(args, kwargs, names))
        return
    module, names = _callable(reference)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield lambda args, kwargs: _call(module, names, args, kwargs)
    finally:
        module.train(modes[module])  # a QuantizedModel switches its graph as well
        for part, training in modes.items():
            part.training = training


def _callable(
    reference: nn.Module | torch.export.ExportedProgram,
) -> tuple[nn.Module, tuple[str, ...]]:
    """A module, and the names of its inputs that are given by order."""
    if isinstance(reference, torch.export.ExportedProgram):
        captured = capture(reference, ())
        return captured.module, captured.input_names[: len(captured.args)]
    if isinstance(reference, QuantizedModel):
        captured = reference.capture
        return reference, captured.input_names[: len(captured.args)]
    return reference, ()


def _call(
    module: nn.Module,
    names: tuple[str, ...],
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
) -> list[np.ndarray]:
    args, kwargs = batches_of.bind_inputs(args, kwargs, names)
    try:
        outputs = module(*args, **kwargs)
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"the reference model fails on {told_inputs(module, args, kwargs)}: "
            f"{' '.join(str(error).split())[:300]}; give data with the inputs that it takes, of "
            "its shape and dtype"
        ) from error
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf.detach().double().cpu().numpy() for leaf in leaves]


def judge(
    output: OutputParity, min_sqnr: float | None = None, min_agreement: float | None = None
) -> list[Finding]:
    """What is wrong with one output's figures.

    Example:
        >>> near = OutputParity(
        ...     name="y", sqnr=12.0, cosine=1.0, largest=1.0, agreement=0.9, default_mode=0.0
        ... )
        >>> [finding.code for finding in judge(near, min_sqnr=20.0, min_agreement=0.9)]
        ['low-sqnr']
    """

    def error(code: str, why: str, fix: str) -> Finding:
        return Finding(severity=Severity.ERROR, code=code, where=output.name, why=why, fix=fix)

    if math.isnan(output.sqnr):
        why = "The file puts out NaN or infinity where the reference does not, or the reversed."
        return [error("output-not-finite", why, "Run `quantkit check` on each part to find where.")]
    found: list[Finding] = []
    closer = "Calibrate with more or other data, or leave sensitive layers in float."
    if min_sqnr is not None and output.sqnr < min_sqnr:
        found.append(error("low-sqnr", f"SQNR {output.sqnr:.1f} dB is under {min_sqnr:g}.", closer))
    if min_agreement is not None and output.agreement is None:
        why = "It is no row of scores for each input, so predictions cannot be compared."
        found.append(error("no-agreement", why, "Set a least SQNR instead of a least agreement."))
    elif min_agreement is not None and (output.agreement or 0.0) < min_agreement:
        why = f"Predictions agree in {output.agreement:.2%}, under {min_agreement:.2%}."
        found.append(error("low-agreement", why, closer))
    if output.default_mode > SAME:
        found.append(_saturates(output))
    return found


def deployment(output: OutputParity, *, sound: bool = False) -> list[Finding]:
    """An error where an output is far from that of the very model that the file was made of.

    ``sound``: each step of the file was seen to be right, so that it is not the file.
    """
    if not output.sqnr < DEPLOYED:
        return []
    again = "Export the file again from this model; a min_sqnr of your own replaces this floor."
    elsewhere = (
        "Each step of the file is right: ONNX Runtime computes something else, so run it on the "
        "target it was written for; a min_sqnr of your own replaces this floor."
    )
    finding = Finding(
        severity=Severity.ERROR,
        code="deployment-differs",
        where=output.name,
        why=f"SQNR {output.sqnr:.1f} dB beside the quantized model that it should repeat; under "
        f"{DEPLOYED:g} dB the file computes something else.",
        fix=elsewhere if sound else again,
    )
    return [finding]


def _saturates(output: OutputParity) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="default-mode-differs",
        where=output.name,
        why=f"ONNX Runtime's default mode is off by {output.default_mode:.1%} of the largest: "
        "16-bit sums saturate on this processor, or float activations of weight-only layers are "
        "rounded.",
        fix="Set session.x64quantprecision and session.qdq_matmulnbits_accuracy_level to 1 (exact, "
        "slower); against saturation, the recipe int8_cpu.",
    )
