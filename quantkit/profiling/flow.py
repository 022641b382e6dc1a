"""The steps of a runtime as a graph: who makes and who reads each tensor between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from quantkit.profiling.steps import Step, StepKind


@dataclass(frozen=True)
class Flow:
    """Steps, and who makes and reads the tensors between them."""

    steps: tuple[Step, ...]

    @cached_property
    def producer(self) -> dict[str, Step]:
        """The step that makes each tensor."""
        return {name: step for step in self.steps for name in step.outputs}

    @cached_property
    def readers(self) -> dict[str, list[Step]]:
        """The steps that read each tensor."""
        found: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            for name in step.inputs:
                found[name].append(step)
        return found

    def before(self, step: Step) -> list[Step]:
        """The steps whose results it reads."""
        return [self.producer[name] for name in step.inputs if name in self.producer]

    def after(self, step: Step) -> list[Step]:
        """The steps that read its results."""
        return [reader for name in step.outputs for reader in self.readers.get(name, ())]

    def products(self, step: Step, *, up: bool) -> list[Step]:
        """The nearest products before or after a step."""
        near = self.before if up else self.after
        found: dict[str, Step] = {}
        seen = {step.name}
        stack = near(step)
        while stack:
            other = stack.pop()
            if other.name in seen:
                continue
            seen.add(other.name)
            if other.kind is StepKind.PRODUCT:
                found[other.name] = other
            else:
                stack += near(other)
        return list(found.values())

    @cached_property
    def whole(self) -> float | None:
        """Seconds of all steps; ``None`` where there are no times."""
        times = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(times) or None

    def share(self, steps: Sequence[Step]) -> float | None:
        """Of the time of all steps, 0 to 1; ``None`` where there are no times."""
        if self.whole is None:
            return None
        return sum(step.seconds or 0.0 for step in steps) / self.whole
