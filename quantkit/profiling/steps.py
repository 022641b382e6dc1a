"""What a runtime made of a model: its steps in order, and the tensors between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class StepKind(StrEnum):
    """What a step is, as far as findings ask."""

    PRODUCT = "product"  #: a convolution or a matrix product
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"
    REFORMAT = "reformat"  #: it moves values to another layout
    JOIN = "join"  #: an add or a concat: it has two inputs that must lie on one grid
    OTHER = "other"


#: Precisions of few bits, by their first letters.
_LOW: Final = ("int8", "uint8", "int4", "uint4", "fp8", "fp4")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a runtime does.

    Attributes:
        name: the runtime's, unique.
        layer: of the model; empty where it is the runtime's own.
        op: the runtime's word for what it does.
        kind: what it is.
        precision: what it multiplies in or reads, such as ``int8``, ``float32``, ``int8 weights``.
        inputs: the tensors that it reads, weights and other constants left out.
        outputs: the tensors that it writes.
        channels: of a product, input channels and output channels, of one group; else ``None``.
        seconds: a run; ``None`` where there are no times.
    """

    name: str
    layer: str
    op: str
    kind: StepKind
    precision: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    channels: tuple[int, int] | None = None
    seconds: float | None = None

    @property
    def low(self) -> bool:
        """Whether it computes in few bits; weights alone do not count.

        Example:
            >>> step = Step(name="a", layer="a", op="Conv", kind=StepKind.PRODUCT, precision="int8")
            >>> step.low
            True
        """
        return self.precision.startswith(_LOW) and not self.precision.endswith(" weights")
