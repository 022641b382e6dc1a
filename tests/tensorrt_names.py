"""What quantkit says to NVIDIA's bindings, said to them; prints what came of it as JSON."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import tensorrt

from quantkit.errors import TargetError
from quantkit.targets import _engine_build
from quantkit.tensorrt.sdk import load_sdk
from quantkit.tensorrt.settings import BuildOptions, Settings


def names(*classes: str) -> object:
    """The members of classes; ``None`` for one that is not there."""
    return {
        name: sorted(dir(getattr(tensorrt, name))) if hasattr(tensorrt, name) else None
        for name in classes
    }


def settings() -> object:
    """Every setting that a build can have here, and which of their names are not there."""
    sdk, absent, told = load_sdk(), [], {}
    options = BuildOptions(
        workspace=1 << 20,
        optimization_level=5,
        version_compatible=True,
        hardware_compatible="same_compute_capability",
    )
    calibrates = sdk.version[0] < 11
    for calibrated, quantized in product((False, True)[: 1 + calibrates], (False, True)):
        made = sdk.settings(options, calibrated=calibrated, quantized=quantized)
        made.network_bits(tensorrt)  # raises where a name is not there
        absent += [name for name in _named(made) if not _exists(name)]
        told[f"{calibrated} {quantized}"] = [made.network_flags, made.builder_flags]
    return {"absent": absent, "flags": told}


def _named(made: Settings) -> list[str]:
    listed = [f"BuilderFlag.{flag}" for flag in made.builder_flags]
    listed += [f"MemoryPoolType.{pool}" for pool in made.pools]
    listed += [f"IBuilderConfig.{name}" for name in (*made.numbers, *made.choices)]
    return listed + [f"{kind}.{member}" for kind, member in made.choices.values()]


def _exists(name: str) -> bool:
    kind, member = name.split(".")
    return hasattr(getattr(tensorrt, kind, None), member)


def listeners() -> object:
    """The events of our logger and monitor, which are called by the bindings' own classes."""
    events: list[dict[str, Any]] = []

    def send(event: str, **values: object) -> None:
        events.append({"event": event, **values})

    logger = _engine_build._logger(tensorrt, send)
    assert isinstance(logger, tensorrt.ILogger)
    logger.log(tensorrt.ILogger.ERROR, "it broke")
    logger.log(tensorrt.ILogger.VERBOSE, "Layers:\nName: a")
    logger.log(tensorrt.ILogger.INFO, "nothing")
    monitor = _engine_build._monitor(tensorrt, send)
    assert isinstance(monitor, tensorrt.IProgressMonitor)
    monitor.phase_start("tune", None, 3)
    assert monitor.step_complete("tune", 0)
    monitor.phase_finish("tune")
    return events


def build(folder: str) -> object:
    """What is said of a file with Q/DQ: the child process finds these bindings as well."""
    from quantkit.targets.tensorrt import TensorRT

    path = Path(folder) / "model.onnx"
    try:
        TensorRT().build(path, path.with_suffix(".engine"))
    except TargetError as refused:
        return str(refused)
    return ""


def calibrator() -> object:
    from quantkit.calibrators.tensorrt_entropy2 import TensorRTEntropy2

    try:
        return load_sdk().calibrator_base(TensorRTEntropy2()).__name__
    except TargetError as refused:
        return str(refused)


if __name__ == "__main__":
    _, scenario, *arguments = sys.argv
    print(json.dumps(globals()[scenario](*arguments)))
