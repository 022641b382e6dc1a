"""Which bytes live while each layer runs: by analysis of the graph, in float, fused and in int8.

A tensor lives from the operator that makes it to the last one that reads it. A model's inputs are
the caller's, its outputs are handed to the caller: both are there throughout. Views and in-place
operators live in the memory of what they read. A tensor that has readers in float and in few bits
is there in both forms, as a quantized input of the model is. Workspaces of kernels are not in it:
they depend on the kernel. What a run really takes is measured in ``measured_memory.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

from quantkit.graph.abstract import Graph, Op
from quantkit.graph.placement import place
from quantkit.graph.plan import Placement
from quantkit.plugins import recipe_path
from quantkit.profiling.fusing import fuse
from quantkit.profiling.work import Size, is_view
from quantkit.recipe import read_recipe
from quantkit.spec import STORAGE_BITS

#: Whose plan tells what INT8 would save of a float model.
_RECIPE: Final = "int8_ptq"
_QUANTIZE: Final = "QuantizeLinear"
_DEQUANTIZE: Final = "DequantizeLinear"

#: Bytes of one value of a tensor, by name; ``None``: as the model holds it.
Width: TypeAlias = Callable[[str], float | None]


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """What lives while one operator runs, in bytes.

    Attributes:
        name: of the operator.
        live: all activations that are needed now or later, and what it makes.
        made: what it makes, of that.
    """

    name: str
    live: float
    made: float


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of one way to run a model.

    Attributes:
        variant: ``float``, ``fused``, ``int8`` or ``int8 fused``; quantized tensors have the format
            of the plan there, whatever it is.
        layers: in the order that they run.
        inputs: bytes of the model's inputs, which are in each layer's ``live``.
        weights: bytes of all constants, which live throughout and are in no layer's ``live``.
    """

    variant: str
    layers: tuple[LayerMemory, ...]
    inputs: float
    weights: float

    @property
    def highest(self) -> LayerMemory | None:
        """The layer at which the most lives; ``None`` where a model has none."""
        return max(self.layers, key=lambda layer: layer.live, default=None)

    @property
    def peak(self) -> float:
        """The most bytes of activations that live at once."""
        return self.inputs if self.highest is None else self.highest.live

    @property
    def total(self) -> float:
        """The most bytes that live at once, weights too."""
        return self.peak + self.weights


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """A model's memory in several ways to run it, the first to compare with.

    Attributes:
        batch: the batch size it was told for.
        plans: float first.
    """

    batch: int
    plans: tuple[MemoryPlan, ...]

    def plan(self, variant: str) -> MemoryPlan:
        """The plan of that name.

        Raises:
            LookupError: there is none.
        """
        for plan in self.plans:
            if plan.variant == variant:
                return plan
        names = ", ".join(plan.variant for plan in self.plans)
        raise LookupError(f"no variant {variant!r}; there are: {names}")

    def saved(self, variant: str) -> float:
        """Bytes that a variant saves at the peak, weights too; negative where it costs some."""
        return self.plans[0].total - self.plan(variant).total

    def to_json(self) -> str:
        """Every field, and each plan's peak."""
        data = asdict(self)
        for row, plan in zip(data["plans"], self.plans, strict=True):
            at = plan.highest
            row |= {"peak": plan.peak, "peak_at": at.name if at else None, "total": plan.total}
        return json.dumps(data)

    def table(self) -> str:
        """A line for each variant."""
        head = f"{'batch ' + str(self.batch):<12}{'weights kB':>12}{'peak kB':>12}{'both kB':>12}"
        lines = [f"{head}{'saves':>9}  peak at"]
        for plan in self.plans:
            share = self.saved(plan.variant) / self.plans[0].total if self.plans[0].total else 0.0
            at = plan.highest.name if plan.highest else "-"
            lines.append(
                f"{plan.variant:<12}{plan.weights / 1e3:12.1f}{plan.peak / 1e3:12.1f}"
                f"{plan.total / 1e3:12.1f}{share:9.1%}  {at}"
            )
        return "\n".join(lines)


def memory(
    graph: Graph, sizes: Mapping[str, Size], *, batch: int, plan: Placement | None = None
) -> MemoryReport:
    """What lives while each layer runs: in float, with fusion, and quantized.

    Args:
        graph: of `graph.aten.describe` or `sizes.onnx_sizes`; where it has Q/DQ, the quantized
            variants are those of the file.
        sizes: of `sizes.sizes_of` or `sizes.onnx_sizes`.
        batch: what ``sizes`` were computed for.
        plan: which tensors of a float graph are quantized; by default that of ``int8_ptq``.

    Example:
        >>> import torch
        >>> from quantkit.graph.aten import describe
        >>> from quantkit.graph.capture import capture
        >>> from quantkit.profiling.sizes import sizes_of
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU())
        >>> found = describe(capture(net, (torch.zeros(2, 64),)).module)
        >>> report = memory(found.graph, sizes_of(found, batch=8), batch=8)
        >>> report.plan("float").peak, report.plan("fused").peak
        (18432.0, 10240.0)
    """
    whole = fuse(graph)
    narrow = _in_file(graph, sizes)
    if not narrow:
        narrow = _planned(graph, sizes, plan or place(graph, read_recipe(recipe_path(_RECIPE))))
    plans = (
        _plan("float", graph, sizes, _as_held),
        _plan("fused", whole, sizes, _as_held),
        _plan("int8", graph, sizes, narrow.get),
        _plan("int8 fused", whole, sizes, narrow.get),
    )
    return MemoryReport(batch=batch, plans=plans)


