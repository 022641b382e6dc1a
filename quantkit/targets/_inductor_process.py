"""Drives the child process in which Inductor compiles: its time limit, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quantkit.errors import MissingDependencyError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the child is to compile.

    Attributes:
        program: the prepared program, as ``torch.export.save`` writes it.
        package: where the package goes; its name ends in ``.pt2``.
        threads: that the code it makes is to use.
        metadata: texts to be kept in the package.
    """

    program: Path
    package: Path
    threads: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output of the compiled program beside that of PyTorch: sums of squares.

    Attributes:
        signal: of PyTorch's.
        noise: of the difference.
        sensitivity: of the difference that weights make which are moved a little.
    """

    signal: float
    noise: float
    sensitivity: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of it.

    Attributes:
        kernels: by the buffer of a weight's scales, the integer kernel that reads it.
        outputs: what it computes, beside the program.
        error: why it did not compile or run; empty where it did.
        seconds: how long it took.
    """

    kernels: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    error: str = ""
    seconds: float = 0.0


def require_compiler() -> None:
    """Tell before any work that there is no C++ compiler, without which Inductor makes nothing.

    Raises:
        MissingDependencyError: there is none.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX") or usual
    if shutil.which(name) is None:
        raise MissingDependencyError(
            f"Inductor compiles with a C++ compiler, and {name} is not there; install one "
            "(`apt install g++`), or name yours in the environment variable CXX"
        )


def compile_program(request: Request, *, timeout_s: float) -> Outcome:
    """Compile in a child process, which neither a crash nor a long wait outlives."""
    started = time.monotonic()
    told = request.package.with_name("outcome.json")
    words = {**asdict(request), "outcome": told}
    text = json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in words.items()})
    with tempfile.TemporaryFile() as errors:
        ended = _run(text, errors.fileno(), timeout_s)
        errors.seek(0)
        printed = errors.read().decode(errors="replace").strip().splitlines()
    seconds = time.monotonic() - started
    if ended or not told.is_file():
        last = f": {printed[-1][:200]}" if printed else ""
        return Outcome(error=f"the compiler ended with {ended}{last}", seconds=seconds)
    said = json.loads(told.read_text(encoding="utf-8"))
    if "error" in said:
        return Outcome(error=said["error"], seconds=seconds)
    outputs = tuple(Output(**output) for output in said["outputs"])
    return Outcome(kernels=said["kernels"], outputs=outputs, seconds=said["seconds"])


def _run(request: str, errors: int, timeout_s: float) -> str:
    """Run the child; how it ended, where not well."""
    # -P: the folder of the script holds modules of the SDKs' own names, which must not be found.
    command = [sys.executable, "-P", str(Path(__file__).with_name("_inductor_child.py"))]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, text=True,
        encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    try:
        child.communicate(request, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"the time limit of {timeout_s:g} s"
    finally:
        _end(child)
    code = child.returncode
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}" if code else ""


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and the compilers that it has started, whatever happens (Ctrl-C included)."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()
