"""Call ``torch.export``, and say in one line what it said in many."""

from __future__ import annotations

import inspect
import io
import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quantkit.errors import CaptureError

#: Loggers of torch with handlers of their own that speak of errors which are raised anyway.
#: What torch says where data are not of the shape or type that a layer takes.
_MISFIT = re.compile(
    r"dtype|scalar type|should be the same|channels|reduction dim|cannot be multiplied|"
    r"size mismatch|must match the size|expected input|normalized_shape|"
    r"Expected .*(dim|size|shape)"
)

_FIT = (
    "check the shape and dtype of the data against what the model takes, and convert the one or "
    "the other"
)

#: Products that torch.export traces with operands of two types, and that then fail when they run.
_ONE_TYPE = frozenset(
    {
        torch.ops.aten.linear.default,
        torch.ops.aten.matmul.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten.scaled_dot_product_attention.default,
    }
)

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
            program = torch.export.export(
                model, args, kwargs or None, dynamic_shapes=dynamic_shapes
            )
    except Exception as error:
        raise CaptureError(_explain(model, error, args, kwargs)) from error
    _require_one_type(program, model, args, kwargs)
    return program


def told_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Every example input with its type and shape, by the name that ``forward`` has for it.

    Example:
        >>> told_inputs(nn.Linear(3, 2), (torch.zeros(4, 3),), {})
        'input float32 (4, 3)'
    """
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"input {index}" for index in range(len(names), len(args))]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    told = [
        f"{name}{pytree.keystr(path)} {_form(leaf)}"
        for name, value in given.items()
        for path, leaf in pytree.tree_leaves_with_path(value)
    ]
    more = f" and {len(told) - 6} more" if len(told) > 6 else ""
    return (", ".join(told[:6]) or "no input") + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _form(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)[:30]
    return f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"


def _require_one_type(
    program: torch.export.ExportedProgram,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Tell of a product of two types here, before calibration fails at it."""
    for node in program.graph.nodes:
        if node.target not in _ONE_TYPE:
            continue
        types = [value.dtype for argument in node.all_input_nodes
                 if isinstance(value := argument.meta.get("val"), Tensor)
                 and value.dtype is not torch.bool]  # fmt: skip
        if len(set(types)) > 1:
            words = " and ".join(str(t).removeprefix("torch.") for t in dict.fromkeys(types))
            raise CaptureError(
                f"{type(model).__name__} cannot be captured with {told_inputs(model, args, kwargs)}"
                f": {node.target.overloadpacket.__name__} {node.name} would multiply {words}. "
                f"Way out: {_FIT}."
            )


def _explain(
    model: nn.Module, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """One line: which model, its inputs, what torch.export said, where, and the usual way out."""
    text = str(error)
    place = _place(error)
    reason = first_line(error).rstrip(" .:")
    parameters = inspect.signature(model.forward).parameters
    swallowed = [name for name in kwargs if name not in parameters]
    if "tree_name" in text and swallowed:
        way_out = (
            "torch.export needs named parameters: write them out in place of **, as "
            f"forward(self, {', '.join(swallowed)})"
        )
    elif re.search(r"[Dd]ata.dependent|Could not guard|GuardOnDataDependent", text):
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
    elif _MISFIT.search(text):
        way_out = _FIT
    else:
        way_out = "make torch.export.export(model, example_inputs) pass first"
    told = told_inputs(model, args, kwargs)
    name = type(model).__name__
    return f"{name} cannot be captured{place} with {told}: {reason}. Way out: {way_out}."


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
