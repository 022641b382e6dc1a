"""Changes of a recipe that a diagnosis speaks for, each tried on samples that calibrate nothing.

A diagnosis says where a layer's error comes from; what would repair it is a guess. So each guess
is built as anybody would build it, and measured at the model's outputs on every fourth call. Only
what helps beyond chance is advice. What helps is then put together, the most first, and stays in
where it still helps beside what is in already.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit.analysis._advice_judging import Noises, energies, helps, noises, paired
from quantkit.analysis._advice_rules import Proposal, proposals
from quantkit.analysis._advice_values import Advice as Advice
from quantkit.analysis._advice_values import Measured as Measured
from quantkit.analysis._advice_values import Trial as Trial
from quantkit.analysis._diagnosis_values import Diagnosis
from quantkit.batches import Call, as_batches
from quantkit.errors import DataError, QuantkitError
from quantkit.graph.capture import Capture, DynamicShapes
from quantkit.keeping import parted
from quantkit.model_calibration import calls_of
from quantkit.progress import track
from quantkit.recipe import Recipe
from quantkit.reconstruction.padding import real_positions
from quantkit.recovering.goal import Deadline
from quantkit.recovering.making import TorchMaker
from quantkit.recovering.memory import key_of
from quantkit.recovering.steps import Candidate, Facts
from quantkit.workflow import resolve_recipe

#: Fewer calls leave nothing to judge by; fewer samples tell nothing from chance.
LEAST_CALLS = 4
LEAST_JUDGING = 8


def advise(
    found: Diagnosis,
    model: nn.Module | torch.export.ExportedProgram,
    recipe: str | Path | Recipe,
    data: Iterable[Any],
    *,
    samples: int = 64,
    trials: int = 12,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = "batch",
) -> Advice:
    """Try what a diagnosis speaks for, and tell what helps.

    Args:
        found: of the model that ``recipe`` makes of ``model``.
        model: in float.
        recipe: as it is: a name, a YAML file, or a value.
        data: batches of inputs, to be read again: three of four calls of the first samples
            calibrate, the others judge.
        samples: how many.
        trials: so many changes are tried at most. What helps is tried together as well.
        example_inputs: as of ``quantize``; by default the first batch.
        example_kwargs: likewise.
        dynamic_shapes: as of ``quantize``.

    Raises:
        DataError: there are too few samples to judge by.
        QuantkitError: the recipe as it is cannot be built.

    Example:
        >>> import quantkit
        >>> from quantkit.analysis.diagnosis import diagnose
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 32)
        >>> net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval()
        >>> with torch.no_grad():
        ...     net[0].weight[5] *= 40.0  # one channel is large, and all share a scale
        >>> scheme = {"weights": {"per": "tensor"}, "activations": {"per": "tensor"}}
        >>> recipe = quantkit.Recipe.model_validate({"name": "mine", "scheme": scheme})
        >>> found = diagnose(quantkit.quantize(net, recipe, calibration=[x]), [x])
        >>> advice = advise(found, net, recipe, [x], trials=1)
        >>> [(finding.code, finding.where) for finding in advice.findings]
        [('per-tensor-weights', '0')]
    """
    began = time.perf_counter()
    recipe = resolve_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        bench = _bench(
            model, data, samples, Path(folder), example_inputs, example_kwargs, dynamic_shapes
        )
        before = bench.measure(recipe)
        facts = bench.floating.facts(recipe)
        wanted = proposals(found, recipe, facts)
        tried = [
            (proposal, _tried(bench, proposal, recipe, facts))
            for proposal in track(wanted[:trials], "trying what may help")
        ]
        best, chosen = _together(bench, tried, recipe, facts)
        together = paired(before, bench.measure(best)) if chosen else None
    return Advice(
        sqnr=paired(before, before).before, calibrated=bench.calibrated, samples=bench.judging,
        trials=tuple(trial for _, trial in tried),
        untried=tuple(proposal.change for proposal in wanted[trials:]),
        together=together, chosen=chosen, recipe=best, seconds=time.perf_counter() - began,
    )  # fmt: skip


@dataclass(kw_only=True)
class _Bench:
    """Builds candidates on some calls, and measures them on others.

    Attributes:
        floating: makes the float model.
        maker: makes candidates.
        told: the calls to judge by.
        expected: what the float model puts out on them.
        calibrated, judging: how many samples.
        known: what was measured, by the key of the recipe.
    """

    floating: TorchMaker
    maker: TorchMaker
    told: Sequence[Call]
    expected: Sequence[Sequence[Tensor]] = field(default_factory=list)
    calibrated: int = 0
    judging: int = 0
    known: dict[str, Noises] = field(default_factory=dict)

    def measure(self, recipe: Recipe) -> Noises:
        """The noise of the outputs with a recipe, which is built once.

        Raises:
            QuantkitError: it cannot be built.
        """
        key = key_of(recipe)
        if key not in self.known:
            self.known[key] = self._measured(recipe)
        return self.known[key]

    def _measured(self, recipe: Recipe) -> Noises:
        unlimited = Deadline(at=math.inf, clock=time.perf_counter)
        candidate = Candidate(step="advice", change="", recipe=recipe)
        built = self.maker.build(candidate, unlimited)
        names = built.capture.input_names
        sums = []
        for call, wanted in zip(self.told, self.expected, strict=True):
            inputs = _inputs(call, names)
            found = outputs_of(built, call)
            sums.append(energies(found, wanted, samples_of(call), real_positions(inputs)))
        return noises(sums)


def _bench(
    model: nn.Module | torch.export.ExportedProgram,
    data: Iterable[Any],
    samples: int,
    folder: Path,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: DynamicShapes,
) -> _Bench:
    if args is None and kwargs is None:
        args, kwargs = next(as_batches(data))
    bare = TorchMaker(
        model=model, calibration=data, folder=folder, args=args or (), kwargs=kwargs or {},
        dynamic_shapes=dynamic_shapes,
    )  # fmt: skip
    capture = bare.floating.capture
    calls = calls_of(capture, data, samples)
    seen, told = parted(calls)
    judging = sum(map(samples_of, told))
    if len(calls) < LEAST_CALLS or judging < LEAST_JUDGING:
        raise DataError(
            f"advice is judged by every fourth call, and there are {len(calls)} of "
            f"{sum(map(samples_of, calls))} samples in all; give at least "
            f"{LEAST_CALLS * LEAST_JUDGING} samples, or make the diagnosis alone"
        )
    expected = [outputs_of(bare.floating, call) for call in told]
    if not expected[0]:
        raise DataError("no output of the model is of floats, so there is nothing to judge by")
    batches = [_batch(call, capture) for call in seen]
    return _Bench(
        floating=bare, maker=replace(bare, calibration=batches), told=told, expected=expected,
        calibrated=sum(map(samples_of, seen)), judging=judging,
    )  # fmt: skip


def _tried(bench: _Bench, proposal: Proposal, recipe: Recipe, facts: Facts) -> Trial:
    """One change beside what it builds on, whatever comes of it."""
    start = time.perf_counter()
    changed = proposal.apply(recipe, facts)
    assert changed is not None  # else it would not be proposed
    trial = Trial(
        code=proposal.code, where=proposal.where, why=proposal.why, change=proposal.change,
        fix=changed_lines(recipe, changed), verdict="failed", measured=None,
    )  # fmt: skip
    try:
        base = None if proposal.beside is None else proposal.beside(recipe, facts)
        measured = paired(bench.measure(base or recipe), bench.measure(changed))
    except QuantkitError as error:
        return replace(trial, note=str(error), seconds=time.perf_counter() - start)
    return replace(
        trial, verdict="helps" if helps(measured, costs=proposal.costs) else "no help",
        measured=measured, seconds=time.perf_counter() - start,
    )  # fmt: skip


def _together(
    bench: _Bench,
    tried: Sequence[tuple[Proposal, Trial]],
    recipe: Recipe,
    facts: Facts,
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with all that still helps beside the rest; what makes it slower comes last."""
    useful = [(p, t.measured) for p, t in tried if t.verdict == "helps" and t.measured is not None]
    useful.sort(key=lambda pair: (pair[0].costs, -pair[1].gain))
    best, chosen = recipe, list[str]()
    for proposal, _ in track(useful, "putting together what helps"):
        changed = proposal.apply(best, facts)
        if changed is None or changed == best:
            continue
        try:
            found = paired(bench.measure(best), bench.measure(changed))
        except QuantkitError:  # it helps alone, and cannot be had beside the rest
            continue
        if helps(found, costs=proposal.costs):
            best = changed
            chosen.append(proposal.change)
    return best, tuple(chosen)


