"""The moments of a layer's inputs, gathered call by call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit.model import Layer
from quantkit.reconstruction.layers import Form
from quantkit.reconstruction.padding import without_padding
from quantkit.reconstruction.stream import Stream, Values, sample_count

#: How many positions, of all samples together, a layer's moments are of: so many at least (where
#: there are as many), and so many for each input: the moments' own error is then about 1 %.
LEAST_POSITIONS = 1 << 12
POSITIONS_AN_INPUT = 32
#: One call of so many tells how far the others are to be trusted.
HELD_OUT = 4


def held_out(call: int) -> bool:
    """Whether no rounding learns from the call of this number.

    Example:
        >>> [call for call in range(10) if held_out(call)]
        [3, 7]
    """
    return call % HELD_OUT == HELD_OUT - 1


@dataclass
class Moments:
    """Sums of ``x̂ x̂ᵀ``, ``x x̂ᵀ`` and ``x xᵀ``, each ``(groups, inputs, inputs)`` float64."""

    quantized: Tensor
    crossed: Tensor
    floating: Tensor
    count: int = 0

    @classmethod
    def none(cls, form: Form) -> Moments:
        """Before any sample."""
        inputs = form.matrices(torch.empty(form.shape, device="meta")).shape[-1]
        zeros = torch.zeros(form.groups, inputs, inputs, dtype=torch.float64)
        return cls(zeros, zeros.clone(), zeros.clone())

    def add(self, floating: Tensor, quantized: Tensor) -> None:
        """Take in rows of inputs, ``(groups, positions, inputs)`` each."""
        self.quantized += (quantized.mT @ quantized).double()
        self.crossed += (floating.mT @ quantized).double()
        self.floating += (floating.mT @ floating).double()
        self.count += floating.shape[1]

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """``G``, ``C`` and ``F`` in float32."""
        count = max(self.count, 1)
        return (
            (self.quantized / count).float(),
            (self.crossed / count).float(),
            (self.floating / count).float(),
        )


@torch.no_grad()
def moments_of(
    stream: Stream, layer: Layer, form: Form, float_constants: Values, *, seed: int = 0
) -> tuple[Moments, Moments]:
    """The moments of a layer's inputs, from where the stream stands; those of held-out calls apart.

    Every `HELD_OUT`-th call is held out: no rounding of an earlier layer has seen it either.
    Padding of sequences does not count: nothing reads it.

    Args:
        stream: at the beginning of the layer's block, or of the layer.
        layer: within what comes next.
        form: of the layer.
        float_constants: the constants of the float model from here to the layer, as they were
            before any weight of the block was rounded.
        seed: of the positions that are drawn where there are many.
    """
    pieces = stream.pieces
    stop, source = pieces.index[layer.node], layer.node.args[0]
    assert isinstance(source, fx.Node)
    parts = Moments.none(form), Moments.none(form)
    generator = torch.Generator().manual_seed(seed)
    wanted = max(LEAST_POSITIONS, POSITIONS_AN_INPUT * parts[0].quantized.shape[-1])
    most = -(-wanted // max(len(stream.floating), 1))
    constants: Values = {}
    for index, (floating, quantized, real) in enumerate(
        zip(stream.floating, stream.quantized, stream.real, strict=True)
    ):
        start = stream.place
        x = pieces.run(floating, start, stop, quantized=False, constants=float_constants)[source]
        y = pieces.run(quantized, start, stop, quantized=True, constants=constants)[source]
        if form.groups == 1 and not form.kernel:
            x, y = without_padding(x, real), without_padding(y, real)
        state = generator.get_state()
        rows = form.rows(x.float(), most, generator)
        generator.set_state(state)
        parts[held_out(index)].add(rows, form.rows(y.float(), most, generator))
    return parts


def samples_in(stream: Stream) -> int:
    """How many samples are on their way."""
    return sum(sample_count(values) for values in stream.floating)
