"""Who wants to read which tensor on which grid, and where the quantizers for that may stand."""

from __future__ import annotations

from quantkit.graph.abstract import Graph, Kind, Op
from quantkit.graph.plan import Edge
from quantkit.graph.requests import Key, Requests
from quantkit.spec import QuantSpec

#: Values pass these unchanged, so the quantizer may stand before them.
_COMMUTING = frozenset({Kind.MOVE, Kind.MAX_POOL})
#: What puts out values of its input (and zeros), and so may end a model on the grid of another.
_COPYING = _COMMUTING | {Kind.SLICE, Kind.PAD, Kind.UPSAMPLE, Kind.CONCAT}


class Wishes:
    """The readers that want a grid: first those of layers, then what follows from them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._outputs = frozenset(graph.outputs)
        self._wanted: dict[Edge, tuple[QuantSpec, str]] = {}
        #: Slices (and pads) of a tensor that is quantized anyway: they need no quantizer behind.
        self._parts: set[str] = set()
        #: Concatenations whose parts have the grid of the whole.
        self._joined: set[str] = set()

    def want(self, edge: Edge, spec: QuantSpec, reason: str) -> None:
        """Let ``edge`` read the grid ``spec``, unless it already reads another."""
        self._wanted.setdefault(edge, (spec, reason))

    def want_readers(self, name: str, spec: QuantSpec, reason: str) -> None:
        """The same for every reader of a tensor but those that put it out of the model."""
        for reader, index in self.graph.consumers[name]:
            if not self._leads_out(reader):
                self.want(Edge(reader.name, index), spec, reason)

    def spec(self, edge: Edge) -> QuantSpec | None:
        """The grid that ``edge`` wants."""
        wish = self._wanted.get(edge)
        return None if wish is None else wish[0]

    def spread(self, *, concat: bool) -> None:
        """What follows from the wishes of layers, from the model's end to its beginning.

        Nearest upsampling repeats values: the same grid before and behind it. A concatenation
        whose parts share its grid (``concat``) only copies integers. An average pool between a
        quantized tensor and a reader of its result runs in INT8.
        """
        joining = {Kind.UPSAMPLE} | ({Kind.CONCAT} if concat else set())
        for op in reversed(self.graph.ops):
            spec = self._common(op.output) if op.kind in joining else None
            if spec is not None and self._may_share(op, spec):
                self._joined.add(op.name)
                for index in range(len(op.inputs) if op.kind is Kind.CONCAT else 1):
                    self.want(Edge(op.name, index), spec, _role(op))
        self._find_parts()
        for op in reversed(self.graph.ops):
            if op.kind is not Kind.AVERAGE_POOL or not op.inputs:
                continue
            spec = self._common(op.output)
            if spec is not None and self._wanted_beside(op, spec):
                self.want(Edge(op.name, 0), spec, f"input of {op.name}")

    def place(self, requests: Requests) -> None:
        """Ask for every wanted tensor, and for one grid where values are only copied."""
        inputs = {op.name: op.inputs for op in self.graph.ops}
        placed: dict[Edge, Key] = {}
        for edge, (spec, reason) in self._wanted.items():
            placed[edge] = self._request(edge, inputs[edge.op][edge.index], spec, reason, requests)
        for op in self.graph.ops:
            if op.kind not in {Kind.CONCAT, Kind.UPSAMPLE} | _COMMUTING:
                continue
            keys = [placed.get(Edge(op.name, index)) for index in range(len(op.inputs))]
            if not keys or keys[0] is None or keys[0][1].axis is not None:
                continue
            behind = (op.output, keys[0][1])
            if behind not in requests or (op.kind is Kind.CONCAT and op.name not in self._joined):
                continue
            # A concatenation's grid has its own name; else the grid is that of the source.
            first, *rest = [behind, *keys] if op.kind is Kind.CONCAT else [keys[0], behind]
            for key in rest:
                if key is not None and first is not None:
                    requests.share(first, key)

    def _request(
        self, edge: Edge, name: str, spec: QuantSpec, reason: str, requests: Requests
    ) -> Key:
        """Ask for the tensor that ``edge`` reads, before what only moves its values."""
        while (producer := self.graph.producer.get(name)) is not None:
            if not self._passes(producer, spec):
                break
            edge, name = Edge(producer.name, 0), producer.inputs[0]
        requests.activation((name, spec), edge, reason)
        return name, spec

    def _passes(self, op: Op, spec: QuantSpec) -> bool:
        """Whether the quantizer may stand before ``op``: every reader wants this grid."""
        if spec.axis is not None or op.output in self._outputs or not op.inputs:
            return False
        own = self._wanted.get(Edge(op.name, 0))
        if (own is not None and own[0] != spec) or not self.graph.values[op.inputs[0]].floating:
            return False
        if op.kind not in _COMMUTING and op.name not in self._parts and not self._folds(op):
            return False
        if op.kind is Kind.MAX_POOL and spec.is_float:
            return False  # TensorRT has no max-pool in FP8: the layer behind it would be float
        readers = self.graph.consumers[op.output]
        return bool(readers) and all(self._wants(r, i, spec) for r, i in readers)

    def _folds(self, op: Op) -> bool:
        """Whether export folds a pad into convolutions; behind Q/DQ it would make them float."""
        readers = self.graph.consumers[op.output]
        convolutions = all(reader.kind is Kind.CONV and i == 0 for reader, i in readers)
        return op.kind is Kind.PAD and op.spatial and convolutions

    def _wants(self, reader: Op, index: int, spec: QuantSpec) -> bool:
        if (wish := self._wanted.get(Edge(reader.name, index))) is not None:
            return wish[0] == spec
        return index == 0 and self._passes(reader, spec)

    def _wishes_of(self, name: str) -> set[QuantSpec]:
        """The grids that some reader of a tensor wants, past what moves its values."""
        found: set[QuantSpec] = set()
        for reader, index in self.graph.consumers[name]:
            if (wish := self._wanted.get(Edge(reader.name, index))) is not None:
                found.add(wish[0])
            elif index == 0 and reader.kind in _COPYING - {Kind.UPSAMPLE, Kind.CONCAT}:
                found |= self._wishes_of(reader.output)
        return found

    def _common(self, name: str) -> QuantSpec | None:
        """The one per-tensor grid that every reader of a tensor wants."""
        wishes = self._wishes_of(name)
        if len(wishes) != 1 or name in self._outputs:
            return None
        spec = next(iter(wishes))
        wanted = all(self._wants(r, i, spec) for r, i in self.graph.consumers[name])
        return spec if wanted and spec.axis is None else None

    def _may_share(self, op: Op, spec: QuantSpec) -> bool:
        edges = [Edge(op.name, index) for index in range(len(op.inputs))]
        return bool(edges) and all(self.spec(edge) in {None, spec} for edge in edges)

    def _wanted_beside(self, op: Op, spec: QuantSpec) -> bool:
        """Whether another reader of what ``op`` reads wants this grid."""
        readers = self.graph.consumers[op.inputs[0]]
        return any(r.name != op.name and self._wants(r, i, spec) for r, i in readers)

    def _find_parts(self) -> None:
        """A part of a tensor that is quantized anyway needs no quantizer of its own."""
        for op in self.graph.ops:
            if not self._takes_part(op):
                continue
            for spec in self._wishes_of(op.output):
                if spec.axis is None and self._quantized_above(op, spec):
                    self._parts.add(op.name)

    def _takes_part(self, op: Op) -> bool:
        if op.kind is Kind.PAD:  # before a convolution it would push that to float
            readers = self.graph.consumers[op.output]
            return bool(readers) and all(reader.kind is Kind.ADD for reader, _ in readers)
        return op.kind is Kind.SLICE

    def _quantized_above(self, op: Op, spec: QuantSpec) -> bool:
        """Whether a tensor above, through parts and moves, has another reader of this grid."""
        while op.inputs:
            if self.spec(Edge(op.name, 0)) == spec or self._wanted_beside(op, spec):
                return True
            producer = self.graph.producer.get(op.inputs[0])
            if producer is None or not (producer.kind in _COMMUTING or self._takes_part(producer)):
                return False
            op = producer
        return False

    def _leads_out(self, op: Op) -> bool:
        """Whether ``op`` only copies what the model then puts out."""
        if op.kind not in _COPYING:
            return False
        readers = self.graph.consumers[op.output]
        return op.output in self._outputs or any(self._leads_out(r) for r, _ in readers)


def _role(op: Op) -> str:
    """Why a copying operator's inputs are quantized."""
    repeats = op.kind is Kind.UPSAMPLE
    return f"input of {op.name}, which repeats values" if repeats else f"part of {op.name}"
