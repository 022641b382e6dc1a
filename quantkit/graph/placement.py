"""Decide which tensors are quantized and which share a grid: one plan for every way in.

The rules are TensorRT's: quantize the inputs of convolutions and products, not their outputs; one
quantizer a tensor; nothing inside Conv-BatchNorm-ReLU; of a residual add only the skip branch;
what moves values without changing them needs no quantizer of its own. A recipe for ONNX Runtime
adds outputs, adds and pools, which it runs in integers only between Q/DQ. The plan depends on the
graph and the recipe alone, never on data.
"""

from __future__ import annotations

from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op
from quantkit.graph.plan import Decision, Edge, Placement
from quantkit.graph.requests import Requests
from quantkit.graph.residual import main_branch, reason_for_float_add
from quantkit.graph.rules import products_before, reason_for_float
from quantkit.graph.wishes import Wishes
from quantkit.recipe import Override, Recipe, SchemeChoice
from quantkit.spec import QuantSpec

#: What TensorRT fuses behind a convolution: no quantizer between.
_FUSED = frozenset({Kind.BATCH_NORM, Kind.RELU})


def place(graph: Graph, recipe: Recipe) -> Placement:
    """The plan for ``graph`` under ``recipe``.

    Example:
        >>> from quantkit.graph.abstract import Value
        >>> values = {
        ...     "x": Value(name="x", shape=(None, 64)),
        ...     "y": Value(name="y", shape=(None, 32)),
        ...     "w": Value(name="w", shape=(32, 64), constant=True),
        ... }
        >>> fc = Op(name="fc", kind=Kind.LINEAR, inputs=("x", "w"), output="y", weight_axis=0)
        >>> recipe = Recipe.model_validate({"name": "demo", "scheme": {"activations": {}}})
        >>> [t.tensor for t in place(Graph((fc,), values, ("y",)), recipe).tensors]
        ['x']
    """
    return _Planner(graph, recipe).plan()


