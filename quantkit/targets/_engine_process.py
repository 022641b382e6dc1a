"""Drives the child process that builds an engine: progress, time limit, crashes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from quantkit.errors import MissingDependencyError
from quantkit.targets._engine_request import Request

if TYPE_CHECKING:
    from rich.progress import Progress

    from quantkit.tensorrt.remote import Answer

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
class Builder:
    """An SDK that builds engines in a child process.

    Attributes:
        module: its Python module.
        title: what it is called before the progress of a build.
        product: what it is called in errors.
        install: the command that installs it.
        device: the number of the CUDA device to build on; ``None`` where it builds without.
    """

    module: str
    title: str
    product: str
    install: str
    device: int | None = None

    def environment(self) -> dict[str, str]:
        """That of the child: it sees one device, and so builds on the one that is used here."""
        if self.device is None:
            return dict(os.environ)
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        visible = listed[self.device] if self.device < len(listed) and listed[0] else self.device
        return os.environ | {"CUDA_VISIBLE_DEVICES": str(visible)}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a build.

    Attributes:
        built: the engine was written; where none was asked for, the parser took the model.
        refusals: nodes that the parser refuses.
        errors: the builder's error messages, in order.
        layers: the list of kernels as the builder logs it.
        ended: how the child ended where it did not end well: its signal, exit code or ``timeout``.
        stderr: the last lines that the child printed.
        seconds: how long it took.
        information: the list of kernels as the engine's inspector tells it.
        version: of the SDK; empty where it did not start.
        notes: what else is worth knowing, by its code.
        failed: the error, by its class and words, that ended a calibrator's data in the child.
    """

    built: bool
    refusals: tuple[Refusal, ...]
    errors: tuple[str, ...]
    layers: str
    ended: str | None
    stderr: str
    seconds: float
    information: str = ""
    version: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, str] | None = None

    @classmethod
    def of(
        cls,
        events: Iterable[Mapping[str, Any]],
        *,
        ended: str | None = None,
        stderr: str = "",
        seconds: float = 0.0,
    ) -> Outcome:
        """From the events of ``_engine_build``; ``seconds`` where they do not tell."""
        kinds: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for event in events:
            kinds[event["event"]].append(event)
        names = ("node", "operator", "function", "why")
        refusals = [Refusal(**{n: str(e[n] or "") for n in names}) for e in kinds["refusal"]]
        return cls(
            built=bool(kinds["built"]),
            refusals=tuple(dict.fromkeys(refusals)),
            errors=tuple(str(event["text"]) for event in kinds["error"]),
            layers="\n".join(str(event["text"]) for event in kinds["layers"]),
            ended=ended,
            stderr="\n".join(stderr.strip().splitlines()[-3:]),
            seconds=next((float(event["seconds"]) for event in kinds["done"]), seconds),
            information=next((str(event["text"]) for event in kinds["information"]), ""),
            version=next((str(event["version"]) for event in kinds["started"]), ""),
            notes={str(event["code"]): str(event["why"]) for event in kinds["note"]},
            failed=next(((str(e["kind"]), str(e["why"])) for e in kinds["failed"]), None),
        )


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
def _child(
    builder: Builder, request: Request, errors: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """The running child, killed on the way out whatever happens (Ctrl-C included)."""
    # -P: the folder of the script holds modules of the SDKs' own names, which must not be found.
    program = Path(__file__).with_name("_engine_child.py")
    child = subprocess.Popen(
        [sys.executable, "-P", str(program), builder.module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=builder.environment(),
    )
    try:
        _write(child, request.json().encode() + b"\n")
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


def _write(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it has died: how is told by its exit code
        child.stdin.write(data)
        child.stdin.flush()


def _events(child: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any] | None]:
    """The child's events as they come; a last ``None`` if the deadline passes first."""
    lines: queue.Queue[bytes | None] = queue.Queue()

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


def _ending(child: subprocess.Popen[bytes]) -> str | None:
    code = child.wait()
    if code == 0:
        return None
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def run_builder(
    builder: Builder,
    request: Request,
    *,
    timeout_s: float,
    progress: bool,
    answer: Callable[[Mapping[str, Any]], Answer] | None = None,
) -> Outcome:
    """Build in a child process.

    Args:
        builder: the SDK.
        request: what to build.
        timeout_s: seconds after which the child is stopped.
        progress: show a progress bar, on a terminal.
        answer: answers what a calibrator asks for; what it raises ends the child.

    Raises:
        MissingDependencyError: the SDK is not installed, or cannot be loaded.
    """
    started = time.monotonic()
    bar = _Bar(builder.title, progress)
    events: list[dict[str, Any]] = []
    timed_out = False
    with tempfile.TemporaryFile() as errors, _child(builder, request, errors) as child:
        try:
            for event in _events(child, started + timeout_s):
                if event is None:
                    timed_out = True
                elif event["event"] in ("phase", "step"):
                    bar.update(event)
                elif event["event"] == "ask" and answer is not None:
                    _write(child, answer(event).bytes())
                elif event["event"] == "missing":
                    raise MissingDependencyError(
                        f"{builder.product} cannot be loaded ({event['why']}): install it with "
                        f"{builder.install}"
                    )
                else:
                    events.append(event)
        finally:
            bar.close()
        ended = "timeout" if timed_out else _ending(child)
        errors.seek(0)
        stderr = errors.read().decode(errors="replace")
    seconds = time.monotonic() - started
    return Outcome.of(events, ended=ended, stderr=stderr, seconds=seconds)
