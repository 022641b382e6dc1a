"""Which changes of a recipe a diagnosis speaks for: pure functions; nothing runs here.

A rule looks at the figures of a diagnosis and proposes changes, each with the layer or grid that
speaks most for it. Whether a change helps is for a trial to say.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quantkit.analysis import _advice_changes as changes
from quantkit.analysis._advice_changes import Change
from quantkit.analysis._diagnosis_told import percent, times, told_decibels
from quantkit.analysis._diagnosis_values import OUTLIER, Diagnosis, GridUse, LayerDiagnosis
from quantkit.recipe import Recipe
from quantkit.recovering import ladder
from quantkit.recovering.steps import Facts

#: A grid's range may be too short where so much of its error is of values that it cuts off.
CLIPPED = 0.5
#: It may be too long where so much of it serves one value in a thousand: a bit, for half of it.
HEADROOM = 0.5
#: Weights with one scale lose a bit where the largest channel is so many times the median one.
UNEVEN = 2.0
#: What a bias could take back is worth a trial from this share of a layer's error on.
MEAN = 0.25
#: A layer may dominate where its noise is so many times that of the median layer.
DOMINANT = 2.0
#: So many layers are tried in float.
IN_FLOAT = 3
#: Calibrators that cut off what is rare, and those that cover more.
CUTTING = ("mse", "percentile", "entropy")
COVERING = ("minmax", "mse", "percentile")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A change of the recipe, and the figure that speaks for it.

    Attributes:
        code: the rule's name.
        where: the layer or grid.
        why: one sentence.
        change: in a few words.
        apply: the recipe with the change; ``None`` where it has it, or cannot.
        costs: it makes the model slower to run, so it must gain more.
        beside: a change that it builds on, which must not be counted as its own gain.
    """

    code: str
    where: str
    why: str
    change: str
    apply: Change
    costs: bool = False
    beside: Change | None = None


def proposals(found: Diagnosis, recipe: Recipe, facts: Facts) -> list[Proposal]:
    """What to try, in the order in which it is to be tried; each changes the recipe.

    Args:
        found: of the model that the recipe makes.
        recipe: as it is.
        facts: what is installed, and which kinds of layers are quantized.
    """
    rules = (
        _per_channel, _ranges, _uneven, _weight_ranges, _one_sided, _input, _biases, _in_float,
    )  # fmt: skip
    kept: dict[str, Proposal] = {}
    for rule in rules:
        for proposal in rule(found, recipe, facts):
            changed = proposal.apply(recipe, facts)
            if changed is not None and changed != recipe:
                kept.setdefault(proposal.change, proposal)
    return list(kept.values())


