"""What advice says, as values: what was tried, what it was worth, and the recipe it makes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from quantkit.analysis._diagnosis_values import finite
from quantkit.interfaces import Finding, Severity
from quantkit.recipe import Recipe

#: What came of a trial: it helped beyond chance; it did not; it could not be built or run.
Verdict: TypeAlias = Literal["helps", "no help", "failed"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a change of the recipe does to the outputs on samples that calibrate nothing.

    Attributes:
        before, after: SQNR of the outputs, in dB.
        gain: mean over the samples of what each gains, in dB.
        error: the standard error of that mean.
        samples: how many.
    """

    before: float
    after: float
    gain: float
    error: float
    samples: int

    def __str__(self) -> str:
        """Such as ``20.1 to 24.3 dB (+4.2 ± 0.3 on 16 samples)``."""
        return (
            f"{self.before:.1f} to {self.after:.1f} dB ({self.gain:+.2f} ± {self.error:.2f} on "
            f"{self.samples} samples)"
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change of the recipe that the diagnosis speaks for, and what it was worth.

    Attributes:
        code: the rule's name, such as ``unused-range``; stable, for machines.
        where: the layer or grid by which it is proposed.
        why: the figure of the diagnosis, one sentence.
        change: in a few words, such as ``calibrator: mse``.
        fix: the lines of the recipe.
        verdict: what came of it.
        measured: ``None`` where it failed.
        note: why it failed.
        seconds: what it took.
    """

    code: str
    where: str
    why: str
    change: str
    fix: str
    verdict: Verdict
    measured: Measured | None
    note: str = ""
    seconds: float = 0.0

    def finding(self) -> Finding:
        """As a finding; of what helps."""
        lines = "; ".join(self.fix.splitlines())
        return Finding(
            severity=Severity.WARNING, code=self.code, where=self.where, why=self.why,
            fix=f"Write in the recipe: {lines} (outputs {self.measured}).",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What was tried to make a recipe better.

    Attributes:
        sqnr: of the outputs with the recipe as it is, in dB, on the samples that are held out.
        calibrated: how many samples calibrate.
        samples: how many are held out.
        trials: each change alone, in the order in which they were tried.
        untried: changes that the limit of trials left out.
        together: the recipe with what helps together, measured; ``None`` where nothing helps.
        chosen: the changes that are in it.
        recipe: that recipe; the one that was given where nothing helps.
        seconds: what all took.
    """

    sqnr: float
    calibrated: int
    samples: int
    trials: tuple[Trial, ...]
    untried: tuple[str, ...]
    together: Measured | None
    chosen: tuple[str, ...]
    recipe: Recipe
    seconds: float

    @property
    def helpful(self) -> tuple[Trial, ...]:
        """What helps, the most first."""
        found = [trial for trial in self.trials if trial.verdict == "helps"]
        return tuple(sorted(found, key=_gain, reverse=True))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What helps, as findings."""
        return tuple(trial.finding() for trial in self.helpful)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of a table of all that was tried, the best first."""
        rows = [_row(trial) for trial in sorted(self.trials, key=_gain, reverse=True)]
        return ["verdict", "dB", "gain", "change", "because of"], rows

    def to_yaml(self) -> str:
        """The recipe as a file, its first line telling where it comes from."""
        told = "; ".join(self.chosen) or "no change helps"
        worth = "" if self.together is None else f": {self.together}"
        return f"# {self.recipe.name} after quantkit diagnose, {told}{worth}\n" + (
            self.recipe.to_yaml()
        )

    def to_data(self) -> dict[str, Any]:
        """For JSON; what is infinite is ``None``."""
        data = asdict(self)
        data["recipe"] = self.recipe.model_dump(mode="json")
        data["findings"] = [asdict(finding) for finding in self.findings]
        found: dict[str, Any] = finite(data)
        return found

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(self.to_data(), indent=1, allow_nan=False) + "\n"


def _gain(trial: Trial) -> float:
    return float("-inf") if trial.measured is None else trial.measured.gain


def _row(trial: Trial) -> list[str]:
    if trial.measured is None:
        return [trial.verdict, "-", "-", trial.change, f"{trial.where}: {trial.note}"]
    own = trial.measured
    gain = f"{own.gain:+.2f} ± {own.error:.2f}"
    return [trial.verdict, f"{own.after:.1f}", gain, trial.change, trial.where]
