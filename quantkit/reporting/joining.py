"""What all sections say of each layer in one table, and what they find wrong in one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from quantkit.interfaces import Finding
from quantkit.reporting.section import Data

_ORDER: Final = {"error": 0, "warning": 1, "info": 2}


def joined_layers(sections: Mapping[str, Data]) -> list[dict[str, Any]]:
    """One row a layer of the plan, in graph order, with what each section tells of it.

    A figure is ``None`` where no section tells it.

    Args:
        sections: the data of those that were made, by name.

    Example:
        >>> decision = {"layer": "fc", "kind": "linear", "quantized": True, "why": ""}
        >>> plan = {"decisions": [decision], "tensors": []}
        >>> [(row["layer"], row["sqnr"]) for row in joined_layers({"plan": plan})]
        [('fc', None)]
    """
    facts: dict[str, Mapping[str, Any]] = {
        "runs_in": _runs_in(sections.get("coverage")),
        "sensitivity": _sensitivities(sections.get("sensitivity")),
        "diagnosis": _by_layer(sections.get("diagnosis"), "layers", "layer"),
        "parity": _by_layer(sections.get("layer_parity"), "tensors", "tensor"),
        "time": _times(sections.get("profile")),
    }
    return [_row(decision, facts) for decision in sections["plan"]["decisions"]]


def _row(decision: Data, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    name = decision["layer"]
    own = facts["diagnosis"].get(name, {})
    parity = facts["parity"].get(name, {})
    price = facts["sensitivity"].get(name, {})
    time = facts["time"].get(name, {})
    return {
        "layer": name,
        "kind": decision["kind"],
        "quantized": decision["quantized"],
        "why": decision["why"],
        "runs_in": facts["runs_in"].get(name, {}),
        "sensitivity": price.get("sqnr"),
        "weight_bytes": price.get("weight_bytes"),
        "sqnr": own.get("sqnr"),
        "model_sqnr": own.get("model_sqnr"),
        "weights_share": own.get("weights_share"),
        "saturated": own.get("saturated"),
        "unused": own.get("unused"),
        "spread": own.get("spread"),
        "parity": (parity.get("deployed") or {}).get("sqnr"),
        "seconds": time.get("seconds"),
        "time_share": time.get("share"),
    }


def _runs_in(coverage: Data | None) -> dict[str, dict[str, str]]:
    """Of each layer what each target runs it in."""
    found: dict[str, dict[str, str]] = {}
    for target in (coverage or {}).get("targets", ()):
        for layer in target["layers"]:
            found.setdefault(layer["layer"], {})[target["target"]] = layer["precision"]
    return found


def _sensitivities(data: Data | None) -> dict[str, Data]:
    """What each layer costs alone; layers that were quantized together share the figure."""
    parts = (data or {}).get("parts", ())
    return {layer: part for part in parts for layer in part["layers"]}


def _by_layer(data: Data | None, key: str, name: str) -> dict[str, Data]:
    items = (data or {}).get(key, ())
    return {item[name]: item for item in items if item.get("kind") != "activation"}


def _times(data: Data | None) -> dict[str, Data]:
    """Of the quantized model, which is the last that was profiled."""
    runs = (data or {}).get("runs", ())
    return {layer["name"]: layer for layer in runs[-1]["layers"]} if runs else {}


def joined_findings(
    sections: Mapping[str, Data], others: Mapping[str, Iterable[Finding]]
) -> list[dict[str, Any]]:
    """What all sections find, the worst first; what several find is told once.

    Args:
        sections: the data of those that were made, by name.
        others: findings that stand in no section's data, by where they come from.

    Returns:
        The fields of a `Finding`, with ``layer`` where it is of one and ``sources``: who found it.

    Example:
        >>> finding = Finding(severity="info", code="a", where="fc", why="It is.", fix="Do.")
        >>> joined_findings({}, {"one": [finding], "two": [finding]})[0]["sources"]
        ['one', 'two']
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for source, finding in _told(sections, others):
        key = tuple(str(finding[k]) for k in ("severity", "code", "where", "why"))
        kept = found.setdefault(key, {**finding, "sources": []})
        if source not in kept["sources"]:
            kept["sources"].append(source)
    return sorted(found.values(), key=lambda f: _ORDER[f["severity"]])


def _told(
    sections: Mapping[str, Data], others: Mapping[str, Iterable[Finding]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for source, findings in others.items():
        yield from ((source, _plain(asdict(finding))) for finding in findings)
    for finding in sections.get("layer_parity", {}).get("findings", ()):
        yield "layer parity", _plain(finding)
    for target in sections.get("coverage", {}).get("targets", ()):
        yield from ((target["target"], _plain(finding)) for finding in target["findings"])
    for finding in sections.get("advice", {}).get("findings", ()):
        yield "advice", _plain(finding)
    for run in sections.get("profile", {}).get("runs", ()):
        yield from (("profile", _plain(finding)) for finding in run["findings"])


def _plain(finding: Mapping[str, Any]) -> dict[str, Any]:
    where = finding["where"]
    return {"layer": where, **finding, "severity": str(finding["severity"])}
