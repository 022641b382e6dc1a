"""The choice of least loss within budgets: matrices in, a choice out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: How often a budget is drawn in where the solver's tolerance has overrun it.
_ATTEMPTS = 8


def least_loss(losses: Floats, costs: Floats, budgets: Floats) -> NDArray[np.int64] | None:
    """For each part a format, so that losses add up to the least and costs to no more than budgets.

    The multiple-choice knapsack with several constraints, an integer program: ``x[p, f]`` is 0 or
    1, ``sum_f x[p, f] = 1``, ``sum costs[c] * x <= budgets[c]``, and ``sum losses * x`` least.

    Args:
        losses: ``(parts, formats)``, zero or more; infinite where a part cannot have a format.
        costs: ``(constraints, parts, formats)``, zero or more.
        budgets: ``(constraints,)``.

    Returns:
        The number of a format for each part; ``None`` where no choice is within the budgets.

    Example:
        >>> losses = np.array([[0.0, 1.0], [0.0, 5.0]])
        >>> costs = np.array([[[2.0, 1.0], [2.0, 1.0]]])
        >>> least_loss(losses, costs, np.array([3.0])).tolist()
        [1, 0]
    """
    bounds = budgets.astype(np.float64).copy()
    for _ in range(_ATTEMPTS):
        chosen = _solved(losses, costs, bounds)
        if chosen is None:
            return None
        spent = costs[:, np.arange(len(losses)), chosen].sum(axis=1)
        over = spent - budgets
        # Sums of floats in another order differ in their last bits.
        if bool((over <= 1e-12 * np.abs(budgets)).all()):
            return chosen
        # Below what was spent, by more than the solver's tolerance.
        bounds = np.where(over > 0.0, np.minimum(bounds, budgets) - 2.0 * over, bounds)
    return None


def _solved(losses: Floats, costs: Floats, budgets: Floats) -> NDArray[np.int64] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    parts, formats = losses.shape
    allowed = np.isfinite(losses)
    finite = np.where(allowed, losses, 0.0)
    one_each = np.kron(np.eye(parts), np.ones(formats))
    rows = [LinearConstraint(one_each, 1.0, 1.0)]
    for cost, budget in zip(costs, budgets, strict=True):
        scale = max(float(cost.max()), abs(float(budget)) / parts, np.finfo(float).tiny)
        rows.append(LinearConstraint(cost.reshape(1, -1) / scale, -np.inf, budget / scale))
    found = milp(
        _scaled(finite, allowed).reshape(-1),
        integrality=np.ones(parts * formats),
        bounds=Bounds(0.0, allowed.reshape(-1).astype(float)),
        constraints=rows,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    chosen: NDArray[np.int64] = found.x.reshape(parts, formats).argmax(axis=1)
    return chosen


def _scaled(losses: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """The same losses in units that put the solver's tolerance, 1e-6, far below their sum."""
    least = np.where(allowed, losses, losses.max()).min(axis=1).sum()
    unit = max(float(least), float(losses.max()) * 1e-6) / 1e3
    return losses / unit if unit > 0.0 else losses
