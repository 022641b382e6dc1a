"""A file run in three ways beside its simulation, and sums for each of its tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from quantkit.batches import Call
from quantkit.comparing import NotRunError, feed_of
from quantkit.errors import TargetError
from quantkit.interfaces import Target
from quantkit.onnx.facts import FileFacts
from quantkit.onnx.parity import Closeness, Meter, difference, larger
from quantkit.onnx.taps import GIVEN, Tap, Taps, forced, tapped
from quantkit.parity.result import TensorParity
from quantkit.parity.values import Interior, Values
from quantkit.targets.onnxruntime import OnnxRuntime

#: From one batch by the names of a file's inputs to the tensors that were asked for.
Run: TypeAlias = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class Comparison:
    """The file in its three ways to run, and sums for every tap."""

    def __init__(
        self, path: Path, facts: FileFacts, taps: Taps, known: list[Tap], target: Target | None
    ) -> None:
        self.path, self.facts, self.taps, self.known, self.target = path, facts, taps, known, target
        self.activations = [tap for tap in known if tap.kind == "activation"]
        self.layers = [tap for tap in known if tap.kind == "layer"]
        exact, default = OnnxRuntime(exact=True), OnnxRuntime()
        try:
            self.fused = self._open(exact, self.activations)
            self.usual = self._open(default, self.activations)
            self.apart = self._open(exact, self.layers)
            self.given = self._open(exact, known, given=True)
        except TargetError as error:
            raise NotRunError(str(error)) from error
        self.meters = {tap: _Meters() for tap in known}
        self.odd: dict[Tap, str] = {}

    def _open(self, place: OnnxRuntime, taps: list[Tap], *, given: bool = False) -> Run:
        values = [tap.value for tap in taps]
        if not values:
            return lambda feed: []
        proto = (forced if given else tapped)(self.taps.model, values)
        return place.opened_proto(proto, self.path, values, optimized=not given)

    def update(
        self,
        call: Call,
        simulated: Values,
        floating: Values | None,
        there: Mapping[Tap, np.ndarray] | None,
    ) -> None:
        """Take in one batch: its tensors simulated, in float, and on the target."""
        feed = feed_of(*call, self.facts.inputs)
        deployed = dict(zip(self.activations, self.fused(feed), strict=True))
        deployed |= zip(self.layers, self.apart(feed), strict=True)
        usual = dict(zip(self.activations, self.usual(feed), strict=True))
        shaped = {t: self._like(t, simulated[t.kind, t.name], deployed[t]) for t in self.known}
        inputs = set(self.facts.inputs)
        given = {f"{t.value}{GIVEN}": shaped[t] for t in self.known if t.value not in inputs}
        own = dict(zip(self.known, self.given({**feed, **given}), strict=True))
        for tap, meters in self.meters.items():
            if tap in self.odd:
                continue
            meters.deployed.update(shaped[tap], deployed[tap])
            meters.own.update(shaped[tap], own[tap])
            if (wanted := (floating or {}).get((tap.kind, tap.name))) is not None:
                meters.compare_float(wanted, simulated[tap.kind, tap.name])
            if tap in usual:
                meters.compare_modes(deployed[tap], usual[tap])
            if there is not None:
                meters.target.update(shaped[tap], there[tap])

    def _like(self, tap: Tap, value: np.ndarray, deployed: np.ndarray) -> np.ndarray:
        """A simulated tensor in the shape that it has in the file."""
        if value.shape == deployed.shape:
            return value
        if value.size == deployed.size:
            return value.reshape(deployed.shape)
        self.odd[tap] = f"{tap.name}: {value.shape} simulated, {deployed.shape} in the file"
        return deployed  # the steps behind run on this, and are compared all the same

    def on_target(self, calls: Sequence[Call]) -> list[dict[Tap, np.ndarray] | None]:
        """The taps of each call on the target, which builds a file that puts them out, once."""
        if self.target is None:
            return [None] * len(calls)
        proto = tapped(self.taps.model, [tap.value for tap in self.known])
        apart = any(
            onnx.external_data_helper.uses_external_data(t) for t in proto.graph.initializer
        )
        with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
            file = Path(folder) / self.path.name
            onnx.external_data_helper.load_external_data_for_model(proto, str(self.path.parent))
            names = [output.name for output in proto.graph.output]
            onnx.save(proto, file, save_as_external_data=apart)
            feeds = [feed_of(args, kwargs, self.facts.inputs) for args, kwargs in calls]
            results = self.target.run(file, feeds)
        found = [dict(zip(names, outputs, strict=True)) for outputs in results]
        return [{tap: outputs[tap.value] for tap in self.known} for outputs in found]

    def result(self, *, centered: bool) -> list[TensorParity]:
        """The figures of every tensor that could be compared."""
        return [
            TensorParity(
                name=tap.name,
                kind=tap.kind,
                simulated=meters.simulated(centered=centered),
                deployed=meters.deployed.result(),
                own=meters.own.result(),
                target=None if self.target is None else meters.target.result(),
                default_mode=meters.default_mode if tap.kind == "activation" else None,
            )
            for tap, meters in self.meters.items()
            if tap not in self.odd
        ]

    def notes(self, inside: Interior) -> list[str]:
        """What was not compared."""
        found = {(tap.kind, tap.name) for tap in self.taps.taps}
        layers = [n for n in inside.names("layer") if ("layer", n) not in found]
        told = [f"not compared, of another shape: {text}" for text in self.odd.values()]
        if layers:
            told.append(f"not compared, for the file does not name them: {', '.join(layers)}")
        return told


class _Meters:
    """Sums for one tensor."""

    def __init__(self) -> None:
        self.deployed, self.own, self.target = Meter(), Meter(), Meter()
        self._simulated: Meter | None = None
        self._peak = self._moved = 0.0

    def compare_float(self, floating: np.ndarray, simulated: np.ndarray) -> None:
        """Take in the simulated tensor beside the float one; of two shapes they are not one."""
        if floating.shape == simulated.shape:
            self._simulated = self._simulated or Meter()
            self._simulated.update(floating, simulated)

    def compare_modes(self, exact: np.ndarray, default: np.ndarray) -> None:
        """Take in the tensor in both modes of ONNX Runtime."""
        self._peak = larger(self._peak, exact.astype(np.float64))
        self._moved = larger(self._moved, difference(exact, default))

    def simulated(self, *, centered: bool) -> Closeness | None:
        """Without the constant that ``center`` has added to the tensor, if it has."""
        return None if self._simulated is None else self._simulated.result(shifted=centered)

    @property
    def default_mode(self) -> float:
        """How far the modes are apart, as a share of the largest value."""
        return self._moved / self._peak if self._peak else self._moved
