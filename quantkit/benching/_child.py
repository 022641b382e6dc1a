"""The program of a worker: one runtime, one model, one batch size. ``process`` starts it.

JSON lines come on standard input and go out on standard output; see ``serving``. It is a process
of its own, so that its memory is that of the runtime and the model, and a crash costs one row.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path


def _find_quantkit() -> None:
    """Make the package that this file belongs to importable, and nothing else beside it.

    The folder of this file holds modules named as libraries are, so it may not enter ``sys.path``.
    """
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("quantkit", root / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["quantkit"] = package
    spec.loader.exec_module(package)


def main() -> None:
    """Answer until standard input ends."""
    # Ctrl-C reaches every process of a terminal: the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Builders run compilers, which they end where they are left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Libraries are free to print: keep the pipe for answers, send the rest to standard error.
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: str, **values: object) -> None:
        try:
            stream.write(json.dumps({"event": event, **values}) + "\n")
            stream.flush()
        except BrokenPipeError:  # the parent is gone: nobody waits for an answer
            os._exit(1)

    _find_quantkit()
    from quantkit.benching import serving

    serving.serve(sys.stdin, send)
    # Some runtimes hang or crash where they tidy up; all that was wanted has been sent.
    os._exit(0)


if __name__ == "__main__":
    main()