def liveness(
    graph: Graph, sizes: Mapping[str, Size], width: Width
) -> tuple[tuple[LayerMemory, ...], float]:
    """The bytes that live while each operator runs, and those of the inputs: pure arithmetic."""
    roots = _roots(graph)
    ops = [op for op in graph.ops if not graph.values[op.output].constant]
    bytes_of = {
        name: 0.0 if graph.values[name].constant or name not in sizes
        else sizes[name].bytes(width(name))
        for name in set(roots.values())
    }  # fmt: skip
    last: dict[str, int] = {}
    born: dict[str, int] = {}
    for at, op in enumerate(ops):
        for name in (*op.inputs, op.output):
            last[roots[name]] = at
        born.setdefault(roots[op.output], at)
    inputs = {name for name in roots.values() if name not in graph.producer}
    for name in (*(roots[output] for output in graph.outputs), *inputs):
        last[name] = len(ops)
    held = sum(bytes_of[name] for name in inputs)
    rows: list[LayerMemory] = []
    live = held
    leaving: dict[int, list[str]] = {}
    for name, at in last.items():
        leaving.setdefault(at, []).append(name)
    for at, op in enumerate(ops):
        root = roots[op.output]
        made = bytes_of[root] if born.get(root) == at and root not in inputs else 0.0
        live += made
        rows.append(LayerMemory(name=op.name, live=live, made=made))
        live -= sum(bytes_of[name] for name in leaving.get(at, ()) if name not in inputs)
    return tuple(rows), held


def _plan(variant: str, graph: Graph, sizes: Mapping[str, Size], width: Width) -> MemoryPlan:
    layers, inputs = liveness(graph, sizes, width)
    read = {name for op in graph.ops for name in op.inputs}
    # Only what is stored: what is computed of constants is stored as the engine's own constant.
    weights = sum(
        sizes[name].bytes(width(name))
        for name in read
        if graph.values[name].constant and name in sizes and not _inner(name, graph)
    )
    return MemoryPlan(variant=variant, layers=layers, inputs=inputs, weights=weights)


def _inner(name: str, graph: Graph) -> bool:
    """Whether a constant is read only to compute another constant."""
    return all(graph.values[op.output].constant for op, _ in graph.consumers[name])


def _as_held(name: str) -> float | None:
    return None


def _in_file(graph: Graph, sizes: Mapping[str, Size]) -> dict[str, float]:
    """The bytes of a value of each tensor that a file with Q/DQ hands on in few bits."""
    narrow: dict[str, float] = {}
    for op in graph.ops:
        if op.operator == _DEQUANTIZE and graph.values[op.output].constant:
            narrow[op.output] = float(sizes[op.inputs[0]].itemsize)  # a weight
        elif op.operator == _QUANTIZE and op.output in sizes:
            source, width = op.inputs[0], float(sizes[op.output].itemsize)
            readers = [reader for reader, _ in graph.consumers[source]]
            only = all(reader.operator == _QUANTIZE for reader in readers)
            narrow[source] = width + _beside(source, graph, sizes, only=only)
    return narrow


def _planned(graph: Graph, sizes: Mapping[str, Size], plan: Placement) -> dict[str, float]:
    """The bytes of a value of each tensor that a plan quantizes."""
    edges: dict[str, set[tuple[str, int]]] = {}
    bits: dict[str, int] = {}
    for tensor in plan.tensors:
        edges.setdefault(tensor.tensor, set()).update((e.op, e.index) for e in tensor.edges)
        bits[tensor.tensor] = STORAGE_BITS[tensor.spec.dtype]
    narrow: dict[str, float] = {}
    for name, read in edges.items():
        only = all((op.name, index) in read for op, index in graph.consumers[name])
        narrow[name] = bits[name] / 8 + _beside(name, graph, sizes, only=only)
    return narrow


def _beside(name: str, graph: Graph, sizes: Mapping[str, Size], *, only: bool) -> float:
    """The bytes that a value takes in float beside its narrow form: for others, or the caller."""
    weight = graph.values[name].constant
    kept = not only or name in graph.outputs or (name not in graph.producer and not weight)
    return float(sizes[name].itemsize) if kept and name in sizes else 0.0


def _roots(graph: Graph) -> dict[str, str]:
    """The tensor in whose memory each tensor lives: its own, but for views and in-place results."""
    roots = {name: name for name in graph.values}
    for op in graph.ops:
        if op.inputs and (is_view(op) or _in_place(op)):
            roots[op.output] = roots[op.inputs[0]]
    return roots


def _in_place(op: Op) -> bool:
    return op.operator.endswith("_") and not op.operator.endswith("__")
