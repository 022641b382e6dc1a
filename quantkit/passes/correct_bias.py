"""Take out of each layer's results what quantization has shifted them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quantkit.batches import Call
from quantkit.interfaces import ModelPass
from quantkit.model import QuantizedModel
from quantkit.passes._equalization import read_constant
from quantkit.passes._expected import expected_mean
from quantkit.passes._layer_walk import Seen, on_sums_grid, store_bias, walk
from quantkit.passes._links import groups_of


@dataclass(frozen=True, kw_only=True)
class CorrectBias(ModelPass):
    """``b' = b + E[y] - E[ŷ]``, one an output channel, layer by layer in the order of execution.

    Bias correction: Nagel et al. 2019 (arXiv:1906.04721), section 4.2. Each layer is corrected
    behind the quantized and corrected layers before it. A channel keeps its correction only where
    the layer's mean squared error on the calibration data is less with it, so no layer is worse on
    those data. A layer without a bias is given one. It helps most where weights share one scale a
    tensor. Name it before `center`, which shifts what layers put out.

    Attributes:
        method: ``empirical``: the means of the float and the quantized results on calibration data
            (appendix D). ``analytical``: ``E[y] - E[ŷ] = (W - Ŵ) E[x]``, with the mean of a
            clipped normal variable by the batch-norm of the layer that makes ``x`` (appendix C);
            data only judge it. Layers whose ``E[x]`` is not known that way stay as they are.
        samples: of the calibration data.
    """

    reads_float_weights = True

    method: Literal["empirical", "analytical"] = "empirical"
    samples: int = 128

    def __post_init__(self) -> None:
        if self.method not in {"empirical", "analytical"}:
            raise ValueError(f"method must be empirical or analytical, got {self.method!r}")
        if self.samples < 1:
            raise ValueError(f"samples must be 1 or more, got {self.samples}")

    def apply(self, model: QuantizedModel, calls: Sequence[Call]) -> int:
        """Correct biases; returns of how many layers.

        Raises:
            DataError: there are no calls.
            RecipeError: the model does not keep its float weights.
        """
        changed = 0
        for seen in walk(model, calls, "correct_bias"):
            shift = self._shift(model, seen)
            if shift is None:
                continue
            wanted = on_sums_grid(seen.layer, seen.bias + shift)
            one = torch.ones_like(wanted)
            # NaN, where sums have no room, compares as no gain.
            better = seen.moments.error(one, wanted - seen.bias) < seen.moments.error(one, 0 * one)
            if bool(better.any()):
                store_bias(model, seen.layer, torch.where(better, wanted, seen.bias))
                changed += 1
        if changed:
            model.graph.recompile()
        return changed

    def _shift(self, model: QuantizedModel, seen: Seen) -> Tensor | None:
        if self.method == "empirical":
            return seen.moments.mean_f - seen.moments.mean_q
        return _analytical_shift(model, seen)


def _analytical_shift(model: QuantizedModel, seen: Seen) -> Tensor | None:
    """``(W - Ŵ) E[x]``; ``None`` where ``E[x]`` is not known."""
    layer = seen.layer
    mean = expected_mean(model.graph, layer.node.args[0])
    if mean is None or layer.weight is None or layer.weight_value is None:
        return None
    if "transpose" in str(layer.node.target):
        return None  # each output reads other taps
    with torch.no_grad():
        difference = seen.float_weight.double() - layer.weight(layer.weight_value).double()
    return read_constant(difference, mean, groups_of(layer.node))
