"""Call ``torch.export``, and say in one line what it said in many."""

from __future__ import annotations

import io
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantkit.errors import CaptureError

#: Loggers of torch with handlers of their own that speak of errors which are raised anyway.
_NOISY = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")


def export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of a module, or one line that says why it cannot.

    Raises:
        CaptureError: names the model, the line and the way out.
    """
    try:
        with _quiet():
            return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _explain(model: nn.Module, error: Exception) -> str:
    """One line: which model, what torch.export said, where, and the usual way out."""
    text = str(error)
    place = _place(error)
    reason = first_line(error)
    if re.search(r"[Dd]ata.dependent|Could not guard|GuardOnDataDependent", text):
        way_out = (
            "a branch or size depends on tensor values: replace it by torch.where or torch.cond"
        )
    elif re.search(r"specialized|Constraints violated|dynamic dimension|marked.*dynamic", text):
        way_out = (
            "the model fixes a dimension that was to be dynamic: pass dynamic_shapes=None "
            "(--static on the command line), or remove what depends on its size"
        )
    elif "not a known type" in text:
        way_out = (
            "register the class with torch.export.register_dataclass, or return a tuple or a dict"
        )
    else:
        way_out = "make torch.export.export(model, example_inputs) pass first"
    return f"{type(model).__name__} cannot be captured{place}: {reason} Way out: {way_out}."


def _place(error: BaseException) -> str:
    """The last line of the model's own code before torch's."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    found: list[tuple[str, str, str]] = []
    cause: BaseException | None = error
    while cause is not None and not found:
        frames = traceback.extract_tb(cause.__traceback__)
        found = [(f.filename, str(f.lineno), f.name) for f in frames]
        found = [frame for frame in found if not frame[0].startswith(inside)]
        cause = cause.__cause__ or cause.__context__
    if not [frame for frame in found if frame[2] != "<module>"]:
        named = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', str(error))
        found = [frame for frame in named if not frame[0].startswith(inside)]
    return f" at {Path(found[-1][0]).name}:{found[-1][1]} in {found[-1][2]}" if found else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints the graph and logs a stack for an error that it raises as well."""
    loggers = [logging.getLogger(name) for name in ("torch", *_NOISY)]
    handlers = {handler: handler.level for logger in loggers for handler in logger.handlers}
    try:
        for handler in handlers:
            handler.setLevel(logging.CRITICAL + 1)
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler, level in handlers.items():
            handler.setLevel(level)
