"""Abstract graphs written by hand, operator by operator, for tests of the placement rules."""

from __future__ import annotations

from typing import Any

from quantkit.graph.abstract import Graph, Kind, Op, Value
from quantkit.graph.placement import place
from quantkit.graph.plan import Edge, Placement
from quantkit.recipe import Recipe

Shape = tuple[int | None, ...]
IMAGE: Shape = (None, 32, 8, 8)
TOKENS: Shape = (None, 24, 64)

INT8 = {"dtype": "int8", "symmetric": True}
BOTH = {"weights": INT8 | {"per": "channel"}, "activations": INT8}
WEIGHT_ONLY = {"weights": INT8 | {"per": "channel"}, "activations": None}
ACTIVATION_ONLY = {"weights": None, "activations": INT8}
FP8 = {"weights": {"dtype": "fp8_e4m3"}, "activations": {"dtype": "fp8_e4m3"}}


def recipe(scheme: Any = None, overrides: Any = (), **placement: Any) -> Recipe:
    """A recipe of INT8 weights and activations, changed as given."""
    return Recipe.model_validate(
        {
            "name": "test",
            "scheme": BOTH if scheme is None else scheme,
            "overrides": list(overrides),
            "placement": placement,
        }
    )


class Net:
    """Appends operators; each returns the name of its output, which is the operator's own."""

    def __init__(self, **inputs: Shape) -> None:
        self.ops: list[Op] = []
        self.values = {name: Value(name=name, shape=shape) for name, shape in inputs.items()}

    def constant(self, name: str, shape: Shape, *, floating: bool = True) -> str:
        self.values[name] = Value(name=name, shape=shape, constant=True, floating=floating)
        return name

    def op(
        self, kind: Kind, name: str, *inputs: str, shape: Shape | None = None, **fields: Any
    ) -> str:
        """An operator whose output has the shape of its first input, if none is given."""
        self.values[name] = Value(
            name=name, shape=self.shape(inputs[0]) if shape is None else shape
        )
        self.ops.append(Op(name=name, kind=kind, inputs=inputs, output=name, **fields))
        return name

    def conv(
        self, name: str, x: str, out: int = 32, *, kernel: int | tuple[int, int] = 3,
        groups: int = 1, kind: Kind = Kind.CONV,
    ) -> str:  # fmt: skip
        taps = (kernel, kernel) if isinstance(kernel, int) else kernel
        channels = self.shape(x)[1] or 1
        weight = self.constant(f"{name}.w", (out, channels // groups, *taps))
        shape = (self.shape(x)[0], out, *self.shape(x)[2:])
        axis = 0 if kind is Kind.CONV else 1
        return self.op(
            kind, name, x, weight, shape=shape, groups=groups, kernel=taps, weight_axis=axis
        )

    def linear(self, name: str, x: str, out: int = 64, weight: str | None = None) -> str:
        if weight is None:
            weight = self.constant(f"{name}.w", (out, self.shape(x)[-1]))
        shape = (*self.shape(x)[:-1], self.shape(weight)[0])
        return self.op(Kind.LINEAR, name, x, weight, shape=shape, weight_axis=0)

    def matmul(self, name: str, a: str, b: str) -> str:
        shape = (*self.shape(a)[:-1], self.shape(b)[-1])
        axis = len(self.shape(b)) - 1
        return self.op(Kind.MATMUL, name, a, b, shape=shape, weight_axis=axis)

    def transpose(self, name: str, x: str) -> str:
        *rest, rows, columns = self.shape(x)
        return self.op(Kind.MOVE, name, x, shape=(*rest, columns, rows))

    def shape(self, name: str) -> Shape:
        return self.values[name].shape

    def graph(self, *outputs: str) -> Graph:
        return Graph(tuple(self.ops), dict(self.values), outputs or (self.ops[-1].output,))

    def place(self, chosen: Recipe | None = None, outputs: tuple[str, ...] = ()) -> Placement:
        return place(self.graph(*outputs), recipe() if chosen is None else chosen)


def reads(plan: Placement) -> dict[str, set[tuple[str, int]]]:
    """The readers of each quantized activation; of one on two grids, of both."""
    found: dict[str, set[tuple[str, int]]] = {}
    for tensor in plan.tensors:
        if tensor.role == "activation":
            found.setdefault(tensor.tensor, set()).update((e.op, e.index) for e in tensor.edges)
    return found


def grid_of(plan: Placement, op: str, index: int = 0) -> str | None:
    """The grid that one input of an operator is read on; ``None`` where it is float."""
    found = [t.grid for t in plan.tensors if Edge(op, index) in t.edges]
    assert len(found) <= 1, f"{op}[{index}] has {len(found)} quantizers"
    return found[0] if found else None


def basic_block(*, project: str | None = None, norms: bool = True) -> Net:
    """ReLU before and behind; the projection is computed ``first`` or ``last``."""
    net = Net(x=IMAGE)

    def conv(name: str, x: str, kernel: int = 3) -> str:
        y = net.conv(name, x, kernel=kernel)
        return net.op(Kind.BATCH_NORM, f"{name}.bn", y) if norms else y

    x = net.op(Kind.RELU, "in", conv("stem", "x"))
    skip = conv("project", x, 1) if project == "first" else x
    y = net.op(Kind.RELU, "mid", conv("conv1", x))
    y = conv("conv2", y)
    skip = conv("project", x, 1) if project == "last" else skip
    out = net.op(Kind.RELU, "out", net.op(Kind.ADD, "add", y, skip))
    net.linear("fc", net.op(Kind.MOVE, "flat", out, shape=(None, 2048)))
    return net


def branches(**shape: Any) -> Net:
    net = Net(x=IMAGE)
    stem = net.op(Kind.RELU, "stem_relu", net.conv("stem", "x"))
    one = net.op(Kind.RELU, "one_relu", net.conv("one", stem))
    two = net.op(Kind.RELU, "two_relu", net.conv("two", stem))
    net.conv("mix", net.op(Kind.CONCAT, "cat", one, two, stem, shape=(None, 96, 8, 8)))
    return net
