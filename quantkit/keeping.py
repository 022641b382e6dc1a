"""Keep what a step makes of a quantized model only where the model's outputs are no worse for it.

Roundings and corrections lower the error of a layer or block. That mostly, but not always, lowers
the error of the model: where vectors that no output reads carry nearly all of a layer's error (the
padding of sentences), what repairs them may harm the rest. So the outputs judge, on calls that no
step has learned from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit.batches import Call
from quantkit.model import Judged, QuantizedModel, copied
from quantkit.reconstruction.moments import held_out
from quantkit.reconstruction.stream import Pieces, Values


def parted(calls: Sequence[Call]) -> tuple[list[Call], list[Call]]:
    """The calls to learn from, and those to judge by; both are all where there are very few.

    Example:
        >>> calls = [((torch.zeros(1),), {}) for _ in range(8)]
        >>> [len(part) for part in parted(calls)], [len(part) for part in parted(calls[:3])]
        ([6, 2], [3, 3])
    """
    told = [call for number, call in enumerate(calls) if held_out(number)]
    if not told:
        return list(calls), list(calls)
    return [call for number, call in enumerate(calls) if not held_out(number)], told


@dataclass(frozen=True, eq=False)
class Judge:
    """The float outputs of some calls, to compare the quantized model's with.

    Attributes:
        calls: that no step learns from.
        expected: of each call the tensors that the float model puts out.
    """

    calls: Sequence[Call]
    expected: Sequence[Sequence[Tensor]]

    @classmethod
    def of(
        cls, model: QuantizedModel, calls: Sequence[Call], constants: Values | None = None
    ) -> Judge:
        """By the model as it is in float.

        Args:
            model: quantized.
            calls: to judge by.
            constants: its float parameters, where rounding has changed them already.
        """
        return cls(calls, _outputs(model, calls, quantized=False, constants=constants))

    def noise(self, model: QuantizedModel) -> float:
        """The squared error of the model's outputs on its grids, beside their squares."""
        error = power = 0.0
        found = _outputs(model, self.calls, quantized=True, constants=None)
        for results, expected in zip(found, self.expected, strict=True):
            for y, t in zip(results, expected, strict=True):
                error += float((y.double() - t.double()).square().sum())
                power += float(t.double().square().sum())
        noise = error / max(power, 1e-300)
        return math.inf if math.isnan(noise) else noise

    @contextmanager
    def over(self, model: QuantizedModel, step: str) -> Iterator[None]:
        """Judge what is done to the model within; take it back where the outputs are worse.

        The model has a note of it afterwards (``model.judged``). Outputs that are no floating-point
        numbers tell nothing: then what is done stays, without a note.
        """
        if not any(self.expected):
            yield
            return
        before, noise = copied(model), self.noise(model)
        yield
        after = self.noise(model)
        kept = after <= noise
        if not kept:
            model.become(before)
        model.judged = (*model.judged, Judged(step, _decibels(noise), _decibels(after), kept))


@torch.no_grad()
def _outputs(
    model: QuantizedModel, calls: Sequence[Call], *, quantized: bool, constants: Values | None
) -> list[list[Tensor]]:
    training = model.training
    model.eval()
    model.simulate()
    pieces = Pieces(model)
    out = next(node for node in model.graph.graph.nodes if node.op == "output")
    known = Values() if constants is None else dict(constants)
    try:
        return [
            _numbers(out, pieces.run(
                pieces.start(call), 0, len(pieces.nodes), quantized=quantized, constants=known
            ))
            for call in calls
        ]  # fmt: skip
    finally:
        model.train(training)


def _numbers(out: fx.Node, values: Values) -> list[Tensor]:
    found = [values[node] for node in out.all_input_nodes if node in values]
    return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]


def _decibels(noise: float) -> float:
    return -10.0 * math.log10(noise) if noise > 0.0 else math.inf
