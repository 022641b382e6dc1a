"""What a report is of: a model in float, the same quantized, the files of both, and the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from quantkit.analysis.calibrators import (
    CalibratorComparison,
    compare_observed,
    compared_and_kept,
)
from quantkit.analysis.diagnosis import leave_centering_out
from quantkit.batches import Call, as_batches
from quantkit.benching.sources import GivenFile, Quantized, Variant
from quantkit.benching.subject import Examples, subject_of
from quantkit.errors import DataError
from quantkit.interfaces import ExportForm
from quantkit.model import QuantizedModel, copied
from quantkit.model_calibration import activations, calibrate, calls_of, observers_of
from quantkit.observer import Observer
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.recipe import Recipe
from quantkit.reporting.section import Unavailable
from quantkit.workflow import correct, prepare, round_weights
from quantkit.workflow_onnx import calibrate_onnx, prepare_onnx, round_onnx_weights

#: A model of PyTorch, or the path of a float ONNX file.
Model: TypeAlias = nn.Module | torch.export.ExportedProgram | Path


class Counted:
    """Data that can be read again, and how many samples the last reading saw.

    Example:
        >>> data = Counted([torch.zeros(3, 2), torch.zeros(1, 2)])
        >>> len(list(data)), data.samples
        (2, 4)
    """

    def __init__(self, source: Iterable[Any]) -> None:
        if isinstance(source, Iterator):
            raise DataError(
                "calibration can be read only once (it is an iterator), and a report reads it "
                "several times; pass a list, a DataLoader or a DataSpec"
            )
        self._source = source
        self.samples = 0

    def __iter__(self) -> Iterator[Any]:
        """Each batch: inputs by order as a tuple, or by name as a dictionary."""
        samples = 0
        for call in as_batches(self._source):
            samples += rows(call)
            yield given(call)
        self.samples = samples

    def first(self, samples: int) -> list[Any]:
        """The batches that hold the first so many samples, whole."""
        kept: list[Any] = []
        count = 0
        for call in as_batches(self._source):
            kept.append(given(call))
            count += rows(call)
            if count >= samples:
                break
        return kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model that was quantized, and what the sections of a report are made of.

    Attributes:
        name: what it is called.
        model: in float, as it was given.
        quantized: calibrated and rounded.
        prepared: of PyTorch alone, as ``prepare`` made it: the weights are those in float.
        in_place: of PyTorch alone: ``quantized``, or where ``center`` has shifted its tensors, the
            same without, which has the same codes and can be held beside the float model.
        data: what it was calibrated with.
        batches: the first of it, kept, by which sections judge.
        samples: how many samples these hold.
        calibrators: what each calibrator makes of each activation; ``None`` where none is
            quantized.
        observers: of the activations, with their histograms.
        original: the float model as files.
        deployed: the quantized model as files.
    """

    name: str
    model: Model
    quantized: QuantizedModel | QuantizedOnnx
    prepared: QuantizedModel | None
    in_place: QuantizedModel | None
    data: Counted
    batches: Sequence[Any]
    samples: int
    calibrators: CalibratorComparison | None
    observers: Sequence[Observer]
    original: Variant
    deployed: Variant

    @property
    def recipe(self) -> Recipe:
        """Every choice that made it."""
        return self.quantized.recipe

    @property
    def form(self) -> ExportForm:
        """The form of Q/DQ that the recipe is for."""
        return self.recipe.target

    def file(self, form: ExportForm | None = None) -> Path:
        """The quantized ONNX file in a form, by default the recipe's; written once."""
        return self.deployed.file("onnx", form or self.form, half=False)

    def of_pytorch(self) -> tuple[QuantizedModel, QuantizedModel]:
        """The quantized model, and the one that was prepared.

        Raises:
            Unavailable: the model is an ONNX file.
        """
        if isinstance(self.quantized, QuantizedModel) and self.prepared is not None:
            return self.quantized, self.prepared
        raise Unavailable(
            "It is measured on PyTorch models, and this one is an ONNX file; give the model that "
            "the file was exported from."
        )

    def float_model(self) -> QuantizedModel:
        """A copy of the PyTorch model without its quantizers.

        Raises:
            Unavailable: the model is an ONNX file.
        """
        model = copied(self.of_pytorch()[1])
        model.simulate(False)
        return model

    def calls(self) -> list[Call]:
        """The samples that sections judge by, as calls of a few each."""
        return calls_of(self.of_pytorch()[0].capture, self.batches, self.samples)


