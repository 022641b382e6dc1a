"""What a diagnosis says, as values: layers, the grids that they read, and their file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from quantkit.analysis._diagnosis_told import HEAD, row_of
from quantkit.analysis.losses import decibels
from quantkit.errors import ModelFileError

#: A channel is an outlier where its largest magnitude is so many times the median channel's: on
#: one grid for both, the median channel then loses two bits or more.
OUTLIER = 4.0
#: Values lie on one side where the other reaches no further than this part of it: a bit is lost.
ONE_SIDED = 0.1
#: So many outlier channels are named; the others are counted.
NAMED = 8
FORMAT = "quantkit.diagnosis/1"

Role: TypeAlias = Literal["activation", "weight"]


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A channel that is larger than the others.

    Attributes:
        channel: its number.
        times: its largest magnitude over that of the median channel.
    """

    channel: int
    times: float


@dataclass(frozen=True, kw_only=True)
class GridUse:
    """How a grid fits the values that are put on it.

    Attributes:
        grid: its name in the plan.
        role: of what.
        spec: its form, such as ``int8 symmetric per tensor``.
        low, high: the smallest and largest value seen; what is infinite or NaN does not count.
        grid_low, grid_high: the ends of the grid; over all its channels.
        saturated: share of the values that lie more than half a step beyond an end.
        clipped: share of the grid's squared error that those values make.
        unused: share of the grid that no value reaches, at both ends together; the mean over
            its channels where it has several scales.
        headroom: share by which the range would be shorter if one value in a thousand were cut
            off; ``None`` for grids of floating-point formats, whose steps shrink with the values.
        noise: squared error of the values over their squares.
        channels: how many the tensor has: those that a layer's sums run over, or that a weight
            puts out.
        spread: largest magnitude of the largest channel over that of the median channel; 1 where
            there is one channel, infinite where the median channel is all zero.
        outliers: how many channels are `OUTLIER` times as large as the median one, or more.
        largest: the first `NAMED` of them, the largest first.
    """

    grid: str
    role: Role
    spec: str
    low: float
    high: float
    grid_low: float
    grid_high: float
    saturated: float
    clipped: float
    unused: float
    headroom: float | None
    noise: float
    channels: int
    spread: float
    outliers: int
    largest: tuple[Outlier, ...]

    @property
    def sqnr(self) -> float:
        """Signal to noise of the values in dB; infinite where all lie on the grid."""
        return decibels(self.noise)

    @property
    def one_sided(self) -> bool:
        """Whether a grid with zero in its middle holds values of one side, as behind a ReLU."""
        small, large = sorted((max(-self.low, 0.0), max(self.high, 0.0)))
        return " symmetric" in self.spec and small <= ONE_SIDED * large


