"""Mixed precision under a budget: for each layer the format that costs least at the outputs.

Losses of layers add up (see `quantkit.analysis.sensitivity`), and so do bytes and operations: so
the best mixture is an integer program, and small (Dong et al. 2020, HAWQ-V2, arXiv:1911.03852,
section 3; Yao et al. 2021, HAWQ-V3, arXiv:2011.10680, section 3.4). It is solved exactly.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.analysis._choosing import Floats, least_loss
from quantkit.analysis.formats import FLOAT, Format
from quantkit.analysis.losses import Loss, Sensitivity, decibels
from quantkit.errors import RecipeError
from quantkit.recipe import Override, Recipe


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a mixture may cost; ``None`` is no limit. One at least is given.

    Attributes:
        size: all parameters, as a fraction of what they take in the recipe's own formats.
        size_bytes: the same, in bytes.
        bit_operations: multiply-accumulates times the bits of both factors, over the layers that
            the recipe quantizes, as a fraction of what the recipe's own formats take.
        float_layers: how many of those layers may be in float.

    Example:
        >>> Budget()
        Traceback (most recent call last):
        ValueError: a budget needs size, size_bytes, bit_operations or float_layers
    """

    size: float | None = None
    size_bytes: int | None = None
    bit_operations: float | None = None
    float_layers: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            raise ValueError("a budget needs size, size_bytes, bit_operations or float_layers")
        for name, value in given.items():
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be 0 or more, got {value}")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A format for each layer or block.

    Attributes:
        recipe: reproduces it: the recipe that was measured, with overrides.
        chosen: the name of each part and that of its format, in the order of execution.
        noise: predicted, of the outputs: the sum of the parts' losses.
        size_bytes: of all parameters, in the bits that are used.
        size: the same as a fraction of what they take in the recipe's own formats.
        bit_operations: as a fraction of those of the recipe's own formats.
    """

    recipe: Recipe
    chosen: tuple[tuple[str, str], ...]
    noise: float
    size_bytes: int
    size: float
    bit_operations: float

    @property
    def sqnr(self) -> float:
        """The predicted signal to noise of the outputs in dB."""
        return decibels(self.noise)


def mix(sensitivity: Sensitivity, budget: Budget) -> Mixture:
    """The mixture of formats of the least predicted noise within a budget.

    Float is among the formats where the sensitivities have it as one, or the budget says how many
    layers may be in it.

    Raises:
        RecipeError: no mixture is within the budget; the message names the least possible.

    Example:
        >>> import torch, quantkit
        >>> from quantkit.analysis.sensitivity import sensitivity
        >>> x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(),
        ...                           torch.nn.Linear(32, 32)).eval()
        >>> model = quantkit.prepare(net, "int8_ptq", example_inputs=(x,))
        >>> found = sensitivity(model, [((x,), {})], formats=["w4a8"])
        >>> mixture = mix(found, Budget(size=0.85))
        >>> sorted(name for _, name in mixture.chosen), mixture.size < 0.85
        (['int8_ptq', 'w4a8'], True)
    """
    program = _Program(sensitivity, with_float=budget.float_layers is not None)
    limits = program.limits(budget)
    program.require_possible(limits)
    costs = np.stack([limit.costs for limit in limits])
    numbers = least_loss(program.losses, costs, np.array([limit.most for limit in limits]))
    if numbers is None:
        raise RecipeError(
            "no mixture keeps all the budgets at once, though each by itself can be kept; raise "
            "one of them"
        )
    return program.mixture([int(number) for number in numbers], limits)


@dataclass(frozen=True)
class _Limit:
    """One budget as a constraint.

    Attributes:
        words: what it is of.
        unit: of its values, for people.
        costs: ``(parts, formats)``.
        most: what they may add up to.
        fixed: what comes on top, whatever is chosen; ``most`` is without it.
        whole: what 1.0 is in units of ``costs``; ``None`` where the budget is no fraction.
    """

    words: str
    costs: Floats
    most: float
    fixed: float = 0.0
    whole: float | None = None

    def told(self, cost: float) -> str:
        """A sum of costs, as the user writes it."""
        total = cost + self.fixed
        return f"{total:,.0f}" if self.whole is None else f"{total / self.whole:.4g}"


class _Program:
    """The table of a model's sensitivities as matrices."""

    def __init__(self, sensitivity: Sensitivity, *, with_float: bool) -> None:
        self.table = sensitivity
        self.formats: tuple[Format, ...] = sensitivity.formats
        added = with_float and FLOAT not in sensitivity.columns
        if added:
            self.formats = (*self.formats, Format(name=FLOAT, scheme=None))
        self.cells: list[list[Loss | None]] = [
            [*part.losses, *([part.in_float] if added else [])] for part in sensitivity.parts
        ]
        self.losses = self._matrix(lambda loss: loss.noise, absent=math.inf)
        self.bytes = self._matrix(lambda loss: float(loss.weight_bytes))
        self.operations = self._matrix(lambda loss: float(loss.bit_operations))

    def _matrix(self, value: Callable[[Loss], float], absent: float = 0.0) -> Floats:
        rows = [[absent if c is None else value(c) for c in row] for row in self.cells]
        return np.array(rows, dtype=np.float64)

    def limits(self, budget: Budget) -> list[_Limit]:
        """The budgets that are given."""
        found: list[_Limit] = []
        other = float(self.table.other_bytes)
        whole = self.bytes[:, 0].sum() + other
        if budget.size is not None:
            most = budget.size * whole - other
            found.append(_Limit("size", self.bytes, most, other, whole))
        if budget.size_bytes is not None:
            found.append(_Limit("size in bytes", self.bytes, budget.size_bytes - other, other))
        if budget.bit_operations is not None:
            whole = self.operations[:, 0].sum()
            most = budget.bit_operations * whole
            found.append(_Limit("bit operations", self.operations, most, 0.0, whole))
        if budget.float_layers is not None:
            counts = np.zeros_like(self.losses)
            names = [self.table.recipe.name, *(format.name for format in self.formats)]
            column = names.index(FLOAT)
            counts[:, column] = [len(part.layers) for part in self.table.parts]
            found.append(_Limit("float layers", counts, budget.float_layers))
        return found

    def require_possible(self, limits: Sequence[_Limit]) -> None:
        """Refuse a budget below what the cheapest formats take."""
        possible = np.isfinite(self.losses)
        if not possible.any(axis=1).all():
            part = self.table.parts[int((~possible.any(axis=1)).argmax())]
            raise RecipeError(
                f"{part.name} makes numbers of the outputs in none of the formats; give others, "
                f"such as {FLOAT}"
            )
        for limit in limits:
            least = float(np.where(possible, limit.costs, math.inf).min(axis=1).sum())
            if least > limit.most * (1.0 + 1e-12):
                raise RecipeError(
                    f"{limit.words} of {limit.told(limit.most)} cannot be kept: the least that "
                    f"these formats allow is {limit.told(least)}; raise the budget, or give "
                    "smaller formats"
                )

    def mixture(self, numbers: Sequence[int], limits: Sequence[_Limit]) -> Mixture:
        """What a choice comes to."""
        rows = np.arange(len(numbers))
        chosen = [
            (part, None if number == 0 else self.formats[number - 1])
            for part, number in zip(self.table.parts, numbers, strict=True)
        ]
        own, other = self.table.recipe, self.table.other_bytes
        overrides = [
            Override(module=glob.escape(layer), scheme=format.scheme)
            for part, format in chosen if format is not None
            for layer in part.layers
        ]  # fmt: skip
        kept = ", ".join(f"{limit.words} {limit.told(limit.most)}" for limit in limits)
        size, whole = self.bytes[rows, numbers].sum() + other, self.bytes[:, 0].sum() + other
        noise = float(self.losses[rows, numbers].sum())
        recipe = own.model_copy(
            update={
                "name": f"{own.name}_mixed",
                "description": f"{own.name} with the formats of least loss for {kept}; predicted "
                f"SQNR {decibels(noise):.1f} dB.",
                "overrides": (*own.overrides, *overrides),
            }
        )
        operations = self.operations[rows, numbers].sum() / max(self.operations[:, 0].sum(), 1.0)
        return Mixture(
            recipe=recipe, noise=noise, size_bytes=int(size), size=float(size / whole),
            bit_operations=float(operations),
            chosen=tuple((part.name, format.name if format else own.name)
                         for part, format in chosen),
        )  # fmt: skip
