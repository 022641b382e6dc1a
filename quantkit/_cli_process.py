"""The process that a command runs in: its signals, what it prints, and whether it is one of many.

``torchrun`` starts several processes with one command line. Those commands that can share work
join the group; every other command runs on the process that leads, and is nothing on the rest.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from quantkit.errors import GroupError, is_agreed


def in_group() -> bool:
    """Whether this is one of several processes, as ``torchrun`` starts them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def leads() -> bool:
    """Whether this process prints and writes."""
    return not in_group() or os.environ["RANK"] == "0"


def tells(error: BaseException) -> bool:
    """Whether this process is the one of its group that tells an error."""
    if isinstance(error, GroupError) and error.told:
        return False
    return leads() or is_agreed(error)


@contextmanager
def together() -> Iterator[None]:
    """The processes of a group share the work of the block; where one fails all do."""
    if not in_group():
        yield
        return
    from quantkit import distributed

    with distributed.group(), distributed.together():
        yield


class _Ender:
    """Ends a run by a signal, and remembers it: what is being imported may swallow the exception.

    Attributes:
        came: the exit codes of the signals that came, 128 more than their numbers.
    """

    def __init__(self) -> None:
        self.came: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        """As Python's own handler, so that files are left as they were."""
        self.came.append(128 + number)
        raise KeyboardInterrupt


@contextmanager
def process() -> Iterator[list[int]]:
    """The state of the process while a command runs: what others print, and how it is ended.

    Yields the exit codes of the signals that came.
    """
    ender = _Ender()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # What libraries log is not for users; TORCH_LOGS and python -W bring it back.
    if "TORCH_LOGS" not in os.environ:
        logging.disable(logging.ERROR)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        # Ended by kill, Python would leave at once, and temporary files would stay.
        handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, ender)
        # Where Ctrl-C is ignored (nohup, a job in the background) it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = signal.signal(signal.SIGINT, ender)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield ender.came
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