@dataclass(frozen=True, kw_only=True)
class LayerDiagnosis:
    """What quantization does to one layer.

    Its own noise is that of its result where its inputs are those of the float model, so what came
    before it does not count. Every noise is a squared error over the squares of the float result.

    Attributes:
        name: the plan's.
        kind: of operator, such as ``conv``.
        noise: with all of its inputs on their grids.
        weights_noise: with its weight alone on its grid; ``None`` where it has no weight on a grid.
        activations_noise: with its activations alone; ``None`` where none is on a grid.
        mean_share: share of ``noise`` that is the mean error of each output channel: what a bias
            could take back.
        model_noise: of its result in the quantized model, where all before it is quantized too.
        grids: of its inputs, activations first, then the weight.
    """

    name: str
    kind: str
    noise: float
    weights_noise: float | None
    activations_noise: float | None
    mean_share: float
    model_noise: float
    grids: tuple[GridUse, ...]

    @property
    def sqnr(self) -> float:
        """Its own signal to noise in dB, all of its inputs on their grids."""
        return decibels(self.noise)

    @property
    def weights_sqnr(self) -> float | None:
        """In dB, with the weight alone on its grid."""
        return None if self.weights_noise is None else decibels(self.weights_noise)

    @property
    def activations_sqnr(self) -> float | None:
        """In dB, with the activations alone on their grids."""
        return None if self.activations_noise is None else decibels(self.activations_noise)

    @property
    def model_sqnr(self) -> float:
        """In dB, with all before it quantized as well."""
        return decibels(self.model_noise)

    @property
    def weights_share(self) -> float | None:
        """The weights' part of both errors, 0 to 1; ``None`` where neither makes an error."""
        return shares(self.weights_noise, self.activations_noise)[0]

    @property
    def activations_share(self) -> float | None:
        """The activations' part of both errors, 0 to 1; ``None`` where neither makes an error."""
        return shares(self.weights_noise, self.activations_noise)[1]

    @property
    def weight(self) -> GridUse | None:
        """The grid of its weight."""
        return next((grid for grid in self.grids if grid.role == "weight"), None)

    @property
    def activations(self) -> tuple[GridUse, ...]:
        """The grids of its activations."""
        return tuple(grid for grid in self.grids if grid.role == "activation")


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What quantization does to each layer of a model.

    Attributes:
        recipe: the name of the recipe.
        samples: how many the figures are of.
        noise: squared error of the model's outputs over their squares; added up over outputs.
        layers: the quantized ones, in the order of execution.
        others: grids of activations that no layer reads by itself, such as the skip branch of a
            residual add.

    Example:
        >>> found = Diagnosis(recipe="mine", samples=8, noise=0.01, layers=(), others=())
        >>> Diagnosis.from_json(found.to_json()) == found
        True
    """

    recipe: str
    samples: int
    noise: float
    layers: tuple[LayerDiagnosis, ...]
    others: tuple[GridUse, ...]

    @property
    def sqnr(self) -> float:
        """Signal to noise of the model's outputs in dB."""
        return decibels(self.noise)

    def ranked(self) -> list[LayerDiagnosis]:
        """The layers by their own noise, the worst first."""
        return sorted(self.layers, key=lambda layer: layer.noise, reverse=True)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of a table, the worst layer first, its name last."""
        return list(HEAD), [row_of(layer) for layer in self.ranked()]

    def __str__(self) -> str:
        """The table."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"What quantization does to each layer, SQNR in dB, {self.samples} samples"
        head, rows = self.table()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
        for row in (head, *rows):
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
            yield "  ".join([*cells, row[-1]])

    def to_json(self) -> str:
        """Everything, to be read back; what is infinite is null.

        Beside what the values hold there are their shares and SQNR.
        """
        data: dict[str, Any] = {"format": FORMAT, **asdict(self), "sqnr": self.sqnr}
        for item, layer in zip(data["layers"], self.layers, strict=True):
            item |= {name: getattr(layer, name) for name in _OF_LAYER}
        return json.dumps(finite(data), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """What ``to_json`` wrote.

        Raises:
            ModelFileError: the text is something else.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            return cls(
                recipe=data["recipe"], samples=data["samples"], noise=_number(data["noise"]),
                layers=tuple(_layer(item) for item in data["layers"]),
                others=tuple(_grid(item) for item in data["others"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = " ".join(str(error).split())
            raise ModelFileError(
                f"no diagnosis ({type(error).__name__}: {told}); give a file that quantkit "
                "diagnose wrote"
            ) from error


_OF_LAYER = (
    "sqnr", "weights_sqnr", "activations_sqnr", "model_sqnr", "weights_share", "activations_share",
)  # fmt: skip


def shares(
    weights: float | None, activations: float | None
) -> tuple[float, float] | tuple[None, None]:
    """What part each of two noises has in their sum; they are nearly independent, so they add.

    Example:
        >>> shares(0.375, 0.125), shares(None, 0.01), shares(0.0, 0.0)
        ((0.75, 0.25), (0.0, 1.0), (None, None))
    """
    own, other = weights or 0.0, activations or 0.0
    if math.isinf(own) or math.isinf(other):
        own, other = float(math.isinf(own)), float(math.isinf(other))
    largest = max(own, other)
    if largest == 0.0:
        return None, None
    own, other = own / largest, other / largest  # so that a sum of very small ones is no zero
    return own / (own + other), other / (own + other)


def finite(data: Any) -> Any:
    """With ``None`` for numbers that JSON has not."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def _grid(item: Mapping[str, Any]) -> GridUse:
    largest: Sequence[Mapping[str, Any]] = item["largest"]
    own = {
        **item,
        "noise": _number(item["noise"]),
        "spread": _number(item["spread"]),
        "largest": tuple(Outlier(channel=o["channel"], times=_number(o["times"])) for o in largest),
    }
    return GridUse(**own)


def _layer(item: Mapping[str, Any]) -> LayerDiagnosis:
    own = {key: value for key, value in item.items() if key not in _OF_LAYER}
    own["noise"], own["model_noise"] = _number(item["noise"]), _number(item["model_noise"])
    own["grids"] = tuple(_grid(grid) for grid in item["grids"])
    return LayerDiagnosis(**own)
