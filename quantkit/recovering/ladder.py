"""The ladder: remedies in the order of what they cost, and the recipes that each proposes.

A step is a value, and what it proposes depends on a recipe and some facts alone: nothing runs here.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable

from quantkit import plugins
from quantkit.recipe import Override, PlugIn, Recipe, SchemeChoice, TensorChoice, read_recipe
from quantkit.recovering.steps import Candidate, Facts, Propose, Skip, Step

#: What a step may change only if it is allowed to: each makes the model another one to run.
ALLOWANCES = {
    "per_channel": "weights get a scale for each output channel",
}


def calibrators(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """Every other calibrator of activations."""
    if best.scheme.activations is None:
        return Skip(why="the recipe leaves activations in float")
    return tuple(
        _candidate("calibrators", f"calibrator: {name}", best, calibrator=PlugIn(name=name))
        for name in facts.calibrators
        if name != best.calibrator.name
    )


def weight_ranges(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """Weights cut off where finer steps for all others are worth more."""
    if best.scheme.weights is None:
        return Skip(why="the recipe leaves weights in float")
    if best.weight_calibrator.name == "mse":
        return Skip(why="the recipe has weight_calibrator: mse")
    mse = PlugIn(name="mse")
    return (_candidate("weight ranges", "weight_calibrator: mse", best, weight_calibrator=mse),)


def per_channel(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """A scale for each output channel of the weights, where that is allowed."""
    weights = best.scheme.weights
    if weights is None or weights.per != "tensor":
        return Skip(why="the recipe's weights have no scale per tensor")
    if "per_channel" not in facts.allowed:
        return Skip(why="not allowed; --allow per_channel lets weights have a scale a channel")
    scheme = best.scheme.model_copy(
        update={"weights": weights.model_copy(update={"per": "channel"})}
    )
    return (_candidate("per channel", "weights: per channel", best, scheme=scheme),)


def passes(step: str, *sets: tuple[str, ...]) -> Propose:
    """A step that adds passes to the recipe's: a candidate for each set of them."""

    def propose(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
        if facts.onnx:
            return Skip(why="ONNX files have no form of it; give the PyTorch model")
        have = [choice.name for choice in best.passes]
        found = []
        for names in sets:
            added = [name for name in names if name not in have]
            if added and facts.passes.issuperset(names):
                recipe = {"passes": _in_order([*best.passes, *(PlugIn(name=n) for n in added)])}
                found.append(_candidate(step, f"+ {', '.join(added)}", best, **recipe))
        if found:
            return tuple(found)
        if absent := sorted({name for names in sets for name in names} - facts.passes):
            return Skip(why=f"no pass {', '.join(absent)} is installed")
        return Skip(why="the recipe has its passes")

    return propose


def roundings(step: str, *names: str) -> Propose:
    """A step that rounds weights in other ways: a candidate for each of them."""

    def propose(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
        if best.scheme.weights is None:
            return Skip(why="the recipe leaves weights in float")
        if facts.onnx:
            return Skip(why="ONNX files have no way for it; give the PyTorch model")
        if not facts.roundings.intersection(names):
            return Skip(why=f"no rounding {', '.join(names)} is installed")
        found = (name for name in names if name in facts.roundings)
        return tuple(
            _candidate(step, f"rounding: {name}", best, rounding=PlugIn(name=name))
            for name in found
            if name != best.rounding.name
        ) or Skip(why=f"the recipe has rounding: {best.rounding.name}")

    return propose


def mixed_precision(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """The 1, 2, 4, 8 … most sensitive layers in 8 bits where they have fewer, else in float.

    At most half of the layers: beyond that the model is hardly quantized.
    """
    if facts.onnx:
        return Skip(why="layers of ONNX files are not ranked; give the PyTorch model")
    if facts.ranking is None:
        return ()
    if len(facts.ranking) < 2:
        return Skip(why="fewer than two layers are quantized")
    scheme, told = _milder(best.scheme)
    counts = [1 << i for i in range(len(facts.ranking).bit_length())]
    return tuple(
        _candidate(
            "mixed precision", f"{_counted(count)} {told}", best,
            overrides=(*best.overrides, *_overrides(sum(facts.ranking[:count], ()), scheme)),
        )
        for count in counts
        if 2 * count <= len(facts.ranking)
    )  # fmt: skip


def smoothing(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """Channels scaled between activations and the weights of the linear layers that read them."""
    if "linear" not in facts.operators:
        return Skip(why="no linear layer is quantized")
    name = "awq" if best.scheme.activations is None else "smooth"
    return passes("smoothing", (name,))(best, facts)


def asymmetric(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """Activations on grids that need not have zero in the middle.

    TensorRT takes no zero-point: there the pass ``center`` shifts the tensors instead.
    """
    if best.scheme.activations is None:
        return Skip(why="the recipe leaves activations in float")
    if not best.scheme.activations.symmetric:
        return Skip(why="the recipe's activations are asymmetric")
    if best.scheme.activations.dtype == "fp8_e4m3":
        return Skip(why="fp8_e4m3 has no zero-point")
    changed = _with_activations(best, symmetric=False)
    changes: dict[str, object] = {"scheme": changed.scheme, "overrides": changed.overrides}
    told = "activations asymmetric"
    if best.target == "tensorrt":
        if facts.onnx:
            return Skip(why="TensorRT takes no zero-point, and ONNX files have no form of center")
        if "center" not in facts.passes:
            return Skip(why="no pass center is installed")
        changes["passes"] = _in_order([*best.passes, PlugIn(name="center")])
        told = "asymmetric, + center"
    found = [_candidate("asymmetric", told, best, **changes)]
    if not facts.onnx and "conv" in facts.operators and "align_input" in facts.passes:
        made = found[0].recipe.passes
        changes["passes"] = _in_order([*made, PlugIn(name="align_input")])
        found.append(_candidate("asymmetric", f"{told}, + align_input", best, **changes))
    return tuple(found)


def training(best: Recipe, facts: Facts) -> tuple[Candidate, ...] | Skip:
    """Fine-tuning, from weights that are rounded to nearest.

    What was learned by a rounding, or corrected in the quantized model, would be learned by the
    teacher as well: it is the model without its quantizers.
    """
    if not facts.trains:
        return Skip(why="no training data; give --train TRAIN.yaml (labels are not needed)")
    if facts.onnx:
        return Skip(why="ONNX files are not trained; give the PyTorch model")
    kept = tuple(choice for choice in best.passes if choice.name not in facts.model_passes)
    if any(choice.name == "center" for choice in best.passes):
        best = _with_activations(best, symmetric=True)
    choice = best.training
    if "training" not in best.model_fields_set:
        weights = best.scheme.weights
        few = weights is not None and _bits(weights) < 8
        choice = read_recipe(plugins.recipe_path("w4a8_qat" if few else "int8_qat")).training
    told = f"{choice.epochs} epochs, grids: {choice.grids}"
    recipe = best.model_copy(
        update={"passes": kept, "rounding": PlugIn(name="nearest"), "training": choice}
    )
    return (Candidate(step="training", change=told, recipe=recipe, trained=True),)


#: In the order of what they cost.
LADDER: tuple[Step, ...] = (
    Step(name="calibrators", cost=1.0, propose=calibrators),
    Step(name="weight ranges", cost=1.0, propose=weight_ranges),
    Step(name="per channel", cost=1.0, propose=per_channel),
    Step(
        name="equalization", cost=1.5,
        propose=passes("equalization", ("equalize",), ("equalize", "absorb_bias")),
    ),
    Step(name="smoothing", cost=1.5, propose=smoothing),
    Step(name="asymmetric", cost=1.5, propose=asymmetric),
    Step(
        name="bias correction", cost=2.0,
        propose=passes("bias correction", ("correct_bias",), ("reestimate_batchnorm",)),
    ),
    Step(
        name="quick rounding", cost=4.0, propose=roundings("quick rounding", "gptq", "descent"),
    ),
    Step(name="learned rounding", cost=15.0, propose=roundings("learned rounding", "adaround")),
    Step(name="block rounding", cost=30.0, propose=roundings("block rounding", "qdrop")),
    Step(name="mixed precision", cost=4.0, propose=mixed_precision, ranked=True),
    Step(name="training", cost=30.0, propose=training),
)  # fmt: skip

#: Passes in the order in which they belong; those that change the quantized model run last anyway.
_ORDER = (
    "fold_batchnorm",
    "keep_batchnorm",
    "align_input",
    "equalize",
    "absorb_bias",
    "smooth",
    "awq",
    "correct_bias",
    "reestimate_batchnorm",
    "center",
)


def _in_order(choices: Iterable[PlugIn]) -> tuple[PlugIn, ...]:
    """Passes in their order; those that it does not know stay where they are."""
    placed: list[PlugIn] = []
    for choice in choices:
        place = _ORDER.index(choice.name) if choice.name in _ORDER else len(_ORDER)
        later = (
            i for i, p in enumerate(placed) if p.name in _ORDER and _ORDER.index(p.name) > place
        )
        placed.insert(next(later, len(placed)), choice)
    return tuple(placed)


def _candidate(step: str, change: str, best: Recipe, **changes: object) -> Candidate:
    return Candidate(step=step, change=change, recipe=best.model_copy(update=changes))


def _with_activations(recipe: Recipe, *, symmetric: bool) -> Recipe:
    """The recipe with symmetric or asymmetric activations, wherever they can be."""

    def fit(scheme: SchemeChoice | None) -> SchemeChoice | None:
        if scheme is None or scheme.activations is None or scheme.activations.dtype == "fp8_e4m3":
            return scheme
        activations = scheme.activations.model_copy(update={"symmetric": symmetric})
        return scheme.model_copy(update={"activations": activations})

    overrides = tuple(o.model_copy(update={"scheme": fit(o.scheme)}) for o in recipe.overrides)
    return recipe.model_copy(update={"scheme": fit(recipe.scheme), "overrides": overrides})


def _milder(scheme: SchemeChoice) -> tuple[SchemeChoice | None, str]:
    """What a sensitive layer gets, and how that is told: 8 bits if it has fewer, else float."""
    few = [x for x in (scheme.weights, scheme.activations) if x is not None and _bits(x) < 7]
    if not few:
        return None, "in float"

    def mild(choice: TensorChoice | None) -> TensorChoice | None:
        if choice is None or choice not in few:
            return choice
        per = "channel" if choice.per == "group" else choice.per
        return TensorChoice(symmetric=choice.symmetric, per=per)

    return scheme.model_copy(
        update={"weights": mild(scheme.weights), "activations": mild(scheme.activations)}
    ), "in 8 bits"


def _bits(choice: TensorChoice) -> int:
    """Bits of an element."""
    return choice.bits or (4 if choice.dtype == "int4" else 8)


def _overrides(layers: Iterable[str], scheme: SchemeChoice | None) -> tuple[Override, ...]:
    return tuple(Override(module=glob.escape(name), scheme=scheme) for name in layers)


def _counted(count: int) -> str:
    return "the most sensitive" if count == 1 else f"{count} most sensitive"
