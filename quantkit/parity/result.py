"""What a comparison layer by layer found: plain frozen values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from quantkit.interfaces import Finding
from quantkit.onnx.parity import Closeness


@dataclass(frozen=True, kw_only=True)
class TensorParity:
    """One tensor of the model in float, simulated and deployed.

    Attributes:
        name: the plan's name of the layer whose result it is, or of the activation that is put on
            a grid.
        kind: the result of a layer, or an activation behind its Q/DQ.
        simulated: the simulated one beside the float one; ``None`` without a float model, or where
            that has no such tensor.
        deployed: the deployed one beside the simulated one, both from the model's inputs on.
        own: the same, but the file is given the simulation's tensors at each step, and each node
            runs as it stands there: what this one step says wrong, whatever is wrong before it.
        target: as ``deployed``, on the target itself; ``None`` where it did not run.
        default_mode: how far ONNX Runtime's default mode is from its exact one here, as a share of
            the largest value; ``None`` for the result of a layer, which it does not put out
            without taking its integer kernel apart.
    """

    name: str
    kind: Literal["layer", "activation"]
    simulated: Closeness | None
    deployed: Closeness
    own: Closeness
    target: Closeness | None
    default_mode: float | None


@dataclass(frozen=True, kw_only=True)
class LayerParity:
    """What a comparison layer by layer found.

    Attributes:
        tensors: in the file's order.
        departs: the first of them where deployment leaves simulation by its own doing; ``None``
            where it does not.
        findings: that, why, and what the file lacks.
        samples: how many were compared.
        seconds: how long it took.
        ran_on: the target that ran beside ONNX Runtime; ``None`` where none did.
        notes: what could not be compared, and why.
    """

    tensors: tuple[TensorParity, ...]
    departs: str | None
    findings: tuple[Finding, ...]
    samples: int
    seconds: float
    ran_on: str | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """A line, or two: how well the worst step repeats the simulation, and what was left out."""
        if not self.tensors:
            return "\n".join(["layer by layer: nothing to compare", *self.notes])
        worst = min(self.tensors, key=lambda t: _rank(t.own.sqnr))
        told = (
            f"layer by layer, {len(self.tensors)} tensors, {self.samples} samples: the worst step "
            f"by itself is {worst.name}, {decibels(worst.own.sqnr)} beside the simulation"
        )
        return "\n".join([told, *self.notes])

    def telling(self) -> tuple[TensorParity, ...]:
        """The tensors that tell the most: where it departs, and the worst of each comparison."""
        if not self.tensors:
            return ()
        by_itself = min(self.tensors, key=lambda t: _rank(t.own.sqnr))
        deployed = min(self.tensors, key=lambda t: _rank(t.deployed.sqnr))
        costly = [t for t in self.tensors if t.simulated is not None]
        costly.sort(key=lambda t: _rank(t.simulated.sqnr) if t.simulated else math.inf)
        departs = [t for t in self.tensors if t.name == self.departs]
        chosen = {by_itself, deployed, self.tensors[-1], *costly[:3], *departs}
        return tuple(t for t in self.tensors if t in chosen)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of a table: every tensor, in the file's order."""
        head = ["tensor", "kind", "simulated / float", "deployed / simulated", "by itself"]
        rows = [
            [t.name, t.kind, "-" if t.simulated is None else decibels(t.simulated.sqnr),
             decibels(t.deployed.sqnr), decibels(t.own.sqnr)]
            for t in self.tensors
        ]  # fmt: skip
        if self.ran_on is not None:
            head.append(f"{self.ran_on} / simulated")
            for row, tensor in zip(rows, self.tensors, strict=True):
                row.append("-" if tensor.target is None else decibels(tensor.target.sqnr))
        return head, rows


def decibels(sqnr: float) -> str:
    """SQNR for people.

    Example:
        >>> decibels(41.27), decibels(math.inf), decibels(math.nan)
        ('41.3 dB', 'equal', 'not finite')
    """
    if math.isnan(sqnr):
        return "not finite"
    return "equal" if sqnr == math.inf else f"{sqnr:.1f} dB"


def _rank(sqnr: float) -> float:
    return -math.inf if math.isnan(sqnr) else sqnr
