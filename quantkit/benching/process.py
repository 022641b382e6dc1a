"""A worker as the process that compares sees it: asks, answers, time limits and crashes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from quantkit.benching.serving import Order

_CHILD: Final = Path(__file__).with_name("_child.py")
#: Threads of the libraries below PyTorch.
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Seconds to end by itself, and then to end what it has started.
_PATIENCE_S: Final = 2.0


class RowError(Exception):
    """One row has no result; the message says why, on one line."""


class Worker:
    """A process that runs one model in one runtime, and waits where it is not asked.

    It is started at once; ``ready`` waits until its runtime is imported.

    Args:
        order: what it is for.

    Example:
        >>> order = Order(runner="no_such", device="cpu", file=Path("a.onnx"), inputs=Path("a"),
        ...               folder=Path("."), threads=1, half=False, warm_runs=1, warm_ms=0.0)
        >>> with Worker(order) as worker:
        ...     worker.ready(60.0)
        Traceback (most recent call last):
        quantkit.benching.process.RowError: no runner 'no_such'; there are: eager, ...
    """

    def __init__(self, order: Order) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._child = subprocess.Popen(
            # -P: the folder of the script holds modules that are named as libraries.
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **_environment(order)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._write(order.json())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ready(self, timeout_s: float) -> None:
        """Wait until the runtime is imported.

        Raises:
            RowError: it is not there, or not in time.
        """
        self._answer("ready", timeout_s, "start")

    def ask(self, do: str, wanted: str, timeout_s: float, **values: object) -> dict[str, Any]:
        """Have it do something, and return its answer.

        Raises:
            RowError: it failed, crashed, or did not answer in time; it is ended then.
        """
        self._write(json.dumps({"do": do, **values}))
        return self._answer(wanted, timeout_s, do)

    def close(self) -> None:
        """End it: idle, it ends by itself; busy, it is asked to end what it has started."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it was told and never read
            self._child.stdin.close()
        for harder in (self._child.terminate, self._child.kill):
            try:
                self._child.wait(timeout=_PATIENCE_S)
            except subprocess.TimeoutExpired:
                harder()
        self._child.wait()
        self._reader.join()
        for stream in (self._child.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _write(self, line: str) -> None:
        assert self._child.stdin is not None
        # Where it died, how is told when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self, wanted: str, timeout_s: float, what: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        try:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._child.terminate()
            raise RowError(
                f"no answer to `{what}` in {timeout_s:g} s: stopped; allow more by --timeout, or "
                "by timeout_s"
            ) from None
        if line is None:
            raise RowError(self._ending())
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # cut off by a crash
            raise RowError(self._ending()) from None
        if answer["event"] == "failed":
            raise RowError(str(answer["why"]))
        if answer["event"] != wanted:
            raise RowError(f"the worker answered {answer['event']} to `{what}`")
        return answer

    def _ending(self) -> str:
        """How it ended, and the last that it said."""
        code = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += " (as where memory runs out)"
        said = f": {' '.join(lines[-1].split())[:300]}" if lines else ""
        return f"its process ended with {how}{said}"


def _environment(order: Order) -> dict[str, str]:
    """What libraries read where they are loaded, and where records of engines go."""
    threads = dict.fromkeys(_THREADS, str(order.threads))
    return {**threads, "QUANTKIT_STATE": str(order.folder)}
