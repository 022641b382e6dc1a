"""Who wants which tensor on which grid: collected while a plan is made, then written out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from quantkit.graph.plan import Edge, QuantizedTensor
from quantkit.spec import QuantSpec

#: A tensor on a form of grid: one quantizer, however many read it.
Key: TypeAlias = tuple[str, QuantSpec]


@dataclass
class _Request:
    """Readers that want one tensor on one grid."""

    role: Literal["weight", "activation"]
    name: str
    edges: list[Edge] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class Requests:
    """Requests by tensor and form of grid, and which of them share scale and zero-point."""

    def __init__(self) -> None:
        self._requests: dict[Key, _Request] = {}
        self._parent: dict[Key, Key] = {}

    def __contains__(self, key: Key) -> bool:
        """Whether anyone has asked for it."""
        return key in self._requests

    def weight(self, key: Key, edge: Edge) -> None:
        """A layer's constant weight; layers that share it share its quantizer."""
        request = self._requests.setdefault(key, _Request("weight", f"{edge.op}.weight"))
        request.edges.append(edge)
        request.reasons.append(f"weight of {edge.op}")

    def activation(self, key: Key, edge: Edge, reason: str) -> None:
        """A tensor that ``edge`` is to read on its grid; asking twice changes nothing."""
        request = self._requests.setdefault(key, _Request("activation", key[0]))
        if edge not in request.edges:
            request.edges.append(edge)
        if reason not in request.reasons:
            request.reasons.append(reason)

    def share(self, first: Key, second: Key) -> None:
        """Give both one scale and zero-point; the grid has the name of the first."""
        if first[1] != second[1]:
            raise ValueError(f"one grid has one form, got {first[1]} and {second[1]}")
        root, other = self._root(first), self._root(second)
        if root != other:
            self._parent[other] = root

    def tensors(self, order: dict[str, int]) -> tuple[QuantizedTensor, ...]:
        """What was asked for, in the order of its first readers."""
        names = self._names()
        tensors = []
        for (tensor, spec), request in self._requests.items():
            edges = sorted(request.edges, key=lambda e: (order[e.op], e.index))
            tensors.append(
                QuantizedTensor(
                    tensor=tensor,
                    grid=names[self._root((tensor, spec))],
                    spec=spec,
                    role=request.role,
                    edges=tuple(edges),
                    reason="; ".join(request.reasons),
                )
            )
        return tuple(sorted(tensors, key=lambda t: (order[t.edges[0].op], t.edges[0].index)))

    def _root(self, key: Key) -> Key:
        while (parent := self._parent.get(key)) is not None:
            key = parent
        return key

    def _names(self) -> dict[Key, str]:
        """A name for each request: its tensor's; a tensor on two grids numbers the second."""
        taken = Counter(request.name for request in self._requests.values())
        names: dict[Key, str] = {}
        used: set[str] = set()
        for key, request in self._requests.items():
            name, count = request.name, 1
            while name in used or (count > 1 and name in taken):
                count += 1
                name = f"{request.name}.{count}"
            names[key] = name
            used.add(name)
        return names
