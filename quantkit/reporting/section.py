"""The sections of a report: what each holds, or why it holds nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from quantkit.errors import MissingDependencyError, QuantkitError, RecipeError

#: What stands in a section: dictionaries, lists, strings, numbers, ``None``; keys are strings.
Data: TypeAlias = Mapping[str, Any]

#: Every section by its name, in the order of the page, with its title.
TITLES: Final[Mapping[str, str]] = {
    "outputs": "Outputs",
    "accuracy": "Accuracy",
    "layer_parity": "Parity by layer",
    "coverage": "Coverage by target",
    "latency": "Latency",
    "sensitivity": "Sensitivity",
    "diagnosis": "Error by layer",
    "advice": "Advice, tried",
    "profile": "Where time goes",
    "histograms": "Histograms",
    "plan": "Plan",
    "recipe": "Recipe",
    "environment": "Environment",
}

#: Sections that ``without`` may name; the others cost nothing.
OPTIONAL: Final = tuple(name for name in TITLES if name not in ("plan", "recipe", "environment"))


class State(StrEnum):
    """Whether a section is there."""

    MADE = "made"  #: it holds data
    LEFT_OUT = "left out"  #: it was not asked for, or there is nothing to make it of
    FAILED = "failed"  #: something went wrong, and ``why`` tells what


class Unavailable(Exception):  # noqa: N818
    """There is nothing to make a section of; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of a report.

    Attributes:
        name: one of `TITLES`.
        state: whether it was made.
        why: why it was not; empty where it was.
        seconds: what making it took.
        data: what stands in it; ``None`` where it was not made.

    Example:
        >>> Section(name="plan", state=State.MADE, data={"decisions": []}).title
        'Plan'
        >>> Section(name="plan", state=State.FAILED)
        Traceback (most recent call last):
        ValueError: section plan: failed needs a reason and no data
    """

    name: str
    state: State
    why: str = ""
    seconds: float = 0.0
    data: Data | None = None

    def __post_init__(self) -> None:
        if self.name not in TITLES:
            raise ValueError(f"no section {self.name!r}; there are: {', '.join(TITLES)}")
        made = self.state is State.MADE
        if made != (self.data is not None) or made == bool(self.why):
            raise ValueError(
                f"section {self.name}: {self.state} needs "
                + ("data and no reason" if made else "a reason and no data")
            )

    @property
    def title(self) -> str:
        """For people."""
        return TITLES[self.name]


def attempt(name: str, make: Callable[[], Data], without: Sequence[str] = ()) -> Section:
    """Make one section; what goes wrong is told in it, and does not end the others.

    Args:
        name: the section's.
        make: what makes its data.
        without: sections that are not wanted.

    Example:
        >>> def fails() -> Data:
        ...     raise ValueError("no rows")
        >>> attempt("plan", fails).why
        'ValueError: no rows'
        >>> attempt("latency", fails, without=["latency"]).state
        <State.LEFT_OUT: 'left out'>
    """
    if name in without:
        return Section(name=name, state=State.LEFT_OUT, why="Not asked for.")
    started = time.perf_counter()
    try:
        data = make()
    except (Unavailable, MissingDependencyError) as error:
        return Section(name=name, state=State.LEFT_OUT, why=line(error))
    except Exception as error:  # a defect as well: the other sections are worth as much without it
        return Section(
            name=name, state=State.FAILED, why=line(error), seconds=time.perf_counter() - started
        )
    return Section(name=name, state=State.MADE, seconds=time.perf_counter() - started, data=data)


def line(error: Exception) -> str:
    """What an error says, on one line; with its kind, where it is none of quantkit's own."""
    text = " ".join(str(error).split())
    if isinstance(error, QuantkitError | Unavailable):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def require_known(without: Sequence[str]) -> None:
    """Refuse, before any work, to leave out what is not there.

    Raises:
        RecipeError: there is no such section, or it cannot be left out.

    Example:
        >>> require_known(["latency"])
        >>> require_known(["speed"])
        Traceback (most recent call last):
        quantkit.errors.RecipeError: no section 'speed' to leave out; there are: outputs, ...
    """
    for name in without:
        if name not in OPTIONAL:
            raise RecipeError(f"no section {name!r} to leave out; there are: {', '.join(OPTIONAL)}")
