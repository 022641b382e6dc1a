"""The program that builds engines in a process of its own: ``_engine_process`` starts it.

Some networks end the builder with a signal instead of an error, so it does not run in the process
of the user. One JSON request comes on standard input, and JSON lines go out on standard output,
each with an ``event``: those of ``_engine_build``; ``missing``, where there is no such SDK; and
``ask``, what a calibrator needs of the data, whose answer comes on standard input.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from quantkit.tensorrt.remote import Answer


class Pipe:
    """Writes events; the builder calls it from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, **values: object) -> None:
        """Write one event."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **values}) + "\n")
                self._stream.flush()
            except BrokenPipeError:  # the parent is gone: nobody wants the engine
                os._exit(1)


def _find_quantkit() -> None:
    """Make the package that this file belongs to importable, and nothing else beside it.

    The folder of this file holds modules named as the SDKs are, and the folder of the package may
    hold any; so neither enters ``sys.path``.
    """
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("quantkit", root / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["quantkit"] = package
    spec.loader.exec_module(package)


def main() -> None:
    """Read the request, build, report."""
    # The SDK is free to print: keep the pipe for events, send everything else to standard error.
    send = Pipe(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    sdk, text = sys.argv[1], sys.stdin.buffer.readline().decode()
    _find_quantkit()
    from quantkit.targets import _engine_build, _engine_request

    try:
        trt = importlib.import_module(sdk)
    except (ImportError, OSError) as error:
        send("missing", why=str(error))
        return

    def ask(what: str, **values: object) -> Answer:
        from quantkit.tensorrt.remote import Answer

        send("ask", what=what, **values)
        return Answer.read(sys.stdin.buffer)

    _engine_build.build(trt, _engine_request.Request.of(text), send, ask)


if __name__ == "__main__":
    main()
