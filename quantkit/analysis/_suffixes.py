"""Runs of a float model of which one part is quantized: each begins where that part begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit.analysis._alone import Alone
from quantkit.batches import Call
from quantkit.graph.abstract import Kind
from quantkit.graph.aten import kind_of
from quantkit.graph.edit import evaluate_constant
from quantkit.progress import track
from quantkit.reconstruction.stream import Pieces, Values, sample_count


@dataclass(frozen=True)
class Baseline:
    """What one float run over all samples tells.

    Attributes:
        outputs: of each call, the outputs of floats.
        macs: multiply-accumulates of each layer for one sample, by name.
        samples: how many there are.
    """

    outputs: list[list[Tensor]]
    macs: dict[str, int]
    samples: int


@torch.no_grad()
def baseline(alone: Alone, pieces: Pieces, calls: Sequence[Call]) -> Baseline:
    """Run the float model once: observe activations, count operations, keep the outputs."""
    sources = alone.sources()
    for node in sources.keys() - pieces.index.keys():  # a constant, which no call changes
        for observer in sources.pop(node):
            observer.eval()(evaluate_constant(alone.model.graph, node))
    stops = sorted({pieces.index[node] + 1 for node in sources})
    outputs, samples = [], 0
    for call in track(calls, "running the float model"):
        values, place = pieces.start(call), 0
        samples += sample_count(values)
        constants: Values = {}
        for stop in stops:
            values = pieces.run(values, place, stop, quantized=False, constants=constants)
            place = stop
            for observer in sources.get(pieces.nodes[stop - 1], ()):
                observer.eval()(values[pieces.nodes[stop - 1]])
        values = pieces.run(values, place, len(pieces.nodes), quantized=False, constants=constants)
        outputs.append(floats(pieces, values))
    return Baseline(outputs, _operations(alone, pieces, calls[0]), samples)


def floats(pieces: Pieces, values: Values) -> list[Tensor]:
    """The outputs of floats, of the values that are left at the end."""
    out = next(node for node in pieces.model.graph.graph.nodes if node.op == "output")
    found = [values[node] for node in out.all_input_nodes if node in values]
    return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]


def _operations(alone: Alone, pieces: Pieces, call: Call) -> dict[str, int]:
    """Multiply-accumulates of each layer for one sample; 0 for what depends on parameters alone."""
    values, place = pieces.start(call), 0
    samples = sample_count(values)
    found = dict.fromkeys(alone.layers, 0)
    constants: Values = {}
    for name, node in alone.layers.items():
        if node not in pieces.index:
            continue
        stop = pieces.index[node]
        values = pieces.run(values, place, stop, quantized=False, constants=constants)
        x, weight = (_value(alone, values, argument) for argument in node.args[:2])
        values = pieces.run(values, stop, stop + 1, quantized=False, constants=constants)
        result, place = values.get(node), stop + 1
        if result is not None:  # what nothing reads takes no time
            found[name] = multiplications(node, x, weight, result) // samples
    return found


def _value(alone: Alone, values: Values, argument: object) -> Tensor:
    assert isinstance(argument, fx.Node)
    if argument in values:
        found: Tensor = values[argument]
        return found
    while argument.op == "call_module":  # a quantizer, all of which are off
        (argument,) = argument.all_input_nodes
    return evaluate_constant(alone.model.graph, argument)


def multiplications(node: fx.Node, x: Tensor, weight: Tensor, result: Tensor) -> int:
    """Multiply-accumulates of a convolution or product."""
    kind = kind_of(node)
    if kind is Kind.CONV:
        return result.numel() * weight[0].numel()
    if kind is Kind.CONV_TRANSPOSE:
        return x.numel() * weight[0].numel()
    return result.numel() * x.shape[-1]


class Suffixes:
    """Float values of all samples on their way through a model, from which parts are tried.

    Memory is what is alive at one place of the model, of all samples, and all outputs.

    Attributes:
        runs: the layers' operations that were run so far, in float runs of the whole model.
    """

    def __init__(
        self, alone: Alone, pieces: Pieces, calls: Sequence[Call], known: Baseline
    ) -> None:
        self.alone = alone
        self.pieces = pieces
        self.known = known
        self.runs = 1.0  # the baseline
        self._values = [pieces.start(call) for call in calls]
        self._place = 0

    def move(self, unit: int) -> None:
        """Go on to where a unit begins."""
        start = self.alone.start(unit, self.pieces)
        constants: Values = {}
        self.runs += self._share(self._place, start)
        self._values = [
            self.pieces.run(v, self._place, start, quantized=False, constants=constants)
            for v in self._values
        ]
        self._place = start

    def noise(self) -> float:
        """That of the outputs, of what is switched on: run from here to the model's end.

        Squared error over squared size, of each output, added up over the outputs; infinite where
        an output is no number.
        """
        end, constants = len(self.pieces.nodes), Values()
        self.runs += self._share(self._place, end)
        sums: Tensor | None = None
        for values, wanted in zip(self._values, self.known.outputs, strict=True):
            last = self.pieces.run(values, self._place, end, quantized=True, constants=constants)
            energies = list(_energies(floats(self.pieces, last), wanted))
            found = torch.tensor(energies, dtype=torch.float64)
            sums = found if sums is None else sums + found
        assert sums is not None
        tiny = torch.finfo(sums.dtype).tiny
        noise = float((sums[:, 0] / sums[:, 1].clamp(min=tiny)).sum())
        return noise if math.isfinite(noise) else math.inf

    def _share(self, start: int, stop: int) -> float:
        """Of the operations of all layers, those from ``start`` up to ``stop``."""
        index, macs = self.pieces.index, self.known.macs
        inside = (
            macs[name] for name, node in self.alone.layers.items()
            if start <= index.get(node, -1) < stop
        )  # fmt: skip
        return sum(inside) / max(sum(macs.values()), 1)


def _energies(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Iterator[tuple[float, float]]:
    """Squared error and squared size of each output; what the float model masks does not count."""
    for own, other in zip(got, wanted, strict=True):
        told = other.isfinite()
        reference = other[told].double()
        error = own[told].double() - reference
        yield float(error.square().sum()), float(reference.square().sum())
