"""Decide which tensors are quantized and which share a grid: one plan for every way in.

The rules are TensorRT's: quantize the inputs of convolutions and products, not their outputs; one
quantizer a tensor; nothing inside Conv-BatchNorm-ReLU; of a residual add only the skip branch;
what moves values without changing them needs no quantizer of its own. A recipe for ONNX Runtime
adds outputs, adds and pools, which it runs in integers only between Q/DQ. The plan depends on the
graph and the recipe alone, never on data.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op
from quantkit.graph.plan import Decision, Edge, Placement, QuantizedTensor
from quantkit.graph.rules import reason_for_float
from quantkit.recipe import Override, Recipe, SchemeChoice
from quantkit.spec import QuantSpec

#: Values pass these unchanged, so the quantizer may stand before them.
_COMMUTING = frozenset({Kind.MOVE, Kind.MAX_POOL})
#: What TensorRT fuses behind a convolution: no quantizer between.
_FUSED = frozenset({Kind.BATCH_NORM, Kind.RELU})


def place(graph: Graph, recipe: Recipe) -> Placement:
    """The plan for ``graph`` under ``recipe``.

    Example:
        >>> from quantkit.graph.abstract import Value
        >>> values = {"x": Value(name="x", shape=(None, 64)), "y": Value(name="y", shape=(None, 32)),
        ...           "w": Value(name="w", shape=(32, 64), constant=True)}
        >>> fc = Op(name="fc", kind=Kind.LINEAR, inputs=("x", "w"), output="y", weight_axis=0)
        >>> recipe = Recipe.model_validate({"name": "demo", "scheme": {"activations": {}}})
        >>> [t.tensor for t in place(Graph((fc,), values, ("y",)), recipe).tensors]
        ['x']
    """
    return _Planner(graph, recipe).plan()


@dataclass
class _Request:
    """Readers that want one tensor on one grid."""

    edges: list[Edge] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    grid: str | None = None


class _Planner:
    def __init__(self, graph: Graph, recipe: Recipe) -> None:
        self.graph = graph
        self.recipe = recipe
        self.choice = recipe.placement
        self.ops = {op.name: op for op in graph.ops}
        self.decisions: dict[str, Decision] = {}
        self.schemes: dict[str, SchemeChoice] = {}
        self.weights: list[QuantizedTensor] = []
        self.wanted: dict[Edge, tuple[QuantSpec, str]] = {}
        self.requests: dict[tuple[str, QuantSpec], _Request] = defaultdict(_Request)
        self.used: set[Override] = set()

    def plan(self) -> Placement:
        for op in self.graph.of(COMPUTE):
            self._decide(op)
        self._keep_attention_whole()
        for op in self.graph.of(COMPUTE):
            if self.decisions[op.name].quantized:
                self._want_inputs(op)
        for op in self.graph.of({Kind.ADD}):
            self._want_residual(op)
        if self.choice.outputs:
            self._want_outputs()
        for edge, (spec, reason) in self.wanted.items():
            self._request(edge, spec, reason)
        self._share_through_slices()
        self._share_concat()
        self._share_upsample()
        self._pool_between()
        unused = [str(o) for o in self.recipe.overrides if o not in self.used]
        decisions = sorted(self.decisions.values(), key=lambda d: self.graph.order[d.op])
        return Placement(
            recipe=self.recipe.name,
            tensors=self._tensors(),
            decisions=tuple(decisions),
            unused=tuple(unused),
        )

    def _decide(self, op: Op) -> None:
        """Whether a layer is quantized: an override that matches decides, else the rules."""
        matching = [o for o in self.recipe.overrides if o.matches(op.name, op.kind)]
        self.used.update(matching)
        scheme = matching[-1].scheme if matching else self.recipe.scheme
        if scheme is None:
            reason: str | None = f"override {matching[-1]}: left in float"
        elif matching:
            reason = None
        else:
            reason = reason_for_float(op, self.graph, scheme.scheme(), self.choice)
        if reason is None and scheme is not None:
            self.schemes[op.name] = scheme
            text = f"override {matching[-1]}" if matching else scheme.scheme().kind
            self.decisions[op.name] = Decision(
                op=op.name, kind=op.kind, quantized=True, reason=text
            )
            return
        self.decisions[op.name] = Decision(
            op=op.name, kind=op.kind, quantized=False, reason=reason or ""
        )

    def _keep_attention_whole(self) -> None:
        """Fused INT8 attention needs both products: where one is in float, so is the other."""
        for second in self.graph.of({Kind.MATMUL}):
            first = self._product_before_softmax(second)
            if first is None:
                continue
            pair = (self.decisions[first.name], self.decisions[second.name])
            if pair[0].quantized == pair[1].quantized:
                continue
            loser = pair[0] if pair[0].quantized else pair[1]
            self.decisions[loser.op] = replace(
                loser, quantized=False, reason="the other product of this attention is in float"
            )

    def _product_before_softmax(self, second: Op) -> Op | None:
        producer = self.graph.producer.get(second.inputs[0])
        passed_softmax = False
        while producer is not None and producer.inputs:
            if producer.kind is Kind.MATMUL:
                return producer if passed_softmax else None
            if producer.kind in COMPUTE:
                return None
            passed_softmax |= producer.kind is Kind.SOFTMAX
            if not passed_softmax and producer.kind is not Kind.MOVE:
                return None
            producer = self.graph.producer.get(producer.inputs[0])
        return None

    def _want_inputs(self, op: Op) -> None:
        scheme = self.schemes[op.name]
        weight_is_constant = self.graph.values[op.inputs[1]].constant
        if weight_is_constant and scheme.weights is not None:
            axis = op.weight_axis
            if scheme.weights.per == "group" and op.kind is Kind.LINEAR:
                axis = 1
            elif scheme.weights.per == "group" and op.kind is Kind.MATMUL and axis is not None:
                axis -= 1
            self.weights.append(
                QuantizedTensor(
                    tensor=op.inputs[1],
                    grid=f"{op.name}.weight"
                    if op.inputs[1] != f"{op.name}.weight"
                    else op.inputs[1],
                    spec=scheme.weights.spec(axis),
                    role="weight",
                    edges=(Edge(op.name, 1),),
                    reason=f"weight of {op.name}",
                )
            )
        if scheme.activations is None:
            return
        for index in (0,) if weight_is_constant else (0, 1):
            rank = len(self.graph.values[op.inputs[index]].shape)
            axis = 1 if op.kind in {Kind.CONV, Kind.CONV_TRANSPOSE} else rank - 1
            reason = f"input of {op.name}" if index == 0 else f"second input of {op.name}"
            self.wanted[Edge(op.name, index)] = (scheme.activations.spec(axis), reason)

    def _want_residual(self, add: Op) -> None:
        """Of an add behind a quantized convolution, the skip branch (or both) goes to INT8."""
        if len(add.inputs) != 2 or any(self.graph.values[n].constant for n in add.inputs):
            return
        behind = [self._convolution_before(name) for name in add.inputs]
        found = [op for op in behind if op is not None]
        if not found:
            self._refuse_add(add)
            return
        main = self._deeper(found)
        spec = self._activation_spec(main)
        if spec is None:
            return
        if self.choice.residual == "none":
            self.decisions[add.name] = Decision(
                op=add.name,
                kind=add.kind,
                quantized=False,
                reason="the recipe leaves adds in float",
            )
            return
        skip = 1 - behind.index(main)
        for index in (skip,) if self.choice.residual == "skip" else (0, 1):
            which = "skip branch" if index == skip else "main branch"
            self.wanted[Edge(add.name, index)] = (spec, f"{which} of {add.name}")
        reason = f"fuses into {main.name}; reads its skip branch in INT8"
        if self.choice.residual == "both":
            reason = "both inputs quantized: an integer add"
        self.decisions[add.name] = Decision(
            op=add.name, kind=add.kind, quantized=True, reason=reason
        )

    def _deeper(self, branches: list[Op]) -> Op:
        """Of two convolutions before an add, the one that is not the projection of the shortcut."""
        for main, other in (branches, branches[::-1]) if len(branches) == 2 else ():
            if self._descends(main, other.inputs[0]):
                return main
        return max(branches, key=lambda op: self.graph.order[op.name])

    def _descends(self, op: Op, ancestor: str) -> bool:
        """Whether ``op`` reads ``ancestor`` through at least one more layer."""
        name, layers = op.inputs[0], 0
        while (producer := self.graph.producer.get(name)) is not None and producer.inputs:
            layers += producer.kind in COMPUTE
            name = producer.inputs[0]
            if name == ancestor and layers:
                return True
        return False

    def _refuse_add(self, add: Op) -> None:
        layers = [self.graph.producer.get(name) for name in add.inputs]
        if any(op is not None and op.kind is Kind.LINEAR for op in layers):
            self.decisions[add.name] = Decision(
                op=add.name, kind=add.kind, quantized=False,
                reason="the residual stream of a transformer stays in float: its add fuses with the norm",
            )  # fmt: skip

    def _convolution_before(self, name: str) -> Op | None:
        """The quantized convolution whose result ``name`` is, with this add as its only reader."""
        while len(self.graph.consumers[name]) == 1:
            producer = self.graph.producer.get(name)
            if producer is None:
                return None
            if producer.kind is Kind.CONV:
                return producer if self.decisions[producer.name].quantized else None
            if producer.kind is not Kind.BATCH_NORM:
                return None
            name = producer.inputs[0]
        return None

    def _activation_spec(self, op: Op) -> QuantSpec | None:
        activations = self.schemes[op.name].activations
        return None if activations is None else activations.spec(1)

    def _want_outputs(self) -> None:
        """For ONNX Runtime: what quantized convolutions, adds and pools put out, for all readers."""
        quantized = {name for name, d in self.decisions.items() if d.quantized}
        for op in self.graph.ops:
            if op.kind in {Kind.CONV, Kind.ADD} and op.name in quantized:
                source = op if op.kind is Kind.CONV else self._main_of(op)
                spec = self._activation_spec(source) if source is not None else None
            elif op.kind is Kind.AVERAGE_POOL and Edge(op.name, 0) in self.wanted:
                spec = self.wanted[Edge(op.name, 0)][0]
            else:
                continue
            if spec is not None:
                self._want_readers(self._behind_fused(op), spec, f"output of {op.name}")

    def _main_of(self, add: Op) -> Op | None:
        found = [op for op in map(self._convolution_before, add.inputs) if op is not None]
        return self._deeper(found) if found else None

    def _behind_fused(self, op: Op) -> str:
        """The tensor behind the batch-norm and ReLU that fuse into ``op``."""
        name = op.output
        while len(readers := self.graph.consumers[name]) == 1 and readers[0][0].kind in _FUSED:
            name = readers[0][0].output
        return name

    def _want_readers(self, name: str, spec: QuantSpec, reason: str) -> None:
        for reader, index in self.graph.consumers[name]:
            self.wanted.setdefault(Edge(reader.name, index), (spec, reason))

    def _request(self, edge: Edge, spec: QuantSpec, reason: str) -> None:
        """Ask for the tensor that ``edge`` reads, before what only moves its values."""
        name = self.ops[edge.op].inputs[edge.index]
        while (producer := self.graph.producer.get(name)) is not None:
            if not self._passes(producer, spec) or name in self.graph.outputs:
                break
            edge, name = Edge(producer.name, 0), producer.inputs[0]
        request = self.requests[name, spec]
        if edge not in request.edges:
            request.edges.append(edge)
        if reason not in request.reasons:
            request.reasons.append(reason)

    def _passes(self, op: Op, spec: QuantSpec) -> bool:
        """Whether the quantizer may stand before ``op``: every reader wants this grid."""
        if spec.axis is not None or not op.inputs or not self.graph.values[op.inputs[0]].floating:
            return False
        readers = self.graph.consumers[op.output]
        if op.kind is Kind.PAD:
            # Export folds it into the convolution; behind Q/DQ it would push it to float.
            return op.spatial and all(reader.kind is Kind.CONV for reader, _ in readers)
        return op.kind in _COMMUTING and all(self._wants(r, i, spec) for r, i in readers)

    def _wants(self, reader: Op, index: int, spec: QuantSpec) -> bool:
        if (wish := self.wanted.get(Edge(reader.name, index))) is not None:
            return wish[0] == spec
        return self._passes(reader, spec)

    def _share_through_slices(self) -> None:
        """A part of a tensor that is quantized anyway needs no quantizer of its own."""
        for (name, spec), request in list(self.requests.items()):
            source, edge = self._through(name)
            if source == name or (source, spec) not in self.requests or spec.axis is not None:
                continue
            whole = self.requests[source, spec]
            whole.edges.append(edge)
            whole.reasons.extend(request.reasons)
            del self.requests[name, spec]

    def _through(self, name: str) -> tuple[str, Edge]:
        """Back through slices and zero pads to the nearest quantized tensor."""
        edge, start = Edge("", 0), name
        kinds = _COMMUTING | {Kind.SLICE, Kind.PAD}
        while (producer := self.graph.producer.get(name)) is not None and producer.kind in kinds:
            if len(self.graph.consumers[name]) > 1 or not producer.inputs:
                break
            edge, name = Edge(producer.name, 0), producer.inputs[0]
            if any(tensor == name for tensor, _ in self.requests):
                return name, edge
        return start, edge

    def _share_concat(self) -> None:
        if self.choice.concat != "shared":
            return
        for (name, spec), request in list(self.requests.items()):
            concat = self.graph.producer.get(name)
            if concat is None or concat.kind is not Kind.CONCAT:
                continue
            request.grid = request.grid or name
            for index, part in enumerate(concat.inputs):
                piece = self.requests[part, spec]
                piece.edges.append(Edge(concat.name, index))
                piece.reasons.append(f"part of {concat.name}")
                piece.grid = request.grid

    def _share_upsample(self) -> None:
        """Nearest upsampling repeats values: the same grid before and behind it."""
        for (name, spec), request in list(self.requests.items()):
            upsample = self.graph.producer.get(name)
            if upsample is None or upsample.kind is not Kind.UPSAMPLE or spec.axis is not None:
                continue
            source = self.requests[upsample.inputs[0], spec]
            source.edges.append(Edge(upsample.name, 0))
            source.reasons.append(f"input of {upsample.name}, which repeats values")
            source.grid = source.grid or request.grid or upsample.inputs[0]
            request.grid = source.grid

    def _pool_between(self) -> None:
        """An average pool runs in INT8 with quantizers on both sides: join what is quantized."""
        for name, spec in list(self.requests):
            pool = self.graph.producer.get(name)
            if pool is None or pool.kind is not Kind.AVERAGE_POOL:
                continue
            source = self.requests.get((pool.inputs[0], spec))
            if source is not None and Edge(pool.name, 0) not in source.edges:
                source.edges.append(Edge(pool.name, 0))
                source.reasons.append(f"input of {pool.name}")

    def _tensors(self) -> tuple[QuantizedTensor, ...]:
        order = self.graph.order
        specs: dict[str, int] = defaultdict(int)
        tensors = list(self.weights)
        for (name, spec), request in self.requests.items():
            specs[name] += 1
            own = name if specs[name] == 1 else f"{name}.{specs[name]}"
            tensors.append(
                QuantizedTensor(
                    tensor=name,
                    grid=request.grid or own,
                    spec=spec,
                    role="activation",
                    edges=tuple(sorted(request.edges, key=lambda e: (order[e.op], e.index))),
                    reason="; ".join(request.reasons),
                )
            )
        tensors.sort(key=lambda t: (order[t.edges[0].op], t.edges[0].index))
        return tuple(tensors)
