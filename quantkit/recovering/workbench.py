"""Builds and measures the candidates of a search, each model once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from quantkit.errors import DataError
from quantkit.progress import track
from quantkit.recipe import Recipe
from quantkit.recovering.goal import Deadline, Measured
from quantkit.recovering.making import Built, Maker, Timed, digest_of
from quantkit.recovering.making_onnx import OnnxMaker
from quantkit.recovering.memory import Memory, key_of
from quantkit.recovering.metrics import Metric, Outputs, outputs_of, sqnr
from quantkit.recovering.search import Bench
from quantkit.recovering.steps import Candidate, Facts


@dataclass(kw_only=True)
class Workbench(Bench):
    """What a search works with.

    Attributes:
        maker: builds candidates.
        held_out: data to judge by.
        metric: the figure.
        memory: what was measured, in this run or before.
        allowed: of ``ladder.ALLOWANCES``.
        built: the candidate that was built last, and its model.
    """

    maker: Maker
    held_out: Iterable[Any]
    metric: Metric
    memory: Memory
    allowed: frozenset[str] = frozenset()
    built: tuple[Candidate, Built] | None = None
    _digests: dict[str, Measured] = field(default_factory=dict)

    @cached_property
    def reference(self) -> Outputs:
        """The float model's outputs."""
        return outputs_of(self.maker.floating, self.held_out, labelled=self.metric.labelled)

    @cached_property
    def floating(self) -> float:
        """The float model's value."""
        return self.metric.of(self.reference, self.reference)

    def facts(self, best: Recipe, deadline: Deadline, *, ranked: bool) -> Facts:
        """What proposals depend on; a ranking is remembered."""
        found = replace(self.maker.facts(best), allowed=self.allowed)
        if not ranked:
            return found
        key = key_of(best)
        if key not in self.memory.rankings:
            ranking = self.maker.ranking(best, deadline)
            self.memory.rankings[key] = ranking
            self.memory.save()
        return replace(found, ranking=self.memory.rankings[key])

    def known(self, candidate: Candidate) -> Measured | None:
        """What an earlier run has measured."""
        return self.memory.get(candidate)

    def measure(self, candidate: Candidate, deadline: Deadline) -> Measured:
        """Build and measure; a model that is equal to an earlier one is not run again.

        Raises:
            OutOfTimeError: the deadline has come.
            QuantkitError: it cannot be built, or its outputs are no numbers.
        """
        start = deadline.clock()
        built = self.model_of(candidate, deadline)
        digest = digest_of(built)
        twin = self._digests.get(digest)
        if twin is None:
            data = track(Timed(self.held_out, deadline), "judging")
            outputs = self._outputs(self.maker.runnable(built), data)
            value, noise = self.metric.of(outputs, self.reference), sqnr(outputs, self.reference)
            measured = Measured(value=value, sqnr=noise, seconds=0.0, digest=digest)
            if isinstance(self.maker, OnnxMaker):
                measured = replace(measured, deployed=value)
        else:
            measured = twin
        measured = replace(measured, seconds=deadline.clock() - start)
        self._digests[digest] = measured
        self.memory.put(candidate, measured)
        return measured

    def deploy(self, candidate: Candidate, measured: Measured) -> Measured:
        """With the metric of its exported file, in ONNX Runtime.

        Raises:
            QuantkitError: it cannot be exported, or does not run.
        """
        unlimited = Deadline(at=float("inf"), clock=lambda: 0.0)
        exported = self.maker.exported(self.model_of(candidate, unlimited))
        outputs = self._outputs(exported, self.held_out)
        found = replace(measured, deployed=self.metric.of(outputs, self.reference))
        self._digests[measured.digest] = found
        self.memory.put(candidate, found)
        return found

    def model_of(self, candidate: Candidate, deadline: Deadline) -> Built:
        """The model of a candidate, which is kept until another is built."""
        if self.built is not None and self.built[0] == candidate:
            return self.built[1]
        self.built = None  # two at a time are one too many in memory
        self.built = candidate, self.maker.build(candidate, deadline)
        return self.built[1]

    def _outputs(self, model: Any, data: Iterable[Any]) -> Outputs:
        found = outputs_of(model, data, labelled=self.metric.labelled)
        for own, wanted in zip(found.whole(), self.reference.whole(), strict=True):
            if own.shape != wanted.shape:
                raise DataError(
                    f"its outputs have shape {tuple(own.shape)}, the float model's "
                    f"{tuple(wanted.shape)}; held-out data must be the same each time"
                )
            if not own[wanted.isfinite()].isfinite().all():
                raise DataError("its outputs hold NaN or infinity where the float model's do not")
        return found