def changed_lines(before: Recipe, after: Recipe) -> str:
    """The lines of a recipe's file that differ, as they are to be.

    Example:
        >>> mine = Recipe.model_validate({"name": "mine", "scheme": {"weights": {}}})
        >>> yours = Recipe.model_validate({**mine.model_dump(), "calibrator": "mse"})
        >>> print(changed_lines(mine, yours))
        calibrator: mse
    """
    lines = []
    own, short = (_dumped(after, exclude_defaults=short) for short in (False, True))
    for key, value in _dumped(before, exclude_defaults=False).items():
        if own[key] != value:
            told = yaml.safe_dump(
                short.get(key, own[key]), default_flow_style=True, width=math.inf, sort_keys=False
            )
            lines.append(f"{key}: {told.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines)


def outputs_of(model: nn.Module, call: Call) -> list[Tensor]:
    """The outputs of floats of one call."""
    args, kwargs = call
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]


def samples_of(call: Call) -> int:
    """How many samples a call has."""
    args, kwargs = call
    return max((x.shape[0] for x in (*args, *kwargs.values()) if x.dim()), default=1)


def _dumped(recipe: Recipe, *, exclude_defaults: bool) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_defaults=exclude_defaults, exclude={"name"})


def _inputs(call: Call, names: Sequence[str]) -> dict[str, Tensor]:
    """The inputs of a call by their names."""
    args, kwargs = call
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _batch(call: Call, capture: Capture) -> Any:
    """A call as a batch of calibration data."""
    args, kwargs = call
    return _inputs(call, capture.input_names) if kwargs else args
