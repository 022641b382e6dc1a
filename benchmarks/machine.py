"""What the numbers were measured on, and the memory of a process."""

from __future__ import annotations

import os
import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quantkit.hardware import detect_cpu


def machine() -> dict[str, Any]:
    """Processor and packages."""
    cpu = detect_cpu()
    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt-rtx-cu13")
    return {
        "cpu": cpu.name,
        "vnni": cpu.has_vnni,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def peak_mb() -> float:
    """The most memory that this process has had resident, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux `getrusage` begins with what the process that started this one had.
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
