"""``quantkit calibrate``: statistics of one pass, compared, drawn and written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_work as work
from quantkit._cli_process import leads
from quantkit._cli_show import Screen, count, size
from quantkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from quantkit._cli_options import Shapes
    from quantkit.analysis.calibrators import CalibratorComparison, TensorComparison
    from quantkit.calibrating import Runner
    from quantkit.observer import Observer
    from quantkit.recipe import Recipe

#: A mixture is worth another recipe from so many dB on.
_WORTH = 0.05


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command."""

    recipe: str
    data: Path | None
    output: Path | None
    statistics: tuple[Path, ...]
    compare: bool
    calibrators: tuple[str, ...]
    samples: int
    pictures: Path | None
    tensors: tuple[str, ...]
    every: int
    resume: bool
    cpu: str
    static: bool
    shapes: Shapes

    @property
    def compares(self) -> bool:
        """Whether what calibrators would choose is wanted."""
        return self.compare or self.pictures is not None

    def check(self) -> None:
        """Refuse, before any work, what means nothing or cannot be written."""
        if self.output is None and not self.compares:
            raise work.UsageError("nothing to do with the statistics: give -o FILE or --compare")
        if not self.compares and (self.calibrators or self.tensors):
            given = "--calibrator" if self.calibrators else "--tensor"
            raise work.UsageError(f"{given} says what to show: give --compare as well")
        if self.data is None and not self.statistics:
            raise DataError("nothing to calibrate with; give --data DATA.yaml, or --statistics")
        work.require_checkpoint("-o", self.output, self.data, self.statistics, self.resume)
        if self.output is not None:
            work.require_writable(self.output)
        if self.pictures is not None:
            from quantkit.analysis.pictures import require_matplotlib

            require_matplotlib()
            work.require_writable(self.pictures / "picture.png" if self.pictures.is_dir() else
                                  self.pictures.parent / ".picture")  # fmt: skip


def calibrate(source: str, weights: Path | None, asked: Asked, show: Screen) -> None:
    """The command, from its options to its last line."""
    started = time.perf_counter()
    asked.check()
    recipe = work.accepted_recipe(asked.recipe, None, asked.cpu, asked.data, any_data=True)
    if not work.needs_data(recipe):
        raise RecipeError(
            f"recipe {recipe.name} quantizes no activations, so there is nothing to calibrate; "
            "give --recipe int8_ptq"
        )
    model = models.load(source, weights)
    written = None if asked.statistics else asked.output
    given = models.seen(
        asked.data, model, asked.statistics, written, every=asked.every, resume=asked.resume
    )
    observed = _observed(model, recipe, given, asked)
    comparison, samples, tensors = observed.comparison, observed.samples, len(observed.observers)
    if asked.statistics and asked.output is not None and leads():
        from quantkit import statistics_file

        run = statistics_file.Run(samples=samples)
        named = observed.runner.observers
        statistics_file.save(asked.output, named, observed.runner.fingerprint, run)
    rows = () if comparison is None else _named(comparison, asked.tensors)
    drawn = _draw(observed.observers, rows, asked.pictures) if leads() else []
    seconds = time.perf_counter() - started
    told = {} if comparison is None else _as_json(comparison, rows, _next(comparison, recipe))
    show.json({"recipe": recipe.name, "tensors": tensors, "samples": samples, "seconds": seconds,
               "output": None if asked.output is None else str(asked.output), **told,
               "pictures": [str(path) for path in drawn]})  # fmt: skip
    if comparison is not None and asked.compare:
        _compared(show, comparison, rows, _next(comparison, recipe))
    show.line(f"Saw {count(tensors, 'tensor')} in {count(samples, 'sample')}, {seconds:.1f} s")
    if leads():
        _written(source, asked, show, drawn)


