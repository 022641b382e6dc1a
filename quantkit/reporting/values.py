"""A report as a value: its sections, what they say of each layer, and its two files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantkit.files import replacing
from quantkit.reporting.section import Data, Section, State

#: Of the JSON; another number where a key gets another meaning or goes.
SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was done to a model, what came of it, and what to change.

    Attributes:
        model: what it is called.
        recipe: the name of the recipe.
        created: when, in UTC, to the minute.
        calibrated: how many samples it was calibrated with; 0 where nothing needed any.
        seconds: what making the report took.
        summary: the figures that count most; ``None`` for those that no section tells.
        findings: what is wrong or slow, the worst first.
        layers: of each layer what all sections tell of it.
        sections: all of them, also those that were not made.

    Example:
        >>> data = {"decisions": [], "tensors": [], "quantized": 0, "layers": 0,
        ...         "unused_overrides": [], "recipe": "mine"}
        >>> plan = Section(name="plan", state=State.MADE, data=data)
        >>> found = Report(model="net", recipe="mine", created="", calibrated=0, seconds=1.0,
        ...                summary={}, findings=(), layers=(), sections=(plan,))
        >>> json.loads(found.to_json())["schema"]
        1
    """

    model: str
    recipe: str
    created: str
    calibrated: int
    seconds: float
    summary: Data
    findings: Sequence[Data]
    layers: Sequence[Data]
    sections: tuple[Section, ...]

    def section(self, name: str) -> Section | None:
        """The section of this name; ``None`` where there is none."""
        return next((section for section in self.sections if section.name == name), None)

    @property
    def failed(self) -> tuple[Section, ...]:
        """The sections that went wrong."""
        return tuple(s for s in self.sections if s.state is State.FAILED)

    def to_data(self) -> dict[str, Any]:
        """All of it; ``None`` where a number is not finite (no noise at all, or NaN)."""
        import quantkit

        sections = {
            s.name: {"title": s.title, "state": str(s.state), "why": s.why, "seconds": s.seconds,
                     "data": s.data}
            for s in self.sections
        }  # fmt: skip
        told: dict[str, Any] = _finite(
            {"schema": SCHEMA, "quantkit": quantkit.__version__, "model": self.model,
             "recipe": self.recipe, "created": self.created, "calibrated": self.calibrated,
             "seconds": self.seconds,
             "summary": self.summary, "findings": self.findings, "layers": self.layers,
             "sections": sections}
        )  # fmt: skip
        return told

    def to_json(self) -> str:
        """All that stands on the page, for machines."""
        return json.dumps(self.to_data(), allow_nan=False) + "\n"

    def to_html(self) -> str:
        """One page that needs nothing else: no network, no other file."""
        from quantkit.reporting.page import page

        return page(self)

    def save(self, path: Path) -> None:
        """Write the page, whole or not at all; JSON where the name ends in ``.json``.

        Raises:
            ExportError: it cannot be written.
        """
        text = self.to_json() if path.suffix == ".json" else self.to_html()
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def summary(sections: Mapping[str, Data], findings: Sequence[Data]) -> dict[str, Any]:
    """The figures that count most, from the sections that were made.

    Example:
        >>> summary({"plan": {"quantized": 3, "layers": 4}}, [])["quantized"]
        3
    """
    plan, outputs = sections.get("plan", {}), sections.get("outputs", {})
    deployed = _worst(outputs, "float")
    rows = {row["model"]: row["value"] for row in sections.get("accuracy", {}).get("rows", ())}
    return {
        "quantized": plan.get("quantized"),
        "layers": plan.get("layers"),
        "float_bytes": outputs.get("float_bytes"),
        "file_bytes": outputs.get("file_bytes"),
        "sqnr": deployed.get("sqnr"),
        "agreement": deployed.get("agreement"),
        "simulation_sqnr": _worst(outputs, "simulated").get("sqnr"),
        "samples": outputs.get("samples"),
        "metric": sections.get("accuracy", {}).get("metric"),
        "metric_unit": sections.get("accuracy", {}).get("unit"),
        "float_metric": rows.get("float"),
        "deployed_metric": rows.get("deployed"),
        "speed_ups": _speed_ups(sections.get("latency", {})),
        "coverage": [
            {"target": t["target"], "label": t["label"], "planned": t.get("planned"),
             "covered": t.get("covered")}
            for t in sections.get("coverage", {}).get("targets", ())
        ],
        "findings": {
            severity: sum(f["severity"] == severity for f in findings)
            for severity in ("error", "warning", "info")
        },
    }  # fmt: skip


def _worst(outputs: Data, beside: str) -> Data:
    """The output of the deployed file that is furthest from the model beside it."""
    rows = [
        row
        for row in outputs.get("rows", ())
        if row["model"] == "deployed" and row["beside"] == beside
    ]
    # NaN is worse than any number.
    return min(rows, key=lambda r: -math.inf if math.isnan(r["sqnr"]) else r["sqnr"], default={})


def _speed_ups(latency: Data) -> list[dict[str, Any]]:
    return [
        {"target": row["target"], "device": row["device"], "batch": row["batch"],
         "ratio": row["ratio"]}
        for row in latency.get("rows", ())
        if row["ratio"] is not None and not row["reference"]
    ]  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
