"""What layers cost when they are quantized alone: a table of layers and formats, and its file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from quantkit.analysis.formats import Format
from quantkit.errors import ModelFileError
from quantkit.recipe import Recipe, SchemeChoice

By: TypeAlias = Literal["layer", "block"]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one format of one layer or block costs.

    Attributes:
        noise: squared error of the outputs over their squared size; losses of layers add up.
        metric: the model's value by the metric that was given; ``None`` where there was none.
        weight_bytes: what the weights take in the bits of the format, with their scales.
        bit_operations: of one sample: multiply-accumulates times the bits of both factors.
    """

    noise: float
    metric: float | None
    weight_bytes: int
    bit_operations: int

    @property
    def sqnr(self) -> float:
        """Signal to noise of the outputs in dB; infinite where they are equal."""
        return decibels(self.noise)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer or block, and what it costs in each format.

    Attributes:
        name: the layer's, or what the layers of the block have in common.
        layers: the layers that are quantized together.
        losses: of the recipe's own format and then of each other one; ``None`` where the rules
            leave it in float.
        in_float: what it costs when it is left in float; the noise is zero.
    """

    name: str
    layers: tuple[str, ...]
    losses: tuple[Loss | None, ...]
    in_float: Loss


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What each layer or block of a model costs when it alone is quantized.

    Attributes:
        recipe: its own format is the first column.
        formats: the other columns.
        by: what was quantized at a time.
        parts: in the order of execution.
        samples: how many the outputs were judged by.
        float_metric: the float model's value; ``None`` where no metric was given.
        other_bytes: parameters and buffers beside the weights of the parts.
        runs: what it took, in float runs over the samples (without the metric's).

    Example:
        >>> loss = Loss(noise=0.01, metric=None, weight_bytes=64, bit_operations=4096)
        >>> part = Part(name="fc", layers=("fc",), losses=(loss,), in_float=loss)
        >>> recipe = Recipe.model_validate({"name": "mine", "scheme": {"weights": {}}})
        >>> found = Sensitivity(
        ...     recipe=recipe, formats=(), by="layer", parts=(part,), samples=8,
        ...     float_metric=None, other_bytes=0, runs=2.5,
        ... )
        >>> print(found)
        SQNR of the outputs in dB with one layer quantized, 8 samples
        mine  layer
        20.0  fc
        >>> Sensitivity.from_json(found.to_json()) == found
        True
    """

    recipe: Recipe
    formats: tuple[Format, ...]
    by: By
    parts: tuple[Part, ...]
    samples: int
    float_metric: float | None
    other_bytes: int
    runs: float

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the formats, the recipe's own first."""
        return (self.recipe.name, *(format.name for format in self.formats))

    def ranked(self, column: str | None = None) -> list[Part]:
        """The parts by their loss in one format (the recipe's own), the worst first."""
        number = 0 if column is None else self.columns.index(column)

        def noise(part: Part) -> float:
            loss = part.losses[number]
            return -1.0 if loss is None else loss.noise

        return sorted(self.parts, key=noise, reverse=True)

    def together(self, column: str | None = None) -> float:
        """The noise that is predicted with every part in one format (the recipe's own)."""
        number = 0 if column is None else self.columns.index(column)
        own = (part.losses[number] or part.in_float for part in self.parts)
        return sum(loss.noise for loss in own)

    def __str__(self) -> str:
        """A table, the most sensitive first."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"SQNR of the outputs in dB with one {self.by} quantized, {self.samples} samples"
        head, rows = self.table()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
        for row in (head, *rows):
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
            yield "  ".join([*cells, row[-1]])

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of the table, the part's name last."""
        judged = self.float_metric is not None
        head = [*self.columns, *(f"{c} metric" for c in self.columns if judged), self.by]
        rows = []
        for part in self.ranked():
            values = [told(loss) for loss in part.losses]
            metrics = [_metric(loss) for loss in part.losses if judged]
            rows.append([*values, *metrics, part.name])
        return head, rows

    def to_json(self) -> str:
        """Everything, to be read back; noise that is no number is null."""
        data: dict[str, Any] = asdict(self)
        data["recipe"] = self.recipe.model_dump(mode="json")
        for own, format in zip(data["formats"], self.formats, strict=True):
            own["scheme"] = format.scheme and format.scheme.model_dump(mode="json")
        for part in data["parts"]:
            for loss in part["losses"]:
                if loss is not None and not math.isfinite(loss["noise"]):
                    loss["noise"] = None
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """What ``to_json`` wrote.

        Raises:
            ModelFileError: the text is something else.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            recipe = Recipe.model_validate(data.pop("recipe"))
            formats = tuple(_format(item) for item in data.pop("formats"))
            parts = tuple(_part(item) for item in data.pop("parts"))
            return cls(recipe=recipe, formats=formats, parts=parts, **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = " ".join(str(error).split())
            raise ModelFileError(
                f"no sensitivities ({type(error).__name__}: {told}); give a file that quantkit "
                "sensitivity wrote"
            ) from error


def decibels(noise: float) -> float:
    """``-10 log10(noise)``; infinite where there is none.

    Example:
        >>> decibels(0.01), decibels(0.0)
        (20.0, inf)
    """
    return math.inf if noise == 0.0 else -math.inf if noise == math.inf else -10 * math.log10(noise)


def told(loss: Loss | None) -> str:
    """The SQNR for people."""
    if loss is None:
        return "-"
    if loss.noise in (0.0, math.inf):
        return "NaN" if loss.noise else "exact"
    return f"{loss.sqnr:.1f}"


def _metric(loss: Loss | None) -> str:
    return "-" if loss is None or loss.metric is None else f"{loss.metric:.2f}"


def _format(item: Mapping[str, Any]) -> Format:
    scheme = item["scheme"]
    return Format(
        name=item["name"],
        scheme=None if scheme is None else SchemeChoice.model_validate(scheme),
    )


def _part(item: Mapping[str, Any]) -> Part:
    losses = [None if own is None else _read_loss(own) for own in item["losses"]]
    return Part(
        name=item["name"], layers=tuple(item["layers"]), losses=tuple(losses),
        in_float=_read_loss(item["in_float"]),
    )  # fmt: skip


def _read_loss(item: Mapping[str, Any]) -> Loss:
    return Loss(**{**item, "noise": math.inf if item["noise"] is None else item["noise"]})
