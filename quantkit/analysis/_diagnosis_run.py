"""Runs the calls of a diagnosis: each layer by itself, and the model beside its float self."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, fx

from quantkit import numerics
from quantkit.analysis._diagnosis_counts import Counts
from quantkit.analysis._diagnosis_noise import Noise
from quantkit.analysis._diagnosis_probe import Probe, in_float, probe_of
from quantkit.analysis._suffixes import floats
from quantkit.fake_quantize import FakeQuantize
from quantkit.model import QuantizedModel
from quantkit.reconstruction.float_layers import FloatLayer
from quantkit.reconstruction.padding import real_positions, without_padding
from quantkit.reconstruction.stream import Pieces, Values, named

#: Dimensions of a batch of images, whose channels come second.
_IMAGES = 4


class Runs:
    """A quantized model and what is measured of it, call by call; nothing of a call is kept.

    Attributes:
        probes: the layers, in the order of execution.
        counts: of each grid of activations, by its quantizer.
        read: the quantizers that layers read.
        outputs: noise of each output of floats.
    """

    def __init__(self, model: QuantizedModel, floating: Mapping[str, FloatLayer] | None) -> None:
        self.pieces = Pieces(model)
        self.counts = _counts(model)
        self.outputs: list[Noise] = []
        self._model = model
        self._floating = in_float(model, floating)
        layers = model.layers()
        found = [probe_of(model, self.pieces, layer, self._floating) for layer in layers]
        self.probes = [probe for probe in found if probe is not None]
        self.read = {self.module(node) for probe in self.probes for node in probe.inputs}
        self._constants: tuple[Values, Values] = {}, {}

    def run(self, values: Values) -> None:
        """Measure one call, given its inputs."""
        real = real_positions(named(values))
        self._beside(values, real)
        self._alone(values, real)

    def _alone(self, values: Values, real: Tensor | None) -> None:
        """Each layer with float inputs: what is its own, and of which of its inputs."""
        place = 0
        for probe in sorted(self.probes, key=lambda probe: probe.start):
            values = self._in_float(values, place, probe.start)
            place = probe.start
            wanted = self._layer(probe, values, real, weight=False, inputs=False)
            there = probe.weight is not None, bool(probe.inputs)
            found = self._layer(probe, values, real, weight=there[0], inputs=there[1], own=True)
            probe.both.update(found, wanted, probe.axis)
            if there[0]:
                found = self._layer(probe, values, real, weight=True, inputs=False)
                probe.weights.update(found, wanted)
            if there[1]:
                found = self._layer(probe, values, real, weight=False, inputs=True)
                probe.activations.update(found, wanted)

    def _in_float(self, values: Values, start: int, stop: int) -> Values:
        return self.pieces.run(
            values, start, stop, quantized=False, constants=self._constants[0],
            instead=self._floating,
        )  # fmt: skip

    def _layer(
        self,
        probe: Probe,
        values: Values,
        real: Tensor | None,
        *,
        weight: bool,
        inputs: bool,
        own: bool = False,
    ) -> Tensor:
        """The layer's result with its weight, or its activations, on their grids.

        ``own``: and with the bias of the quantized model.
        """
        chosen = {self.module(node) for node in probe.inputs} if inputs else set()
        instead = dict(self._floating)
        if weight and probe.weight is not None:
            instead[probe.layer.node.args[1]] = probe.weight[1]  # type: ignore[index]
        if own and probe.bias is not None:
            instead[probe.bias[0]] = probe.bias[1]
        for node in probe.inputs if inputs else ():
            if node in self._floating:  # a constant, such as embeddings of positions
                instead[node] = numerics.fake_quantize(
                    self._floating[node], self.module(node).qparams
                )

        def quantize(module: FakeQuantize, x: Tensor) -> Tensor:
            return numerics.fake_quantize(x, module.qparams) if module in chosen else x

        for start, stop in ((probe.start, probe.stop - 1), (probe.stop - 1, probe.stop)):
            values = self.pieces.run(
                values, start, stop, quantized=True, constants=self._constants[0],
                instead=instead, quantize=quantize,
            )  # fmt: skip
            if stop < probe.stop and not (weight or inputs) and probe.axis is not None:
                x = instead.get(probe.layer.node.args[0])  # type: ignore[arg-type]
                x = values[probe.layer.node.args[0]] if x is None else x  # type: ignore[index]
                probe.peaks.update(without_padding(x, real), probe.axis)
        result: Tensor = values[probe.layer.node]
        return without_padding(result, real)

    def _beside(self, values: Values, real: Tensor | None) -> None:
        """The whole model on its grids, beside its float self, which is watched."""
        places = {probe.stop: probe for probe in self.probes}
        now, place = (values, values), 0
        for stop in (*sorted(places), len(self.pieces.nodes)):
            now = self._both(now, place, stop, real)
            place = stop
            if stop in places:
                probe = places[stop]
                wanted, found = (without_padding(v[probe.layer.node], real) for v in now)
                probe.inside.update(found, wanted)
        ends = tuple(floats(self.pieces, v) for v in now)
        self.outputs = self.outputs or [Noise() for _ in ends[0]]
        for noise, own, other in zip(self.outputs, *ends, strict=True):
            noise.update(without_padding(other, real), without_padding(own, real))

    def _both(
        self, now: tuple[Values, Values], start: int, stop: int, real: Tensor | None
    ) -> tuple[Values, Values]:
        def watch(module: FakeQuantize, x: Tensor) -> Tensor:
            self._watch(module, x, real)
            return x

        floating = self.pieces.run(
            now[0], start, stop, quantized=True, constants=self._constants[0],
            instead=self._floating, quantize=watch,
        )  # fmt: skip
        quantized = self.pieces.run(
            now[1], start, stop, quantized=True, constants=self._constants[1]
        )
        return floating, quantized

    def _watch(self, module: FakeQuantize, x: Tensor, real: Tensor | None) -> None:
        """Count float values where a quantizer reads them."""
        counts = self.counts[module]
        if module not in self.read and x.dim() > 1:
            counts.peaks.update(x, 1 if x.dim() == _IMAGES else -1)
        counts.update(without_padding(x, real) if module.spec.axis is None else x)

    def module(self, node: fx.Node) -> FakeQuantize:
        """The quantizer that a node calls."""
        found = self._model.graph.get_submodule(str(node.target))
        assert isinstance(found, FakeQuantize)
        return found


@contextmanager
def on_grids(model: QuantizedModel) -> Iterator[None]:
    """In evaluation mode, all that is calibrated quantizing; afterwards as it was."""
    training = model.training
    before = [(q, q.quantizing) for q in model.quantizers.values()]
    model.eval()
    model.simulate()
    try:
        yield
    finally:
        for quantizer, quantizing in before:
            quantizer.quantize_values(quantizing)
        model.train(training)


def _counts(model: QuantizedModel) -> dict[FakeQuantize, Counts]:
    """Of each activation's grid; two quantizers never share one."""
    grids, quantizers = model.plan.grids, model.quantizers
    return {
        quantizers[name]: Counts(name, "activation", quantizers[name].qparams)
        for name, members in grids.items()
        if members[0].role == "activation"
    }
