"""A `tensorrt` of plain Python, for the flow of a build: the calls it makes, not what it computes.

Its builder calls a calibrator as NVIDIA's does: the cache first, then batches until there is none,
and an exception in a call is the end of the data. Its "engine" is the text of what it was given,
and a version has the names that NVIDIA's has. A child process gets one like it: see `install`.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import fake_tensorrt_runtime as runtime
import numpy as np
from fake_tensorrt_builder import (
    Builder,
    HostBuffers,
    IBuilderConfig,
    IInt8EntropyCalibrator2,
    IInt8MinMaxCalibrator,
    ILogger,
    IProgressMonitor,
    Logger,
    OnnxParser,
    open_buffers,
    read_back,
)

if TYPE_CHECKING:
    import pytest

__all__ = [
    "HostBuffers",
    "batches_of",
    "facts_of",
    "install",
    "module",
    "open_buffers",
    "read_back",
]


def module(version: str = "10.13.3.9", **behaviour: Any) -> ModuleType:
    """A module to stand in ``sys.modules`` as ``tensorrt``, with the names of that version.

    Args:
        version: such as that of NVIDIA's package.
        behaviour: attributes of the builder, such as ``broken``.
    """
    trt = ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    builder = type("Builder", (Builder,), {"version": version, **behaviour})
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")]
    major, minor = parts[0], parts[1]
    flags = {"EXPLICIT_BATCH": 0} if major < 11 else {}
    flags |= {"STRONGLY_TYPED": 1} if major > 8 else {}
    modern = (major, minor) >= (8, 6)
    kinds = {"INT8": 4} if major < 11 else {}
    kinds |= {"VERSION_COMPATIBLE": 7} if modern else {}
    config = type("IBuilderConfig", (IBuilderConfig,), {})
    members: list[Any] = [ILogger, Logger, OnnxParser, builder, config]
    if modern:
        config.builder_optimization_level = 3  # type: ignore[attr-defined]
        level = {"NONE": 0, "AMPERE_PLUS": 1}
        level |= {"SAME_COMPUTE_CAPABILITY": 2} if major > 9 else {}
        members.append(IntEnum("HardwareCompatibilityLevel", level))
    if major > 9:
        members.append(IProgressMonitor)
    members.append(IntEnum("NetworkDefinitionCreationFlag", flags))
    members.append(IntEnum("BuilderFlag", kinds))
    members.append(IntEnum("MemoryPoolType", {"WORKSPACE": 0, "TACTIC_DRAM": 1}))
    members.append(IntEnum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2}))
    members += [*runtime.MEMBERS, type("Runtime", (runtime.Runtime,), {"loaded": []})]
    if major < 11:
        members += [IInt8EntropyCalibrator2, IInt8MinMaxCalibrator]
    for member in members:
        setattr(trt, member.__name__, member)
    return trt


def install(
    patch: pytest.MonkeyPatch, folder: Path, version: str = "10.13.3.9", **behaviour: Any
) -> Any:
    """Put one in this process, and one like it where child processes find it."""
    folder.mkdir(exist_ok=True)
    behaviour_text = json.dumps({"version": version, **behaviour})
    (folder / "tensorrt.py").write_text(
        f"import json, sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        "import fake_tensorrt\nfrom quantkit.tensorrt import buffers\n"
        "buffers.open_buffers = fake_tensorrt.open_buffers\n"
        f"sys.modules[__name__] = fake_tensorrt.module(**json.loads({behaviour_text!r}))\n"
    )
    patch.setenv("PYTHONPATH", str(folder))
    patch.setattr("torch.cuda.is_available", lambda: False)
    trt = module(version, **behaviour)
    patch.setitem(sys.modules, "tensorrt", trt)
    return trt


def facts_of(engine: Path) -> dict[str, Any]:
    """What an engine's builder was given."""
    facts: dict[str, Any] = json.loads(engine.read_bytes().split(b"\n", 1)[1])
    return facts


def batches_of(engine: Path) -> list[dict[str, np.ndarray]]:
    """The batches, of float32, that an engine was calibrated with."""
    return [
        {
            name: np.frombuffer(bytes.fromhex(text), np.float32).reshape(shape)
            for name, (shape, text) in batch.items()
        }
        for batch in facts_of(engine)["batches"]
    ]