def made(
    model: Model, recipe: Recipe, calibration: Iterable[Any], folder: Path, samples: int, name: str
) -> Subject:
    """Quantize ``model`` as ``quantize`` does, and keep what a report tells of.

    Args:
        model: in float; it is not changed.
        recipe: all choices, as ``resolve_recipe`` gives them.
        calibration: batches that can be read again.
        folder: for files.
        samples: how many of the first samples are kept.
        name: what the model is called.

    Raises:
        QuantkitError: as ``quantize``.
    """
    data = Counted(calibration)
    batches = data.first(samples)
    if isinstance(model, Path):
        onnx, found, seen = _of_onnx(model, recipe, data)
        quantized: QuantizedModel | QuantizedOnnx = onnx
        prepared = in_place = None
        original: Variant = GivenFile(model, "float", quantized=False)
    else:
        torch_model, prepared, found, seen = _of_pytorch(model, recipe, data, batches[0])
        in_place = _completed(torch_model, data)
        quantized = torch_model
        original = subject_of([model], (), batches, Examples(), _in(folder, "float"), 1).variants[0]
    return Subject(
        name=name, model=model, quantized=quantized, prepared=prepared,
        in_place=in_place, data=data,
        batches=batches, samples=min(samples, sum(rows(c) for c in as_batches(batches))),
        calibrators=found, observers=seen, original=original,
        deployed=Quantized(quantized, _in(folder, "quantized")),
    )  # fmt: skip


def _of_pytorch(
    model: nn.Module | torch.export.ExportedProgram, recipe: Recipe, data: Counted, first: Any
) -> tuple[QuantizedModel, QuantizedModel, CalibratorComparison | None, list[Observer]]:
    args, kwargs = ((), first) if isinstance(first, dict) else (first, None)
    qmodel = prepare(model, recipe, example_inputs=args, example_kwargs=kwargs, calibration=data)
    prepared = copied(qmodel)
    observers = observers_of(activations(qmodel))
    compared = None
    if observers:
        calibrators, kept = compared_and_kept(observers)
        for observer in observers:
            observer.keep(kept)
        calibrate(qmodel, data)
        compared = compare_observed(observers, calibrators, data.samples)
    round_weights(qmodel, data)
    return qmodel, prepared, compared, observers


def _completed(rounded: QuantizedModel, data: Counted) -> QuantizedModel:
    """Correct the model; the one that a diagnosis can read, see ``Subject.in_place``."""
    in_place = rounded
    if rounded.recipe.centers:
        in_place = copied(rounded)
        leave_centering_out(in_place)
        correct(in_place, data)
    correct(rounded, data)
    return in_place


def _of_onnx(
    model: Path, recipe: Recipe, data: Counted
) -> tuple[QuantizedOnnx, CalibratorComparison | None, list[Observer]]:
    quantized = prepare_onnx(model, recipe)
    observers = list(quantized.observers.values())
    compared = None
    if observers:
        calibrators, kept = compared_and_kept(observers)
        calibrate_onnx(quantized, data, keep=kept)
        compared = compare_observed(observers, calibrators, data.samples)
    round_onnx_weights(quantized)
    return quantized, compared, observers


def given(call: Call) -> Any:
    """One call as a batch of data: by order or by name."""
    args, kwargs = call
    return kwargs or args


def rows(call: Call) -> int:
    """How many samples a call has."""
    args, kwargs = call
    return max((x.shape[0] for x in (*args, *kwargs.values()) if x.dim()), default=1)


def _in(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir()
    return made
