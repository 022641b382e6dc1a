"""The page: what the template is given, and how it is filled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from quantkit import __version__
from quantkit.reporting import drawing, figures
from quantkit.reporting.layer_table import FLOATS, columns, with_findings
from quantkit.reporting.section import Data
from quantkit.reporting.values import Report

#: Where what a page is made of stands.
_FOLDER: Final = "templates"
_FILTERS: Final = ("decibels", "share", "number", "size", "milliseconds", "seconds", "times",
                   "order", "plural", "sentence")  # fmt: skip

#: Behind these a name may be broken; what is escaped holds none of them.
_BREAKS: Final = re.compile(r"([./_]+)(?=.)")


def page(report: Report) -> str:
    """The report as one HTML file: style, script and pictures stand in it.

    Everything that a model's author chose, such as names of layers, is escaped.
    """
    made = {s.name: s for s in report.sections}
    data = {name: s.data for name, s in made.items() if s.data is not None}
    rows = with_findings(report.layers, report.findings)
    return _environment().get_template("page.html.jinja").render(
        report=report,
        version=__version__,
        sections=made,
        data=data,
        rows=rows,
        columns=columns(rows),
        pictures=_pictures(data.get("histograms")),
        build_up=_build_up(data.get("diagnosis")),
        departures=_departures(data.get("layer_parity")),
        drawing=drawing,
        style=Markup(_text("page.css")),
        script=Markup(_text("page.js")),
    ) + "\n"  # fmt: skip


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {name: getattr(figures, name) for name in _FILTERS}
    made.filters |= {
        f.__name__: f for f in (of_total, of_slowest, by_rule, not_covered, marked, breakable)
    }
    return made


def _text(name: str) -> str:
    return (files("quantkit.reporting") / _FOLDER / name).read_text(encoding="utf-8")


def marked(text: str) -> Markup:
    """A text whose parts in backticks are set as code; everything in it is escaped.

    Example:
        >>> marked("see `a < b`")
        Markup('see <code>a &lt; b</code>')
    """
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # one backtick has no other
        return escape(text)
    return Markup().join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def breakable(name: str) -> Markup:
    """A name that a narrow column may break behind dots, strokes and underscores.

    Example:
        >>> breakable("blocks.0/conv")
        Markup('blocks.<wbr>0/<wbr>conv')
    """
    return Markup(_BREAKS.sub(r"\1<wbr>", str(escape(name))))


def of_total(items: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Each item's share of the sum of all; zeros where there is none.

    Example:
        >>> of_total([{"noise": 3.0}, {"noise": 1.0}, {"noise": None}], "noise")
        [0.75, 0.25, 0.0]
    """
    values = [item[key] or 0.0 for item in items]
    total = sum(values)
    if not 0.0 < total < float("inf"):
        return [0.0] * len(values)
    return [value / total for value in values]


def of_slowest(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float:
    """The median time of a row beside the longest of its batch size and device.

    Example:
        >>> rows = [{"device": "cpu", "batch": 1, "median_ms": t} for t in (2.0, 8.0, None)]
        >>> of_slowest(rows[0], rows)
        0.25
    """
    alike = [r for r in rows if (r["device"], r["batch"]) == (row["device"], row["batch"])]
    slowest = max((r["median_ms"] or 0.0 for r in alike), default=0.0)
    return (row["median_ms"] or 0.0) / slowest if slowest else 0.0


def by_rule(findings: Sequence[Data]) -> list[list[Data]]:
    """Findings of one severity and rule together, in the order in which the first of each comes.

    Example:
        >>> found = [{"severity": "info", "code": code} for code in "aba"]
        >>> [len(group) for group in by_rule(found)]
        [2, 1]
    """
    groups: dict[tuple[str, str], list[Data]] = {}
    for finding in findings:
        groups.setdefault((finding["severity"], finding["code"]), []).append(finding)
    return list(groups.values())


def not_covered(layers: Sequence[Data]) -> list[dict[str, Any]]:
    """Layers that the file quantizes and the target runs in float: how many, and why.

    Example:
        >>> layer = {"quantized": True, "precision": "float32", "op_type": "Conv", "reason": "x"}
        >>> not_covered([layer, layer])[0]["count"]
        2
    """
    groups: dict[tuple[str, str, str], int] = {}
    for layer in layers:
        if layer["quantized"] and layer["precision"].startswith(FLOATS):
            key = (layer["op_type"], layer["precision"], layer["reason"])
            groups[key] = groups.get(key, 0) + 1
    return [
        {"op_type": op, "precision": precision, "reason": reason, "count": count}
        for (op, precision, reason), count in groups.items()
    ]


def _pictures(histograms: Data | None) -> list[tuple[Data, drawing.Picture, list[drawing.Mark]]]:
    """Of each activation its histogram, and where other calibrators would end the grid."""
    found = []
    for tensor in (histograms or {}).get("tensors", ()):
        drawn = drawing.histogram(
            tensor["edges"], tensor["counts"], tensor["grid_low"], tensor["grid_high"]
        )
        width = drawn.right - drawn.left or 1.0
        marks = [
            drawing.Mark(
                at=round((end - drawn.left) / width * drawing.WIDTH, 1),
                text=f"{choice['calibrator']}: {figures.number(end)}",
            )
            for choice in tensor["calibrators"]
            for end in (choice["low"], choice["high"])
            if drawn.left < end < drawn.right
        ]
        found.append((tensor, drawn, marks))
    return found


def _build_up(diagnosis: Data | None) -> drawing.Chart | None:
    """How the error builds up over the layers."""
    layers = (diagnosis or {}).get("layers", ())
    return drawing.chart(
        [layer["layer"] for layer in layers],
        [("by itself", [layer["sqnr"] for layer in layers]),
         ("with all before it quantized", [layer["model_sqnr"] for layer in layers])],
        "dB",
    )  # fmt: skip


def _departures(parity: Data | None) -> drawing.Chart | None:
    """How far simulation is from float, and deployment from simulation."""
    tensors = (parity or {}).get("tensors", ())

    def of(key: str) -> list[float | None]:
        return [None if t[key] is None else t[key]["sqnr"] for t in tensors]

    return drawing.chart(
        [tensor["tensor"] for tensor in tensors],
        [
            ("simulated beside float", of("simulated")),
            ("deployed beside simulated", of("deployed")),
        ],
        "dB",
    )
