"""``recover``: the cheapest recipe that loses no more than is allowed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.batches import as_batches
from quantkit.data import Batch, Data, DataSpec
from quantkit.errors import DataError, RecipeError
from quantkit.graph.capture import DynamicShapes
from quantkit.interfaces import Target
from quantkit.recipe import Recipe
from quantkit.recovering import holdout
from quantkit.recovering.goal import Attempt, Deadline, Goal
from quantkit.recovering.ladder import ALLOWANCES, LADDER
from quantkit.recovering.making import Maker, TorchMaker, Training
from quantkit.recovering.making_onnx import OnnxMaker
from quantkit.recovering.memory import recalled
from quantkit.recovering.metrics import KNOWN, Metric, find_metric, own_metric
from quantkit.recovering.report import Recovery
from quantkit.recovering.search import Climb
from quantkit.recovering.steps import Step
from quantkit.recovering.workbench import Workbench
from quantkit.workflow import resolve_recipe

Model = nn.Module | torch.export.ExportedProgram | Path


def recover(
    model: Model,
    recipe: str | Path | Recipe = "int8_ptq",
    *,
    calibration: Iterable[Any],
    holdout: Iterable[Any] | None = None,
    metric: str | Callable[[Any, Any], float] | None = None,
    max_drop: float = 0.5,
    time_limit: float | None = None,
    allow: Sequence[str] = (),
    skip: Sequence[str] = (),
    train: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
    target: Target | str | None = None,
    cpu: str = "auto",
    checkpoint: Path | str | None = None,
    resume: bool = False,
    keep_model: bool = True,
    on_start: Callable[[Goal], None] | None = None,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> Recovery:
    """Climb from a recipe to one that loses at most ``max_drop`` of a metric on held-out data.

    Steps run in the order of what they cost (`quantkit.recovering.ladder`), each from the best
    recipe so far, and the first candidate that meets the goal ends it; it must meet it in ONNX
    Runtime as well, as exported. No candidate sees the data that you judge the result by in the
    end: do not give those here.

    Args:
        model: a module, a program that ``torch.export`` made, or the path of a float ONNX file.
        recipe: where to begin.
        calibration: batches of inputs, to be read again: a list, a `DataSpec`.
        holdout: batches to judge by, none of whose rows calibrates: pairs of inputs and labels, a
            `DataSpec` with a label, or inputs alone. If absent, ``calibration`` is a `DataSpec`
            and is split: see `quantkit.recovering.holdout.split`.
        metric: ``accuracy``, ``agreement`` (with the float model's top-1; needs no labels),
            ``spearman``, ``mse``, ``package.module:function``, or a function of all outputs and
            all labels, the higher the better. By default accuracy where there are labels, else
            agreement; a batch of two is a pair with labels.
        max_drop: the most that may be lost, in the metric's own points.
        time_limit: seconds; ``None`` for none. The recipe itself is always measured.
        allow: of `quantkit.recovering.ladder.ALLOWANCES`.
        skip: steps to leave out, by name.
        train: batches to fine-tune on, as ``finetune`` takes them; without it nothing trains.
        loss: as of ``finetune``; without it the float model teaches alone.
        example_inputs: as of ``quantize``; by default the first batch of ``calibration``.
        example_kwargs: likewise.
        dynamic_shapes: as of ``quantize``.
        target: as of ``quantize``.
        cpu: as of ``quantize``.
        checkpoint: a file of what was measured, written after each candidate.
        resume: go on from ``checkpoint``, where it is there.
        keep_model: whether the result holds the best model, built once more if need be.
        on_start: called when the float model is measured.
        on_attempt: called after each candidate and each step that is skipped.

    Raises:
        RecipeError: the recipe is unknown or cannot run, or a step or allowance is unknown.
        DataError: data do not fit, can be read only once, or a row both calibrates and judges.
        ModelFileError: the checkpoint is of another model, other data or another metric.

    Example:
        >>> net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
        >>> rows = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
        >>> pairs = [(x, net(x).argmax(1)) for x in rows[64:].split(8)]
        >>> found = recover(net, calibration=rows[:64].split(8), holdout=pairs, max_drop=5.0)
        >>> found.met, found.recipe.name
        (True, 'int8_ptq')
    """
    began = time.perf_counter()
    start = resolve_recipe(recipe, target=target, cpu=cpu)
    ladder = chosen_steps(skip)
    _check(max_drop, allow, train, loss)
    apart = _apart(calibration, holdout)
    chosen = _metric(metric, apart.holdout)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as name:
        maker = _maker(
            model, apart.calibration, Path(name), example_inputs, example_kwargs, dynamic_shapes,
            None if train is None else Training(data=_opened(train), loss=loss),
        )  # fmt: skip
        about = _about(maker, apart, chosen, train)
        bench = Workbench(
            maker=maker, held_out=apart.holdout, metric=chosen, allowed=frozenset(allow),
            memory=recalled(about, None if checkpoint is None else Path(checkpoint), resume=resume),
        )  # fmt: skip
        goal = Goal(
            metric=chosen.name, unit=chosen.unit, floating=bench.floating, max_drop=max_drop,
            lower_is_better=chosen.lower_is_better,
            resolution=chosen.resolution(bench.reference.verdicts),
        )  # fmt: skip
        if on_start is not None:
            on_start(goal)
        at = math.inf if time_limit is None else began + time_limit
        deadline = Deadline(at=at, clock=time.perf_counter)
        climb = Climb(bench, goal, deadline, on_attempt or (lambda attempt: None))
        climb.run(start, ladder)
        return _result(climb, bench, apart, began, keep_model=keep_model)


def chosen_steps(skip: Sequence[str]) -> tuple[Step, ...]:
    """The ladder without some steps.

    Raises:
        RecipeError: there is no such step.

    Example:
        >>> "training" in [step.name for step in chosen_steps(["block rounding", "training"])]
        False
    """
    names = [step.name for step in LADDER]
    for name in skip:
        if name not in names:
            raise RecipeError(f"no step {name!r} to skip; there are: {', '.join(names)}")
    return tuple(step for step in LADDER if step.name not in skip)


@dataclass(frozen=True, kw_only=True)
class _Apart:
    """Data to calibrate with, data to judge by, and the file of the former, if they were split."""

    calibration: Iterable[Any]
    holdout: Iterable[Any]
    spec: DataSpec | None = None


def _apart(calibration: Iterable[Any], held_out: Iterable[Any] | None) -> _Apart:
    if held_out is not None:
        return _Apart(calibration=_opened(calibration), holdout=_opened(held_out))
    if isinstance(calibration, Data):
        calibration = calibration.spec
    if not isinstance(calibration, DataSpec):
        raise DataError(
            "there are no held-out data to judge by; pass holdout=batches, or calibration as a "
            "DataSpec, which is split"
        )
    spec, rest = holdout.split(calibration)
    return _Apart(calibration=spec.open(), holdout=rest, spec=spec)


def _opened(data: Iterable[Any]) -> Iterable[Any]:
    if isinstance(data, DataSpec):
        return data.open()
    if isinstance(data, Iterator):
        raise DataError(
            "data can be read only once (it is an iterator), and each candidate reads it; pass a "
            "list, a DataLoader or a DataSpec"
        )
    return data


def _metric(metric: str | Callable[[Any, Any], float] | None, data: Iterable[Any]) -> Metric:
    """The metric that was asked for, or the one that the data are good for."""
    labelled = _is_labelled(data)
    if metric is None:
        return KNOWN["accuracy" if labelled else "agreement"]
    if not isinstance(metric, str):
        return own_metric(metric, getattr(metric, "__name__", "metric"), labelled=labelled)
    found = find_metric(metric, labelled=labelled)
    if found.labelled and not labelled:
        raise DataError(
            f"the metric {metric} needs labels, and the held-out data have none; give data with "
            "labels, or the metric agreement, which needs none"
        )
    return found


def _is_labelled(data: Iterable[Any]) -> bool:
    first = next(iter(data), None)
    if isinstance(first, Batch):
        return first.labels is not None
    return isinstance(first, tuple | list) and len(first) == 2


def _maker(
    model: Model,
    calibration: Iterable[Any],
    folder: Path,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: DynamicShapes,
    training: Training | None,
) -> Maker:
    if isinstance(model, Path):
        return OnnxMaker(model=model, calibration=calibration, folder=folder)
    if args is None and kwargs is None:
        args, kwargs = next(as_batches(calibration))
    return TorchMaker(
        model=model, calibration=calibration, folder=folder, args=args or (), kwargs=kwargs or {},
        dynamic_shapes=dynamic_shapes, training=training,
    )  # fmt: skip


def _about(
    maker: Maker, apart: _Apart, metric: Metric, train: Iterable[Any] | None
) -> dict[str, str]:
    """What measurements are of; a row that both calibrates and judges is refused."""
    calibration = holdout.seen(apart.calibration, labelled=False)
    judging = holdout.seen(apart.holdout, labelled=metric.labelled)
    holdout.require_apart(calibration, judging)
    if train is None:
        trained = "none"
    elif isinstance(train, DataSpec | Data):
        trained = (train if isinstance(train, DataSpec) else train.spec).model_dump_json()
    else:
        trained = holdout.seen(_opened(train), labelled=False).fingerprint
    return {
        "model": maker.fingerprint,
        "calibration data": calibration.fingerprint,
        "held-out data": judging.fingerprint,
        "training data": trained,
        "metric": metric.name,
    }


def _result(
    climb: Climb, bench: Workbench, apart: _Apart, began: float, *, keep_model: bool
) -> Recovery:
    best = climb.best
    assert best is not None
    assert best.candidate is not None
    unlimited = Deadline(at=math.inf, clock=time.perf_counter)
    model = bench.model_of(best.candidate, unlimited) if keep_model else None
    return Recovery(
        goal=climb.goal, attempts=tuple(climb.attempts), best=best, met=climb.met, model=model,
        samples=bench.reference.samples, one=_one(bench), seconds=time.perf_counter() - began,
        calibration=apart.spec,
    )  # fmt: skip


def _one(bench: Workbench) -> float | None:
    """What one prediction is worth, in points of a metric that counts them."""
    return 100.0 / bench.reference.verdicts if bench.metric.counts else None


def _check(max_drop: float, allow: Sequence[str], train: object, loss: object) -> None:
    if not (math.isfinite(max_drop) and max_drop >= 0.0):
        raise DataError(f"max_drop must be 0 or more, in points of the metric, got {max_drop}")
    for name in allow:
        if name not in ALLOWANCES:
            raise RecipeError(f"no allowance {name!r}; there are: {', '.join(ALLOWANCES)}")
    if loss is not None and train is None:
        raise DataError("loss is of training data, and there are none; pass train=batches")
