"""Formats that layers may have instead of the recipe's, by short names such as ``w4a8``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from quantkit.errors import RecipeError
from quantkit.recipe import Recipe, SchemeChoice, TensorChoice
from quantkit.spec import STORAGE_BITS

#: The name of the format that leaves a layer as it is.
FLOAT = "float"
_NAME = re.compile(r"w(\d+)(?:a(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Format:
    """A scheme with a name.

    Attributes:
        name: such as ``w4a8``.
        scheme: ``None``: float.
    """

    name: str
    scheme: SchemeChoice | None


def named_formats(recipe: Recipe, names: Sequence[str]) -> tuple[Format, ...]:
    """The formats of these names: ``float``, or the recipe's scheme with other numbers of bits.

    ``w4a8`` has weights of 4 bits and activations of 8, and ``w4`` weights of 4 bits and float
    activations; all else (symmetric or not, per channel or tensor) is as in the recipe.

    Raises:
        RecipeError: a name is none, or the recipe quantizes no tensors of that kind.

    Example:
        >>> recipe = Recipe.model_validate({"name": "mine", "scheme": {"weights": {}}})
        >>> [format.scheme for format in named_formats(recipe, ["float"])]
        [None]
        >>> named_formats(recipe, ["w4"])[0].scheme.weights.bits
        4
    """
    return tuple(Format(name=name, scheme=_scheme(recipe, name)) for name in dict.fromkeys(names))


def _scheme(recipe: Recipe, name: str) -> SchemeChoice | None:
    if name == FLOAT:
        return None
    match = _NAME.fullmatch(name)
    if match is None:
        raise RecipeError(f"no format {name!r}; write w4a8, w8a8, w4 (weights alone), or {FLOAT}")
    weights = _with_bits(recipe, "weights", name, int(match[1]))
    activations = None if match[2] is None else _with_bits(
        recipe, "activations", name, int(match[2])
    )  # fmt: skip
    return SchemeChoice(weights=weights, activations=activations)


def _with_bits(recipe: Recipe, kind: str, name: str, bits: int) -> TensorChoice:
    own: TensorChoice | None = getattr(recipe.scheme, kind)
    if own is None:
        raise RecipeError(
            f"format {name} has {kind} of {bits} bits, and recipe {recipe.name} leaves {kind} in "
            "float; take a recipe that quantizes them"
        )
    stored = STORAGE_BITS[own.dtype]
    if bits == (own.bits or stored):
        return own  # not a grid of another form, which a tensor's readers could not share
    changed = own.model_dump() | {"bits": None if bits == stored else bits}
    if bits <= (own.bits_without_vnni or 0):
        changed["bits_without_vnni"] = None  # it has fewer on every processor
    try:
        return TensorChoice.model_validate(changed)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(
            f"format {name}: {kind} of recipe {recipe.name}: {reason}; choose other formats"
        ) from error