def _written(source: str, asked: Asked, show: Screen, drawn: Sequence[Path]) -> None:
    """Which files there are now."""
    if drawn:
        show.line(f"Drew {count(len(drawn), 'picture')} in {asked.pictures}", "green")
    if asked.output is not None:
        show.line(f"Wrote {asked.output}: {size(asked.output.stat().st_size)}", "green")
        show.line(
            f"Next: quantkit quantize {source} --recipe {asked.recipe} --statistics "
            f"{asked.output} -o OUT.onnx", "dim", copied=True,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """A model's statistics, and what calibrators make of them."""

    runner: Runner
    observers: Sequence[Observer]
    samples: int
    comparison: CalibratorComparison | None


def _observed(model: models.Source, recipe: Recipe, given: models.Seen, asked: Asked) -> _Observed:
    """Statistics of either kind of model; the outputs are judged of PyTorch models alone."""
    from quantkit.analysis.calibrators import compare_observed, compared_and_kept

    options: Any = {"statistics": given.statistics, "checkpoint": given.checkpoint}
    if isinstance(model, Path):
        from quantkit.onnx.calibrating import OnnxRunner
        from quantkit.workflow_onnx import observe_onnx

        quantized = onnx_files.prepare(model, recipe)
        observers = _some(list(quantized.observers.values()), recipe)
        found, kept = compared_and_kept(observers, asked.calibrators)
        samples = observe_onnx(quantized, given.data, keep=kept, **options)
        compared = compare_observed(observers, found, samples) if asked.compares else None
        runner: Runner = OnnxRunner(quantized.model, quantized.observed, quantized.observers)
        return _Observed(runner=runner, observers=observers, samples=samples, comparison=compared)
    from quantkit.analysis.calibrators import compare_calibrators
    from quantkit.model_calibration import ModelRunner, activations, observe, observers_of

    qmodel = models.prepared(model, recipe, given.data, asked.shapes, static=asked.static)
    observers = _some(observers_of(activations(qmodel)), recipe)
    if asked.compares:
        compared = compare_calibrators(
            qmodel, given.data, names=asked.calibrators, samples=asked.samples, **options
        )
        samples = compared.samples
    else:
        compared, kept = None, compared_and_kept(observers)[1]
        samples = observe(qmodel, given.data, keep=kept, **options)
    runner = ModelRunner(qmodel)
    return _Observed(runner=runner, observers=observers, samples=samples, comparison=compared)


def _some(observers: list[Observer], recipe: Recipe) -> list[Observer]:
    if not observers:
        raise RecipeError(
            f"recipe {recipe.name} quantizes no activation of this model, so there is nothing to "
            "calibrate; `quantkit quantize` lists why"
        )
    return observers


def _named(comparison: CalibratorComparison, globs: Sequence[str]) -> tuple[TensorComparison, ...]:
    """The tensors that are to be shown.

    Raises:
        DataError: there is no such tensor.
    """
    if not globs:
        return comparison.tensors
    kept = [t for t in comparison.tensors if any(fnmatchcase(t.tensor, g) for g in globs)]
    if not kept:
        names = ", ".join(t.tensor for t in comparison.tensors)
        raise DataError(f"no tensor is named {' or '.join(globs)}; there are: {names[:400]}")
    return tuple(kept)


def _draw(
    observers: Sequence[Observer], rows: Iterable[TensorComparison], folder: Path | None
) -> list[Path]:
    if folder is None:
        return []
    from quantkit.analysis.pictures import write_pictures

    with work.working("drawing"):
        return write_pictures(folder, observers, rows)


def _next(comparison: CalibratorComparison, recipe: Recipe) -> tuple[str, str]:
    """The calibrator to use, and how to say so."""
    from quantkit import plugins
    from quantkit.recipe import PlugIn, read_recipe

    best, mixed = comparison.best, comparison.mixed_sqnr
    if comparison.output_sqnr is not None and mixed is not None:
        gain = mixed - max(comparison.output_sqnr)
        best = "best" if gain > _WORTH else best
    if best == recipe.calibrator.name:
        return best, f"--recipe {recipe.name}, as now"
    wanted = recipe.model_copy(update={"calibrator": PlugIn(name=best)})
    same = {"name": "", "description": ""}
    for name in plugins.names("recipes"):
        other = read_recipe(plugins.recipe_path(name))
        if other.model_copy(update=same) == wanted.model_copy(update=same):
            return best, f"--recipe {name}"
    return best, f"`calibrator: {best}` in a copy of recipe {recipe.name}"


def _compared(
    show: Screen,
    comparison: CalibratorComparison,
    rows: Sequence[TensorComparison],
    choice: tuple[str, str],
) -> None:
    """A row a tensor, a column a calibrator, and below them what they are worth as a whole."""
    names, outputs = comparison.calibrators, comparison.output_sqnr
    taken = max(14, *(len(t.tensor) for t in rows)) + sum(2 + max(len(n), 12) for n in names)
    wide = taken <= show.width  # else the ends of ranges would be broken over lines
    table = [(t.tensor, *(_cell(t, number, wide) for number in range(len(names)))) for t in rows]
    table.append(("",) * (len(names) + 1))
    table.append(("mean SQNR", *(f"{comparison.mean_sqnr(n):5.1f}" for n in names)))
    table.append(("tensors won", *(f"{comparison.wins(n):3d}" for n in names)))
    if outputs is not None:
        table.append(("at the outputs", *(f"{_decibels(x)}" for x in outputs)))
    # Names are longer than figures; what is below them says what those are.
    show.table(("tensor", *(f"{name}\n   dB{'     to' if wide else ''}" for name in names)), table)
    show.line()
    to = "to: the end of its range farthest from 0 (both: --json)"
    ranges = to if wide else "ranges: --json, a wider window"
    show.line(f"dB: signal to quantization noise, * the best; {ranges}", "dim")
    best, how = choice
    if outputs is not None and comparison.mixed_sqnr is not None:
        show.line(
            f"calibrator: best (of each tensor the best for the outputs) has "
            f"{comparison.mixed_sqnr:.1f} dB there, {names[outputs.index(max(outputs))]} alone "
            f"{max(outputs):.1f}."
        )
    else:
        show.line("What reaches the outputs counts more: give --data, and a PyTorch model.", "dim")
    show.line(f"Use {best}: {how}", "bold green")


def _cell(tensor: TensorComparison, number: int, wide: bool) -> str:
    """Such as `` 38.1* 6.03``; the range where there is room."""
    own = tensor.ranges[number]
    star = "*" if own == tensor.best else " "
    end = f"{_short(max(own.low, own.high, key=abs)):>6}" if wide else ""
    return f"{_decibels(own.sqnr)}{star}{end}"


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:5.1f}"


def _short(value: float) -> str:
    """Three digits, or as many as have a place."""
    return next((t for n in (3, 2) if len(t := f"{value:.{n}g}") <= 6), f"{value:.0e}")


def _as_json(
    comparison: CalibratorComparison, rows: Iterable[TensorComparison], choice: tuple[str, str]
) -> dict[str, Any]:
    """Everything; where there is no noise at all, a figure in dB is null."""
    names, outputs = comparison.calibrators, comparison.output_sqnr
    return {
        "calibrators": [
            {"calibrator": name, "mean_sqnr": _finite(comparison.mean_sqnr(name)),
             "won": comparison.wins(name),
             "output_sqnr": None if outputs is None else _finite(outputs[number])}
            for number, name in enumerate(names)
        ],
        "best": {"output_sqnr": _finite(comparison.mixed_sqnr), "use": choice[0],
                 "how": choice[1]},
        "compared": [
            {**asdict(t), "best": t.best.calibrator,
             "ranges": [{**asdict(r), "sqnr": _finite(r.sqnr)} for r in t.ranges]}
            for t in rows
        ],
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