class _Planner:
    """Three steps: decide on each layer, note who wants what, put quantizers as early as may be."""

    def __init__(self, graph: Graph, recipe: Recipe) -> None:
        self.graph = graph
        self.recipe = recipe
        self.choice = recipe.placement
        self.decisions: dict[str, Decision] = {}
        self.schemes: dict[str, SchemeChoice] = {}
        self.requests = Requests()
        self.wishes = Wishes(graph)
        self.used: set[Override] = set()
        layers = [op.name for op in graph.of(COMPUTE) if not op.outside]
        self.ends = {layers[0], layers[-1]} if layers else set()

    def plan(self) -> Placement:
        for op in self.graph.of(COMPUTE):
            self._decide(op)
        self._keep_attention_whole()
        for op in self.graph.of(COMPUTE):
            if self._quantized(op):
                self._want_inputs(op)
        for op in self.graph.of({Kind.ADD}):
            self._want_residual(op)
        for op in self.graph.of({Kind.RECURRENT}):
            self._note(op, False, "recurrent: engines quantize no weights inside its loop")
        if self.choice.outputs:
            self._want_outputs()
        self.wishes.spread(concat=self.choice.concat == "shared")
        self.wishes.place(self.requests)
        unused = [str(o) for o in self.recipe.overrides if o not in self.used]
        decisions = sorted(self.decisions.values(), key=lambda d: self.graph.order[d.op])
        return Placement(
            recipe=self.recipe.name,
            tensors=self.requests.tensors(self.graph.order),
            decisions=tuple(decisions),
            unused=tuple(unused),
        )

    def _quantized(self, op: Op) -> bool:
        return self.decisions[op.name].quantized

    def _note(self, op: Op, quantized: bool, reason: str) -> None:
        self.decisions[op.name] = Decision(
            op=op.name, kind=op.kind, quantized=quantized, reason=reason
        )

    def _decide(self, op: Op) -> None:
        """Whether a layer is quantized: an override that matches decides, else the rules.

        An override may ask for what does not pay; what has no meaning stays in float.
        """
        if op.outside:
            self._note(op, False, "not between QuantStub and DeQuantStub")
            return
        at_end = op.name in self.ends
        matching = [o for o in self.recipe.overrides if o.matches(op.name, op.kind, at_end=at_end)]
        self.used.update(matching)
        override = matching[-1] if matching else None
        scheme = self.recipe.scheme if override is None else override.scheme
        if override is not None and (scheme is None or scheme.scheme().kind == "none"):
            self._note(op, False, f"override {override}: left in float")
            return
        assert scheme is not None  # only an override leaves it out
        forced = override is not None
        reason = reason_for_float(op, self.graph, scheme.scheme(), self.choice, forced=forced)
        if reason is not None:
            self._note(op, False, reason if override is None else f"override {override}: {reason}")
            return
        self.schemes[op.name] = scheme
        self._note(op, True, scheme.scheme().kind if override is None else f"override {override}")

    def _keep_attention_whole(self) -> None:
        """Fused INT8 attention needs both products: where one is in float, so is the other."""
        groups = [[second, *products_before(second, self.graph)]
                  for second in self.graph.of({Kind.MATMUL})]  # fmt: skip
        changed = True
        while changed:  # one product may serve two attentions
            changed = False
            for group in groups:
                if all(map(self._quantized, group)) or not any(map(self._quantized, group)):
                    continue
                for op in filter(self._quantized, group):
                    self._note(op, False, "the other product of this attention is in float")
                    changed = True

    def _want_inputs(self, op: Op) -> None:
        scheme = self.schemes[op.name]
        constant = self.graph.values[op.inputs[1]].constant
        if constant and scheme.weights is not None:
            grouped = scheme.weights.per == "group"
            spec = scheme.weights.spec(_input_axis(op) if grouped else op.weight_axis)
            self.requests.weight((op.inputs[1], spec), Edge(op.name, 1))
        if scheme.activations is None:
            return
        for index in (0,) if constant else (0, 1):
            rank = len(self.graph.values[op.inputs[index]].shape)
            axis = 1 if op.kind in {Kind.CONV, Kind.CONV_TRANSPOSE} else rank - 1
            reason = f"input of {op.name}" if index == 0 else f"second input of {op.name}"
            self.wishes.want(Edge(op.name, index), scheme.activations.spec(axis), reason)

    def _want_residual(self, add: Op) -> None:
        """Of an add behind a quantized convolution, the skip branch (or both) goes to INT8."""
        if add.outside:
            return
        found = main_branch(add, self.graph, self._quantized)
        if found is None:
            if (reason := reason_for_float_add(add, self.graph)) is not None:
                self._note(add, False, reason)
            return
        main, index = found
        spec = self._activation_spec(main)
        if spec is None:
            return
        if self.choice.residual == "none":
            self._note(add, False, "the recipe leaves adds in float")
            return
        skip = 1 - index
        self.wishes.want(Edge(add.name, skip), spec, f"skip branch of {add.name}")
        if self.choice.residual == "both":
            self.wishes.want(Edge(add.name, index), spec, f"main branch of {add.name}")
            self._note(add, True, "both inputs quantized: an integer add")
        else:
            self._note(add, True, f"fuses into {main.name}; reads its skip branch in INT8")

    def _activation_spec(self, op: Op) -> QuantSpec | None:
        activations = self.schemes[op.name].activations
        return None if activations is None else activations.spec(1)

    def _want_outputs(self) -> None:
        """For ONNX Runtime: what quantized convolutions, adds and pools put out."""
        for op in self.graph.ops:
            decision = self.decisions.get(op.name)
            spec: QuantSpec | None = None
            if op.kind is Kind.CONV and self._quantized(op):
                spec = self._wanted_behind(op) or self._activation_spec(op)
            elif op.kind is Kind.ADD and decision is not None and decision.quantized:
                found = main_branch(op, self.graph, self._quantized)
                spec = None if found is None else self._activation_spec(found[0])
            elif op.kind is Kind.AVERAGE_POOL and not op.outside:
                spec = self.wishes.spec(Edge(op.name, 0))
            if spec is not None:
                self.wishes.want_readers(self._behind_fused(op), spec, f"output of {op.name}")

    def _wanted_behind(self, op: Op) -> QuantSpec | None:
        """The form that all readers of a layer's result want that want one; there is one grid."""
        readers = self.graph.consumers[self._behind_fused(op)]
        wanted = {self.wishes.spec(Edge(reader.name, index)) for reader, index in readers}
        wanted.discard(None)
        return wanted.pop() if len(wanted) == 1 else None

    def _behind_fused(self, op: Op) -> str:
        """The tensor behind the batch-norm and ReLU that fuse into ``op``."""
        name = op.output
        while len(readers := self.graph.consumers[name]) == 1 and readers[0][0].kind in _FUSED:
            name = readers[0][0].output
        return name


def _input_axis(op: Op) -> int | None:
    """The dimension of a layer's weight that its sums run over, which groups cut."""
    if op.kind is Kind.MATMUL:
        return None if op.weight_axis is None else op.weight_axis - 1
    if op.kind is Kind.LINEAR and op.weight_axis == 1:  # (K, N), as ONNX's MatMul has it
        return 0
    return 0 if op.kind is Kind.CONV_TRANSPOSE else 1
