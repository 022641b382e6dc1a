"""Changes of a recipe, as functions of a recipe: most are steps of the ladder of `recover`."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from quantkit.recipe import Override, Recipe
from quantkit.recovering import ladder
from quantkit.recovering.steps import Candidate, Facts, Propose, Skip

#: The recipe with the change; ``None`` where it has it, or cannot.
Change: TypeAlias = Callable[[Recipe, Facts], Recipe | None]


def first(propose: Propose) -> Change:
    """The first recipe that a step of the ladder proposes."""
    return lambda recipe, facts: next(iter(_recipes(propose(recipe, _allowing(facts)))), None)


def last(propose: Propose) -> Change:
    """The last of several."""

    def apply(recipe: Recipe, facts: Facts) -> Recipe | None:
        found = _recipes(propose(recipe, _allowing(facts)))
        return found[-1] if len(found) > 1 else None

    return apply


def chosen(propose: Propose, change: str) -> Change:
    """The recipe of one change."""

    def apply(recipe: Recipe, facts: Facts) -> Recipe | None:
        found = propose(recipe, facts)
        candidates = () if isinstance(found, Skip) else found
        return next((c.recipe for c in candidates if c.change == change), None)

    return apply


def passes(*names: str) -> Change:
    """Passes beside those that there are, in the order in which they belong."""
    return first(ladder.passes("advice", names))


def aligned(recipe: Recipe, facts: Facts) -> Recipe | None:
    """The model's input on the grid of its pixels, which must be asymmetric for that."""
    return last(ladder.asymmetric)(recipe, facts) or passes("align_input")(recipe, facts)


def left_in_float(layer: str) -> Change:
    """An override for one layer."""

    def apply(recipe: Recipe, facts: Facts) -> Recipe:
        own = Override(module=glob.escape(layer), scheme=None)
        return recipe.model_copy(update={"overrides": (*recipe.overrides, own)})

    return apply


def _recipes(found: tuple[Candidate, ...] | Skip) -> list[Recipe]:
    return [] if isinstance(found, Skip) else [candidate.recipe for candidate in found]


def _allowing(facts: Facts) -> Facts:
    """Advice may change what a recovery may not without being asked: a user reads it first."""
    return replace(facts, allowed=frozenset(ladder.ALLOWANCES))
