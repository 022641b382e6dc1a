"""NVIDIA's own Python bindings of TensorRT, without TensorRT: over libraries that hold nothing.

The wheels `tensorrt-cu13-bindings` are real, and small; the libraries that they link to are empty
ones, made here, whose entry points return null. So names, base classes and calls from C++ can be
tested, and nothing can be built. A process has one version, so each is used in a child process.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
#: Where `make test` puts those of TensorRT 11: two versions cannot be in one environment.
ELEVEN = Path(sys.prefix) / "tensorrt-11"
TESTS = Path(__file__).resolve().parent

#: What the bindings look for in the libraries.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


def missing(major: int) -> str | None:
    """Why the bindings of TensorRT 10 or 11 cannot be loaded here; ``None`` where they can."""
    if COMPILER is None:
        return "needs a C compiler (cc, gcc or clang)"
    if major == 11:
        found = (ELEVEN / "tensorrt_bindings").is_dir()
        return None if found else f"needs tensorrt-cu13-bindings 11 in {ELEVEN}: run make test"
    try:
        here = version("tensorrt-cu13-bindings")
    except PackageNotFoundError:
        return "needs the wheel: pip install tensorrt-cu13-bindings==10.13.3.9"
    return None if here.startswith("10.") else f"needs bindings of TensorRT 10, here are {here}"


def make(folder: Path, major: int) -> None:
    """Make the libraries, and a module `tensorrt` that is found in `folder`."""
    assert COMPILER is not None
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in _libraries(major):
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run([COMPILER, *options, str(source)], check=True)
    (folder / "tensorrt.py").write_text(
        f"import sys\nsys.path.append({str(TESTS)!r})\nimport real_tensorrt\n"
        f"sys.modules[__name__] = real_tensorrt.load({str(folder)!r}, {major})\n"
    )


def load(folder: str, major: int) -> ModuleType:
    """The bindings, under the name that NVIDIA's package has."""
    for library in _libraries(major):
        ctypes.CDLL(str(Path(folder) / library), mode=ctypes.RTLD_GLOBAL)
    if major == 11:
        sys.path.insert(0, str(ELEVEN))
    bindings = importlib.import_module("tensorrt_bindings")
    # The builtin module inside calls itself `tensorrt_bindings.tensorrt`: nothing else to do.
    assert str(bindings.__version__).startswith(f"{major}.")
    return bindings


def run(folder: Path, program: str, scenario: str, *arguments: str) -> Any:
    """What a function of a program prints as JSON, in a process that finds the bindings."""
    paths = os.pathsep.join(map(str, (folder, TESTS.parent, TESTS)))
    done = subprocess.run(
        [sys.executable, "-P", str(TESTS / program), scenario, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _libraries(major: int) -> list[str]:
    return [f"lib{name}.so.{major}" for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin")]
