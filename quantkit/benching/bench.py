"""``bench``: one model in the runtimes of this machine, float and quantized."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantkit import hardware
from quantkit.benching import arrays, group
from quantkit.benching import inputs as model_inputs
from quantkit.benching.evaluation import Evaluation, pairs_of
from quantkit.benching.planning import DEVICES, Cell, cells, runners
from quantkit.benching.report import BenchReport, LeftOut, Method, Row
from quantkit.benching.runner import Device
from quantkit.benching.subject import Examples, Model, Subject, subject_of
from quantkit.data import DataSpec
from quantkit.errors import DataError, TargetError
from quantkit.recipe import Recipe

#: Batch sizes where none is given, and the model takes any.
BATCHES = (1, 32)


def bench(
    models: Model | Sequence[Model],
    recipes: Sequence[str | Path | Recipe] = (),
    *,
    data: Iterable[Any] | None = None,
    evaluation: Iterable[Any] | None = None,
    samples: int = 256,
    example_inputs: tuple[Tensor, ...] = (),
    example_kwargs: Mapping[str, Tensor] | None = None,
    targets: Sequence[str] | None = None,
    devices: Sequence[Device] | None = None,
    batches: Sequence[int] | None = None,
    threads: int = 1,
    method: Method | None = None,
) -> BenchReport:
    """Compare latency, throughput, memory, size and accuracy of a model in many runtimes.

    Each row of the result is measured in a process of its own; the processes take turns. What a
    runtime cannot do is told in its row, or in what was left out, and never ends the rest.

    Args:
        models: one model (a module, a program of ``torch.export``, a ``.pt2`` or ``.onnx`` file,
            or ``package.module:factory``); or the paths of several files, compared as they are,
            the first being the reference.
        recipes: quantize the one model by each, and compare these as well.
        data: batches of inputs to calibrate with; runs are timed on its first samples.
        evaluation: batches as pairs of inputs and labels, or a `DataSpec`, by which outputs are
            judged; by default ``data``, without labels.
        samples: how many samples judge the outputs; 0 for none.
        example_inputs: inputs by order, where there are no data.
        example_kwargs: and by name.
        targets: the runtimes, by default all that this machine has.
        devices: ``cpu``, ``cuda``; by default both, where the machine has them.
        batches: samples a run; by default 1 and 32, or what the model takes.
        threads: of the processor for each run. With one, a processor that is shared with others
            disturbs the comparison least; deployed with more, compare with as many.
        method: how rows are timed.

    Raises:
        ModelFileError, CaptureError: a model cannot be read or captured.
        RecipeError: a recipe or a target is unknown.
        DataError: data do not fit, or there are none where there must be.
        TargetError: no runtime of this machine can run any of it.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU())
        >>> report = bench(net, example_inputs=(torch.randn(4, 32),), targets=["eager"],
        ...                batches=[4], method=Method(turns=1))
        >>> [(row.target, row.precision, row.batch, row.error) for row in report.rows]
        [('eager', 'float', 4, None)]
    """
    method = method or Method()
    if threads < 1:
        raise DataError(f"a run uses 1 thread or more, got {threads}; correct the number")
    known = runners(targets)
    data, evaluation = _rereadable(data, "data"), _rereadable(evaluation, "evaluation")
    machine = hardware.detect()
    with tempfile.TemporaryDirectory(prefix="quantkit-bench-") as name:
        folder = Path(name)
        subject = subject_of(
            _listed(models), recipes, data,
            Examples(args=example_inputs, kwargs=example_kwargs), folder,
            max(batches or BATCHES),
        )  # fmt: skip
        sizes = _sizes(subject, batches)
        planned, left_out = cells(subject.variants, known, devices or DEVICES, machine.gpus)
        _require_any(planned, left_out)
        judge = _judge(subject, data, evaluation, sizes[-1], samples, folder, method)
        run = _Run(subject, folder, threads, method)
        rows = [
            row
            for device in dict.fromkeys(cell.device for cell in planned)
            for size in sizes
            for row in run.rows(
                [cell for cell in planned if cell.device == device],
                size,
                judge if size == sizes[-1] else None,
            )
        ]
    return BenchReport(
        rows=tuple(_judged(rows, judge)),
        left_out=(*left_out, *(judge.left_out if judge else ())),
        machine=machine,
        threads=threads,
        method=method,
        data=_told(judge, evaluation),
    )


@dataclass(frozen=True)
class _Run:
    """What all groups of rows have in common."""

    subject: Subject
    folder: Path
    threads: int
    method: Method

    def rows(self, planned: Sequence[Cell], size: int, judge: Evaluation | None) -> list[Row]:
        """The rows of one batch size on one device."""
        inputs = self.folder / f"inputs-{size}.npz"
        batched = {given.name for given in self.subject.inputs if given.batched}
        arrays.write(inputs, model_inputs.resized(self.subject.example, size, batched))
        device = planned[0].device
        task = group.Task(
            batch=size, inputs=inputs, threads=self.threads, method=self.method,
            folder=self.folder, title=f"batch {size}, {device}",
        )  # fmt: skip
        return group.measure(planned, task, judge)


def _listed(models: Model | Sequence[Model]) -> Sequence[Model]:
    # A module such as nn.Sequential looks like a sequence, and so does a string.
    one = isinstance(models, nn.Module | torch.export.ExportedProgram | Path | str)
    return [models] if one else models  # type: ignore[list-item,return-value]


def _sizes(subject: Subject, batches: Sequence[int] | None) -> list[int]:
    """The batch sizes, from the smallest."""
    fixed = model_inputs.fixed_batch(subject.inputs)
    sizes = sorted(set(batches or (BATCHES if fixed is None else (fixed,))))
    if sizes[0] < 1:
        raise DataError(f"a batch has 1 sample or more, got {sizes[0]}; correct the batch sizes")
    if fixed is not None and sizes != [fixed]:
        raise DataError(
            f"the model takes batches of {fixed} alone; leave the batch sizes out, or export it "
            "with a dynamic batch"
        )
    return sizes


def _judge(
    subject: Subject,
    data: Iterable[Any] | None,
    evaluation: Iterable[Any] | None,
    batch: int,
    samples: int,
    folder: Path,
    method: Method,
) -> Evaluation | None:
    source = data if evaluation is None else evaluation
    if source is None or samples == 0:
        return None
    own = folder / "evaluation"
    own.mkdir()
    return Evaluation(
        pairs_of(source, labelled=evaluation is not None), subject.inputs,
        batch=batch, samples=samples, folder=own, timeout_s=method.timeout_s,
    )  # fmt: skip


def _judged(rows: Sequence[Row], judge: Evaluation | None) -> list[Row]:
    """With what the outputs are worth: of the row, whatever its batch size."""
    found = judge.found if judge else {}
    return [
        replace(row, quality=found.get((row.target, row.device, row.precision)))
        if row.error is None
        else row
        for row in rows
    ]


def _told(judge: Evaluation | None, evaluation: Iterable[Any] | None) -> str:
    if judge is None:
        return ""
    of = "the data" if evaluation is None else "the evaluation data"
    return f"{judge.samples} samples of {of}"


def _require_any(planned: Sequence[Cell], left_out: Sequence[LeftOut]) -> None:
    if not planned:
        why = "; ".join(dict.fromkeys(f"{x.target}: {x.reason}" for x in left_out))
        raise TargetError(f"no runtime can run any of it: {why or 'none was asked for'}")


def _rereadable(data: Iterable[Any] | None, name: str) -> Iterable[Any] | None:
    if isinstance(data, DataSpec):
        return data.open()
    if data is not None and iter(data) is data:
        raise DataError(
            f"{name} can be read only once (it is an iterator), and it is read several times; pass "
            "a list, a DataLoader or a DataSpec"
        )
    return data
