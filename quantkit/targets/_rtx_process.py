"""Drives the child process that builds a TensorRT-RTX engine: progress, time limit, crashes."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from quantkit.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.progress import Progress

INSTALL = 'pip install "quantkit[rtx]"'

#: Builds shorter than this show no progress bar.
QUIET_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What the parser said of one node (``node`` is empty where it names none)."""

    node: str
    operator: str
    function: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the child is to build.

    Attributes:
        model: the ONNX file.
        proto: the same model with every node named, where ``model`` has nameless nodes.
        capability: such as ``SM86``.
        shapes: smallest, best and largest shape of dynamic inputs.
        engine: where the child writes the engine.
    """

    model: Path
    proto: Path | None
    capability: str
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    engine: Path

    def json(self) -> str:
        """The request as the child reads it."""
        return json.dumps(
            {
                "model": str(self.model.resolve()),
                "proto": None if self.proto is None else str(self.proto),
                "capability": self.capability,
                "shapes": dict(self.shapes),
                "engine": str(self.engine),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a build.

    Attributes:
        built: the engine was written.
        refusals: nodes that the parser refuses.
        errors: the builder's error messages, in order.
        layers: the builder's list of kernels, as text.
        ended: how the child ended where it did not end well: its signal, exit code or ``timeout``.
        stderr: the last lines that the child printed.
        seconds: how long it took.
    """

    built: bool
    refusals: tuple[Refusal, ...]
    errors: tuple[str, ...]
    layers: str
    ended: str | None
    stderr: str
    seconds: float


class _Bar:
    """A progress bar on standard error, shown once a build is slow and a person is watching."""

    def __init__(self, title: str, wanted: bool) -> None:
        self._title = title
        self._wanted = wanted and sys.stderr.isatty()
        self._started = time.monotonic()
        self._progress: Progress | None = None

    def update(self, event: Mapping[str, Any]) -> None:
        if not self._wanted or time.monotonic() - self._started < QUIET_SECONDS:
            return
        if self._progress is None:
            self._progress = self._open()
        task = self._progress.tasks[0].id
        name = f"{self._title}: {event['name']}"
        if event["event"] == "phase":
            self._progress.reset(task, total=event["steps"], description=name, start=True)
        else:
            self._progress.update(task, completed=event["step"] + 1, description=name)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _open(self) -> Progress:
        from rich.console import Console
        from rich.progress import Progress

        progress = Progress(console=Console(stderr=True), transient=True)
        progress.add_task(self._title, total=None)
        progress.start()
        return progress


@contextmanager
def _child(request: Request, errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The running child, killed on the way out whatever happens (Ctrl-C included)."""
    # -P: the folder of the script holds a module of the SDK's own name, which must not be found.
    command = [sys.executable, "-P", str(Path(__file__).with_name("_rtx_build.py"))]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
    )
    try:
        assert child.stdin is not None
        try:
            child.stdin.write(request.json())
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died at its start: how is told by its exit code
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _events(child: subprocess.Popen[str], deadline: float) -> Iterator[dict[str, Any] | None]:
    """The child's events as they come; a last ``None`` if the deadline passes first."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                lines.put(line)
        except ValueError:
            pass  # closed because the parent gave up
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            child.kill()
            reader.join()
            yield None
            return
        if line is None:
            reader.join()
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return  # cut off in the middle of a line by a crash


def _ending(child: subprocess.Popen[str]) -> str | None:
    code = child.wait()
    if code == 0:
        return None
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def run_builder(request: Request, *, timeout_s: float, progress: bool) -> Outcome:
    """Build in a child process.

    Raises:
        MissingDependencyError: TensorRT-RTX is not installed, or cannot be loaded.
    """
    started = time.monotonic()
    bar = _Bar(f"TensorRT-RTX {request.capability}", progress)
    events: list[dict[str, Any]] = []
    timed_out = False
    with tempfile.TemporaryFile() as errors, _child(request, errors) as child:
        try:
            for event in _events(child, started + timeout_s):
                if event is None:
                    timed_out = True
                elif event["event"] in ("phase", "step"):
                    bar.update(event)
                else:
                    events.append(event)
        finally:
            bar.close()
        ended = "timeout" if timed_out else _ending(child)
        errors.seek(0)
        stderr = errors.read().decode(errors="replace")
    return _outcome(events, ended, stderr, time.monotonic() - started)


def _outcome(
    events: list[dict[str, Any]], ended: str | None, stderr: str, seconds: float
) -> Outcome:
    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    for event in of("missing"):
        raise MissingDependencyError(
            f"TensorRT-RTX cannot be loaded ({event['why']}): install it with {INSTALL}"
        )
    names = ("node", "operator", "function", "why")
    refusals = dict.fromkeys(
        Refusal(**{name: str(event[name] or "") for name in names}) for event in of("refusal")
    )
    done = of("done")
    return Outcome(
        built=bool(done) and bool(done[0]["built"]) and ended is None,
        refusals=tuple(refusals),
        errors=tuple(str(event["text"]) for event in of("error")),
        layers="\n".join(str(event["text"]) for event in of("layers")),
        ended=ended,
        stderr="\n".join(stderr.strip().splitlines()[-3:]),
        seconds=float(done[0]["seconds"]) if done else seconds,
    )
