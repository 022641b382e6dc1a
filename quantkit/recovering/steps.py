"""What a step of the ladder is, what it proposes, and what its proposals depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from quantkit.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recipe to try.

    Attributes:
        step: the name of the step that proposes it.
        change: how it differs from the recipe that it builds on.
        recipe: all of it.
        trained: whether the model is trained as well, by the recipe's ``training``.
    """

    step: str
    change: str
    recipe: Recipe
    trained: bool = False


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Why a step has nothing to propose."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What proposals depend on, beside the best recipe so far.

    Attributes:
        calibrators: those that find ranges for a recipe.
        passes: those that are installed.
        roundings: those that are installed.
        model_passes: of the passes those that change the quantized model.
        operators: the kinds of layers that are quantized, such as ``conv``.
        onnx: the model is an ONNX file, which has no form of most passes and roundings.
        trains: training data were given.
        allowed: of `ALLOWANCES`.
        ranking: the quantized layers, the most sensitive first; for steps that want one. Layers
            that are quantized only together, as both products of an attention, stand together.
            ``None``: they are not ranked yet.
    """

    calibrators: tuple[str, ...] = ()
    passes: frozenset[str] = frozenset()
    roundings: frozenset[str] = frozenset()
    model_passes: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()
    onnx: bool = False
    trains: bool = False
    allowed: frozenset[str] = frozenset()
    ranking: tuple[tuple[str, ...], ...] | None = None


Propose: TypeAlias = Callable[[Recipe, Facts], tuple[Candidate, ...] | Skip]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rung.

    Attributes:
        name: as it stands in the table; ``--skip`` takes it.
        cost: what one candidate is expected to take, in times of the baseline. It is a rough
            guess, and what the step's own first candidate has taken replaces it.
        propose: the candidates, each built on the best recipe so far, or why there are none.
        ranked: whether it wants ``Facts.ranking``.
    """

    name: str
    cost: float
    propose: Propose
    ranked: bool = False
