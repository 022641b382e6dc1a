"""The API reference: every public name of quantkit, by area, from where it lives."""

from __future__ import annotations

import quantkit

#: The areas, each a page of ``docs/api/``, and the modules whose names it has.
AREAS: dict[str, tuple[str, ...]] = {
    "quantizing": ("workflow", "workflow_onnx", "model_calibration", "calibrating", "recipe",
                   "data", "model", "onnx.quantized", "recovering", "torch_ao"),
    "training": ("qat", "settling", "stubs", "training_choice"),
    "deploying": ("onnx", "program", "building", "checking", "comparing", "inspecting",
                  "migrating", "tensorrt", "benching"),
    "values": ("spec", "numerics", "observer", "fake_quantize", "graph"),
    "plugins": ("interfaces",),
    "errors": ("errors",),
}  # fmt: skip
#: Where a name goes that no other area has.
REST = "analysis"


def area(home: str) -> str:
    """The area of a module: that which names most of its path.

    Example:
        >>> area("onnx.quantized"), area("onnx.export"), area("analysis.mixed")
        ('quantizing', 'deploying', 'analysis')
    """
    found = [
        (len(module), name)
        for name, modules in AREAS.items()
        for module in modules
        if home == module or home.startswith(f"{module}.")
    ]
    return max(found)[1] if found else REST


def names(wanted: str) -> list[str]:
    """The public names of an area: functions first, then classes."""
    homes = quantkit._HOMES  # what the package itself imports them by
    found = [name for name, home in homes.items() if area(home) == wanted]
    return sorted(found, key=lambda name: (name[0].isupper(), name))


def blocks(wanted: str) -> str:
    """What mkdocstrings makes the page of an area from."""
    homes = quantkit._HOMES
    return "\n\n".join(f"::: quantkit.{homes[name]}.{name}" for name in names(wanted))
