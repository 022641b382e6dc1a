"""The table of layers as it stands on the page: columns that are filled, and cells with words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from quantkit.reporting import figures
from quantkit.reporting.section import Data

#: What a target runs in few bits, by how the names of other types begin.
FLOATS: Final = ("float", "bf", "none")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of a row.

    Attributes:
        text: for people.
        order: what its column is sorted by; empty where nothing was measured.
        tone: ``bad`` where it is other than planned, ``dim`` where it is of little interest.
    """

    text: str
    order: str
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        key: its name on the page.
        title: its head.
        note: what the figure is, one sentence.
        numeric: whether it is sorted as numbers, and set to the right.
        cell: from a row of the report to its cell.
        shown: whether it is shown until the reader chooses others.
    """

    key: str
    title: str
    note: str
    cell: Callable[[Data], Cell]
    numeric: bool = True
    shown: bool = True


def _figure(key: str, told: Callable[[Any], str]) -> Callable[[Data], Cell]:
    def cell(row: Data) -> Cell:
        return Cell(text=told(row[key]), order=figures.order(row[key]))

    return cell


def _word(key: str, tone: str = "") -> Callable[[Data], Cell]:
    def cell(row: Data) -> Cell:
        return Cell(text=str(row[key]), order=str(row[key]), tone=tone)

    return cell


def _planned(row: Data) -> Cell:
    text = "quantized" if row["quantized"] else "float"
    return Cell(text=text, order=text, tone="" if row["quantized"] else "dim")


_FIGURES: Final = (
    Column(key="sensitivity", title="alone, dB", cell=_figure("sensitivity", figures.decibels),
           note="SQNR of the model's outputs with this layer alone quantized: low is sensitive."),
    Column(key="sqnr", title="own, dB", cell=_figure("sqnr", figures.decibels),
           note="SQNR of this layer's result where its inputs are those of the float model."),
    Column(key="model_sqnr", title="so far, dB", cell=_figure("model_sqnr", figures.decibels),
           note="SQNR of this layer's result with everything before it quantized too."),
    Column(key="weights_share", title="weights' part", cell=_figure("weights_share", figures.share),
           note="How much of this layer's own error its weights make; the rest: its activations."),
    Column(key="saturated", title="beyond grid", cell=_figure("saturated", figures.share),
           note="Share of the input's values that lie beyond the ends of its grid."),
    Column(key="unused", title="unused grid", cell=_figure("unused", figures.share),
           note="Share of the input's grid that no value reaches.", shown=False),
    Column(key="spread", title="channels", cell=_figure("spread", figures.times), shown=False,
           note="The largest input channel beside the median one: one grid serves both."),
    Column(key="parity", title="deployed, dB", cell=_figure("parity", figures.decibels),
           note="SQNR of this layer's result in the deployed file beside the simulated model."),
    Column(key="seconds", title="ms", cell=_figure("seconds", figures.milliseconds),
           note="Time of this layer in the quantized model, a run."),
    Column(key="time_share", title="time", cell=_figure("time_share", figures.share),
           note="Its share of the time of all kernels."),
    Column(key="weight_bytes", title="weights", cell=_figure("weight_bytes", figures.size),
           note="What its weights take in the recipe's bits, with their scales.", shown=False),
)  # fmt: skip

_PLAN: Final = (
    Column(key="kind", title="kind", cell=_word("kind"), numeric=False, note="The operator."),
    Column(key="planned", title="plan", cell=_planned, numeric=False,
           note="Whether the plan puts the layer on a grid."),
)  # fmt: skip

_WHY: Final = Column(key="why", title="why", cell=_word("why", "dim"), numeric=False,
                     note="The plan's reason.")  # fmt: skip


def columns(rows: Sequence[Data]) -> list[Column]:
    """The columns that any row fills, in order; one for each target that runs the layers.

    Example:
        >>> row = {"kind": "conv", "quantized": True, "why": "", "sqnr": 30.0, "findings": 0,
        ...        "runs_in": {"onnxruntime": "int8"}}
        >>> [column.title for column in columns([row])]
        ['kind', 'plan', 'findings', 'onnxruntime', 'own, dB', 'why']
    """
    targets = list(dict.fromkeys(t for row in rows for t in row["runs_in"]))
    filled = [c for c in _FIGURES if any(row.get(c.key) is not None for row in rows)]
    count = Column(key="findings", title="findings", note="How many findings name this layer.",
                   cell=_count)  # fmt: skip
    return [*_PLAN, count, *(_runs_in(target) for target in targets), *filled, _WHY]


def _runs_in(target: str) -> Column:
    def cell(row: Data) -> Cell:
        found = row["runs_in"].get(target)
        other = found is not None and row["quantized"] and found.startswith(FLOATS)
        return Cell(text=found or figures.NONE, order=found or "", tone="bad" if other else "")

    return Column(
        key=f"in-{target}", title=target, numeric=False, cell=cell,
        note=f"What {target} runs the layer in; marked where that is float and the plan is not.",
    )  # fmt: skip


def _count(row: Data) -> Cell:
    found = row["findings"]
    return Cell(text=str(found or ""), order=str(found), tone="bad" if found else "")


def with_findings(rows: Sequence[Data], findings: Sequence[Data]) -> list[dict[str, Any]]:
    """The rows, each with how many findings name its layer."""
    named = [name for finding in findings for name in {finding["layer"], finding["where"]}]
    return [{**row, "findings": named.count(row["layer"])} for row in rows]
