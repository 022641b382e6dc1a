"""The plan: which tensors are quantized, which share a grid, and why. Plain frozen values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from quantkit.graph.abstract import Kind
from quantkit.spec import QuantSpec


@dataclass(frozen=True, order=True)
class Edge:
    """One reader of a tensor: an operator and which of its inputs."""

    op: str
    index: int


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A tensor that goes through Quantize and Dequantize on its way to ``edges``.

    Attributes:
        tensor: its name in the graph.
        grid: tensors with the same grid share scale and zero-point.
        spec: how it maps to its grid.
        role: a layer's constant weight, or an activation.
        edges: the readers that see the quantized values; all others read the float ones.
        reason: why it is quantized.
    """

    tensor: str
    grid: str
    spec: QuantSpec
    role: Literal["weight", "activation"]
    edges: tuple[Edge, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided for one layer, and why."""

    op: str
    kind: Kind
    quantized: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The whole plan.

    Attributes:
        recipe: name of the recipe it obeys.
        tensors: what is quantized, in graph order.
        decisions: every layer with arithmetic worth quantizing, and every residual add.
        unused: overrides of the recipe that matched no layer.
    """

    recipe: str
    tensors: tuple[QuantizedTensor, ...]
    decisions: tuple[Decision, ...]
    unused: tuple[str, ...] = ()

    @cached_property
    def grids(self) -> dict[str, tuple[QuantizedTensor, ...]]:
        """The tensors of each grid."""
        groups: dict[str, tuple[QuantizedTensor, ...]] = {}
        for tensor in self.tensors:
            groups[tensor.grid] = (*groups.get(tensor.grid, ()), tensor)
        return groups

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the layers that compute in low precision."""
        return tuple(d.op for d in self.decisions if d.quantized and d.kind is not Kind.ADD)

    def tensor(self, op: str, index: int) -> QuantizedTensor | None:
        """What the input ``index`` of ``op`` reads, where it is quantized."""
        return next((t for t in self.tensors if Edge(op, index) in t.edges), None)

    def decision(self, op: str) -> Decision:
        """The decision on one layer."""
        for decision in self.decisions:
            if decision.op == op:
                return decision
        raise LookupError(f"the plan says nothing of {op!r}; it knows: {', '.join(self._names)}")

    @property
    def _names(self) -> list[str]:
        return [decision.op for decision in self.decisions]

    def __str__(self) -> str:
        """A table of layers, then one of activations."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        layers = [d for d in self.decisions if d.kind is not Kind.ADD]
        count = f"{len(self.quantized)} of {len(layers)} layers quantized"
        yield f"Plan of recipe {self.recipe}: {count}"
        rows = [(d.op, str(d.kind), "quantized" if d.quantized else "float", d.reason)
                for d in self.decisions]  # fmt: skip
        yield from _table(("layer", "kind", "runs", "why"), rows)
        yield ""
        activations = [
            (t.tensor, t.grid if t.grid != t.tensor else "own", str(t.spec), t.reason)
            for t in self.tensors
            if t.role == "activation"
        ]
        yield from _table(("activation", "grid", "form", "why"), activations)
        for text in self.unused:
            yield f"warning: the override {text} matched no layer"

    def to_json(self) -> str:
        """Compact JSON, as export writes it into the ONNX file."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Placement:
        """The plan that ``to_json`` wrote."""
        data: dict[str, Any] = json.loads(text)
        tensors = tuple(
            QuantizedTensor(
                **{
                    **item,
                    "spec": QuantSpec(**item["spec"]),
                    "edges": tuple(Edge(**edge) for edge in item["edges"]),
                }
            )
            for item in data["tensors"]
        )
        decisions = tuple(
            Decision(**{**item, "kind": Kind(item["kind"])}) for item in data["decisions"]
        )
        return cls(
            recipe=data["recipe"],
            tensors=tensors,
            decisions=decisions,
            unused=tuple(data["unused"]),
        )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the last one runs on."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  " + "  ".join([*cells, row[-1]]).rstrip()
