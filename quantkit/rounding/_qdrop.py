"""The parts of block reconstruction: what is dropped, what learns, and how a block is judged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from quantkit import numerics
from quantkit.fake_quantize import FakeQuantize
from quantkit.numerics import QParams
from quantkit.reconstruction.block import Block, BlockLayer
from quantkit.reconstruction.layers import spread
from quantkit.reconstruction.stream import Values
from quantkit.rounding._adaround import SoftWeight


def mixed(first: Tensor, second: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each element from ``first`` with chance ``share``, else from ``second``.

    Example:
        >>> a, b = torch.zeros(4), torch.ones(4)
        >>> mixed(a, b, 0.0, torch.Generator()).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    if share == 0.0:
        return second
    chosen = torch.rand(second.shape, generator=generator) < share
    return torch.where(chosen.to(second.device), first, second)


def mixed_values(
    floating: Values, quantized: Values, share: float, generator: torch.Generator
) -> Values:
    """`mixed`, for every tensor of numbers that comes into a block."""
    found: Values = {}
    for node, value in quantized.items():
        numbers = isinstance(value, Tensor) and value.is_floating_point()
        found[node] = mixed(floating[node], value, share, generator) if numbers else value
    return found


def soft_weight(layer: BlockLayer) -> SoftWeight:
    """A layer's weight between two points of its grid: the one it lies on, and its neighbour."""
    step, zero_point = spread(layer.qparams, tuple(layer.weight.shape))
    spec = layer.qparams.spec
    return SoftWeight(
        layer.weight.float(), step, zero_point, spec.qmin, spec.qmax, begin=layer.rounded.float()
    )


class LearnedGrids:
    """The grids of a block's own activations while they are learned, apart from the model's."""

    def __init__(self, quantizers: Mapping[str, FakeQuantize]) -> None:
        self._scales: dict[str, Tensor] = {}
        self._lowest: dict[str, Tensor | None] = {}
        for name, quantizer in quantizers.items():
            qparams = quantizer.qparams
            self._scales[name] = qparams.scale.clone().requires_grad_()
            lowest = (qparams.spec.qmin - qparams.zero_point) * qparams.scale
            symmetric = qparams.spec.symmetric
            self._lowest[name] = None if symmetric else lowest.float().requires_grad_()
        self._specs = {name: quantizer.spec for name, quantizer in quantizers.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [*self._scales.values(), *(x for x in self._lowest.values() if x is not None)]

    def put(self, quantizer: FakeQuantize, x: Tensor) -> Tensor:
        """``x`` on a quantizer's grid as it is now learned."""
        scale = self._scales.get(quantizer.name)
        if scale is None:
            return quantizer(x)  # type: ignore[no-any-return]
        lowest = self._lowest[quantizer.name]
        samples = x.shape[0] if x.dim() else 1
        return numerics.learned_fake_quantize(x, scale, lowest, quantizer.spec, samples=samples)

    def qparams(self) -> dict[str, QParams]:
        """The grids that were learned."""
        found = {}
        for name, scale in self._scales.items():
            step, zero_point = numerics.learned_grid(scale, self._lowest[name], self._specs[name])
            found[name] = QParams(scale=step.clone(), zero_point=zero_point, spec=self._specs[name])
        return found


@torch.no_grad()
def error_of(
    block: Block, weights: Mapping[str, Tensor], grids: LearnedGrids | None = None
) -> float:
    """The mean squared error of a block's result on the calls to judge by, as it is deployed."""
    total, count = 0.0, 0
    quantize = None if grids is None else grids.put
    for index in block.told:
        inputs = block.inputs([index], quantized=True)
        target = block.target([index])
        result = block.run(inputs, weights, quantize=quantize)
        total += float((result - target).double().square().sum())
        count += target.numel()
    return total / max(count, 1)