def _per_channel(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Weights with one scale, whose output channels differ."""
    shared = [layer for layer in _weighted(found) if _weight(layer).spec.endswith("per tensor")]
    worst = max(shared, key=lambda layer: _weight(layer).spread, default=None)
    if worst is None or _weight(worst).spread < UNEVEN:
        return
    own = _weight(worst)
    yield Proposal(
        code="per-tensor-weights", where=worst.name,
        why=f"One scale serves all of its weight, whose largest channel{_named(own)} is "
        f"{times(own.spread)} the median one.",
        change="weights: per channel", apply=changes.first(ladder.per_channel),
    )  # fmt: skip


def _ranges(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Ranges of activations that are too short, or too long."""
    grids = _activations(found)
    short = [(name, g) for name, g in grids if g.saturated > 0.0 and g.clipped >= CLIPPED]
    long = [(name, g) for name, g in grids if (g.headroom or 0.0) >= HEADROOM]
    if short:
        name, own = max(short, key=lambda pair: pair[1].noise * pair[1].clipped)
        why = (
            f"{percent(own.saturated)} of its input's values lie beyond the grid, and make "
            f"{percent(own.clipped)} of its error."
        )
        yield from _calibrators("saturated-range", name, why, COVERING, facts)
    if long:
        name, own = max(long, key=lambda pair: pair[1].headroom or 0.0)
        why = (
            f"{percent(own.headroom)} of its input's range is there for one value in a thousand; "
            f"values reach from {own.low:.3g} to {own.high:.3g}, the grid from {own.grid_low:.3g} "
            f"to {own.grid_high:.3g}."
        )
        yield from _calibrators("unused-range", name, why, CUTTING, facts)


def _calibrators(
    code: str, where: str, why: str, names: Sequence[str], facts: Facts
) -> Iterator[Proposal]:
    for name in names:
        if name in facts.calibrators:
            change = f"calibrator: {name}"
            yield Proposal(
                code=code, where=where, why=why, change=change,
                apply=changes.chosen(ladder.calibrators, change),
            )  # fmt: skip


def _uneven(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Channels of activations, or of weights with one scale, that differ."""
    scaling = "awq" if recipe.scheme.activations is None else "smooth"
    by_kind = {"conv": ("equalize",), "linear": (scaling,)}
    for kind, names in by_kind.items():
        layers = [layer for layer in found.layers if layer.kind == kind]
        worst = max(layers, key=_spread, default=None)
        if worst is None or _spread(worst) < OUTLIER:
            continue
        own = max(worst.grids, key=lambda grid: _told_spread(grid))
        what = "weight" if own.role == "weight" else "input"
        why = (
            f"Channels of its {what} differ: the largest{_named(own)} is {times(own.spread)} the "
            "median one, and one scale serves all."
        )
        sets = (names, ("equalize", "absorb_bias")) if kind == "conv" else (names,)
        for chosen in sets:
            yield Proposal(
                code="uneven-channels", where=worst.name, why=why,
                change=f"passes: + {', '.join(chosen)}", apply=changes.passes(*chosen),
                beside=None if chosen == names else changes.passes(*names),
            )  # fmt: skip


def _weight_ranges(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Weights that make most of a layer's error, with ranges that few values need."""
    long = [
        layer for layer in _weighted(found)
        if (layer.weights_share or 0.0) >= 0.5 and (_weight(layer).headroom or 0.0) > 0.0
    ]  # fmt: skip
    worst = max(long, key=lambda layer: layer.weights_noise or 0.0, default=None)
    if worst is not None:
        yield Proposal(
            code="weight-range", where=worst.name,
            why=f"Its weight makes {percent(worst.weights_share)} of its error, and "
            f"{percent(_weight(worst).headroom)} of the grid is there for one weight in a "
            "thousand.",
            change="weight_calibrator: mse", apply=changes.first(ladder.weight_ranges),
        )  # fmt: skip


def _one_sided(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Grids with zero in the middle for values of one side."""
    named = [(name, grid) for name, grid in _activations(found) if grid.one_sided]
    if not named:
        return
    name, own = max(named, key=lambda pair: pair[1].noise)
    yield Proposal(
        code="one-sided", where=name,
        why=f"Its input reaches from {own.low:.3g} to {own.high:.3g}, and zero is in the middle of "
        f"the grid: {percent(own.unused)} of it is never used.",
        change="activations: asymmetric", apply=changes.first(ladder.asymmetric),
    )  # fmt: skip


def _input(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """A first convolution whose input makes most of its error: pixels on another grid."""
    first = found.layers[0] if found.layers else None
    if first is None or first.kind != "conv" or (first.activations_share or 0.0) < 0.5:
        return
    why = f"The model's input makes {percent(first.activations_share)} of its error."
    choice = recipe.scheme.activations
    symmetric = choice is not None and choice.symmetric
    yield Proposal(
        code="input-grid", where=first.name, why=why,
        change="activations: asymmetric, + align_input" if symmetric else "passes: + align_input",
        apply=changes.aligned, beside=changes.first(ladder.asymmetric) if symmetric else None,
    )  # fmt: skip


def _biases(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """Errors that are the same for all samples."""
    layers = [layer for layer in found.layers if layer.mean_share >= MEAN]
    worst = max(layers, key=lambda layer: layer.mean_share * layer.noise, default=None)
    if worst is not None:
        yield Proposal(
            code="mean-error", where=worst.name,
            why=f"{percent(worst.mean_share)} of its error is the mean error of its channels, "
            "which a bias takes back.",
            change="passes: + correct_bias", apply=changes.passes("correct_bias"),
        )  # fmt: skip


def _in_float(found: Diagnosis, recipe: Recipe, facts: Facts) -> Iterator[Proposal]:
    """The layers that are much worse than the others."""
    if len(found.layers) < 3:
        return
    median = statistics.median(layer.noise for layer in found.layers)
    for layer in found.ranked()[:IN_FLOAT]:
        if layer.noise > DOMINANT * median:
            yield Proposal(
                code="dominant-layer", where=layer.name,
                why=f"Its own SQNR is {told_decibels(layer.noise)} dB, the median layer's "
                f"{told_decibels(median)}.",
                change=f"{layer.name}: float", apply=changes.left_in_float(layer.name), costs=True,
            )  # fmt: skip


def _weighted(found: Diagnosis) -> list[LayerDiagnosis]:
    return [layer for layer in found.layers if layer.weight is not None]


def _weight(layer: LayerDiagnosis) -> GridUse:
    assert layer.weight is not None
    return layer.weight


def _activations(found: Diagnosis) -> list[tuple[str, GridUse]]:
    """Each grid with the layer that reads it, or its own name."""
    read = [(layer.name, grid) for layer in found.layers for grid in layer.activations]
    return [*read, *((grid.grid, grid) for grid in found.others)]


def _told_spread(grid: GridUse) -> float:
    """How much channels differ that one scale serves."""
    return grid.spread if grid.spec.endswith("per tensor") else 1.0


def _spread(layer: LayerDiagnosis) -> float:
    return max(map(_told_spread, layer.grids), default=1.0)


def _named(grid: GridUse) -> str:
    return f" ({grid.largest[0].channel})" if grid.largest else ""
