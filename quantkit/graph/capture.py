"""Capture a model once, as one graph of ATen operators (``torch.export``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from quantkit.errors import CaptureError, ModelFileError

DynamicShapes: TypeAlias = Literal["batch"] | None | Mapping[str, Any] | Sequence[Any]

_TRAINING_ARGUMENT = {
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.feature_dropout_.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.batch_norm.default: 5,
}


@dataclass(frozen=True)
class Capture:
    """A captured model, with what is needed to capture it again at export.

    Attributes:
        module: the float graph; parameters keep the names they had in the model.
        args, kwargs: example inputs.
        dynamic_shapes: for ``torch.export.export``.
        input_names: one name per tensor input, in the order of the flattened inputs.
        dynamic_dims: the dimensions whose size may differ from the examples'.
    """

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    input_names: tuple[str, ...]
    dynamic_dims: frozenset[int]


def capture(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: DynamicShapes = "batch",
) -> Capture:
    """The graph of ``model`` for inputs like ``args`` and ``kwargs``.

    Args:
        model: a module in the mode (train or eval) it is to be captured in, or a program that
            ``torch.export`` made.
        args: example positional inputs; a tuple.
        kwargs: example keyword inputs.
        dynamic_shapes: ``"batch"``: the first dimension of every input may vary; ``None``: every
            shape is fixed; else what ``torch.export.export`` takes.

    Raises:
        CaptureError: the model does not export; the message names the operator or line.
    """
    if not isinstance(args, tuple):
        raise CaptureError(
            f"example inputs must be a tuple, got {type(args).__name__}; write (x,) for one input"
        )
    keywords = dict(kwargs or {})
    if isinstance(model, torch.export.ExportedProgram):
        return _from_program(model)
    if dynamic_shapes == "batch":
        args, keywords = pytree.tree_map_only(Tensor, _at_least_two, (args, keywords))
        shapes: Any = pytree.tree_map(_first_dimension, (args, keywords))
        shapes = _for_export(shapes, model, args)
    else:
        shapes = dynamic_shapes
    program = _export(model, args, keywords, shapes)
    return _finish(program, args, keywords, shapes)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """A program saved by ``torch.export.save`` (``.pt2``).

    Raises:
        ModelFileError: the file is not such a program.
    """
    try:
        return torch.export.load(path)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; give a .pt2 file") from error
    except Exception as error:
        raise ModelFileError(
            f"{path}: not a program that torch {torch.__version__} can read "
            f"({_first_line(error)}); save it with torch.export.save of the same torch"
        ) from error


def set_training(module: fx.GraphModule, training: bool) -> None:
    """Switch dropout and batch-norm of a captured graph between training and evaluation."""
    changed = False
    for node in module.graph.nodes:
        position = _TRAINING_ARGUMENT.get(node.target) if node.op == "call_function" else None
        if position is not None and node.args[position] is not training:
            node.update_arg(position, training)
            changed = True
    if changed:
        module.recompile()


def recapture(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Export a graph that ``capture`` made and later steps have changed."""
    return _export(module, args, kwargs, dynamic_shapes)


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def _from_program(program: torch.export.ExportedProgram) -> Capture:
    if program.example_inputs is None:
        raise CaptureError(
            "the exported program holds no example inputs; export it again with torch.export.export"
        )
    args, kwargs = program.example_inputs
    flat, _ = pytree.tree_flatten((args, kwargs))
    names = [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    dims: list[Any] = []
    for value, node in zip(flat, names, strict=True):
        if not isinstance(value, Tensor):
            dims.append(None)
            continue
        shape = node.meta["val"].shape
        dims.append(
            {i: torch.export.Dim.AUTO for i, s in enumerate(shape) if not isinstance(s, int)}
        )
    _, spec = pytree.tree_flatten((args, kwargs))
    shaped_args, shaped_kwargs = pytree.tree_unflatten(dims, spec)
    shapes = {"args": tuple(shaped_args), **shaped_kwargs} if kwargs else tuple(shaped_args)
    return _finish(program, tuple(args), dict(kwargs), _positional(shapes))


def _positional(shapes: Any) -> Any:
    """Drop the ``args`` wrapper where there are no keyword inputs."""
    return shapes


def _finish(
    program: torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
) -> Capture:
    names = tuple(
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT
        and isinstance(spec.arg, torch.export.graph_signature.TensorArgument)
    )
    exported = program.module(check_guards=False)
    # A GraphModule of our own: the one torch.export returns refuses train() and eval().
    module = fx.GraphModule(exported, exported.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    dynamic = frozenset(
        dim
        for node in module.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        for dim, size in enumerate(node.meta["val"].shape)
        if not isinstance(size, int)
    )
    return Capture(module, args, kwargs, dynamic_shapes, names, dynamic)


def _at_least_two(tensor: Tensor) -> Tensor:
    """Repeat a batch of one: torch.export takes a dimension of one to be one for ever."""
    if tensor.dim() and tensor.shape[0] == 1:
        return torch.cat([tensor, tensor])
    return tensor


def _first_dimension(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.dim():
        return {0: torch.export.Dim.DYNAMIC}
    return None


def _for_export(shapes: Any, model: nn.Module, args: tuple[Any, ...]) -> Any:
    """Positional and keyword shapes in the one structure that torch.export reads."""
    positional, keyword = shapes
    if not keyword:
        return positional
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **keyword}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _explain(model: nn.Module, error: Exception) -> str:
    """One line: which model, what torch.export said, where, and the usual way out."""
    text = str(error)
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
    own = [f for f in frames if "/torch/" not in f[0] and "site-packages" not in f[0]] or frames
    place = f" at {Path(own[-1][0]).name}:{own[-1][1]} in {own[-1][2]}" if own else ""
    reason = _first_line(error)
    if re.search(r"specialized|Constraints violated|dynamic dimension|marked.*dynamic", text):
        way_out = (
            "the model fixes a dimension that was to be dynamic: pass dynamic_shapes=None "
            "(--static on the command line), or remove what depends on its size"
        )
    elif re.search(r"[Dd]ata.dependent|Could not guard|GuardOnDataDependent", text):
        way_out = (
            "a branch or size depends on tensor values: replace it by torch.where or torch.cond"
        )
    else:
        way_out = "make torch.export.export(model, example_inputs) pass first"
    return f"{type(model).__name__} cannot be captured{place}: {reason} Way out: {way_out}."
