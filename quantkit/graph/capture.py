"""Capture a model once, as one graph of ATen operators (``torch.export``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from quantkit.errors import CaptureError, ModelFileError
from quantkit.graph.batchnorm import batch_norm_behind
from quantkit.graph.exporting import export, first_line, told_inputs
from quantkit.graph.products import split_products
from quantkit.graph.regions import marking, take_out_stubs

DynamicShapes: TypeAlias = Literal["batch"] | Mapping[str, Any] | Sequence[Any] | None

_TRAINING_ARGUMENT: dict[Any, int] = {
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.feature_dropout_.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.feature_alpha_dropout.default: 2,
    torch.ops.aten.rrelu.default: 3,
    torch.ops.aten.rrelu_.default: 3,
    torch.ops.aten.batch_norm.default: 5,
    batch_norm_behind: 8,
}
_BATCH_NORMS = frozenset({torch.ops.aten.batch_norm.default, batch_norm_behind})
#: Marks a node that does the same in both modes, such as ``F.dropout(x)`` without ``training``.
_FIXED = "quantkit_fixed_mode"


@dataclass(frozen=True)
class Capture:
    """A captured model, with what is needed to capture it again at export.

    Attributes:
        module: the float graph; parameters keep the names they had in the model.
        args, kwargs: example inputs.
        dynamic_shapes: of ``module``, for ``torch.export.export``.
        input_names: one name per tensor input, in the order of the flattened inputs.
        dynamic: by name of input, the dimensions whose size may differ from the example's.
    """

    module: fx.GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    input_names: tuple[str, ...]
    dynamic: dict[str, frozenset[int]]

    @property
    def dynamic_dims(self) -> frozenset[int]:
        """The dimensions whose size may differ from the examples', in some input."""
        return frozenset().union(*self.dynamic.values())

    @property
    def batched(self) -> frozenset[int | str]:
        """The inputs, by position or name, whose first dimension counts samples."""
        keys = [*range(len(self.args)), *self.kwargs]
        named = zip(keys, self.input_names, strict=False)
        return frozenset(key for key, name in named if 0 in self.dynamic.get(name, ()))


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
        dynamic_shapes: ``"batch"``: the first dimension may vary, of every input that has as
            many samples as the first; ``None``: every shape is fixed; else what
            ``torch.export.export`` takes.

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
    shapes: Any = dynamic_shapes
    if dynamic_shapes == "batch":
        args, keywords, positional, named = _with_batch(args, keywords)
        _bind(model, args, keywords)  # tells the inputs themselves, where they are not taken
        shapes = _bind(model, positional, named)
    with marking(model):
        program = export(model, args, keywords, shapes)
    again = _for_graph(shapes, model, args, keywords)
    return _finish(program, args, keywords, again, training=model.training)


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
            f"({first_line(error)}); save it with torch.export.save of the same torch"
        ) from error


def set_training(module: fx.GraphModule, training: bool, *, batch_norm: bool | None = None) -> None:
    """Switch dropout and batch-norm of a captured graph between training and evaluation.

    Args:
        module: the captured graph.
        training: the mode.
        batch_norm: the mode of batch-norm, where it is another.
    """
    changed = False
    for node in module.graph.nodes:
        position = _training_argument(node)
        if position is None or _FIXED in node.meta:
            continue
        mode = batch_norm if node.target in _BATCH_NORMS and batch_norm is not None else training
        if node.args[position] is not mode:
            node.update_arg(position, mode)
            changed = True
    if changed:
        module.recompile()


def _training_argument(node: fx.Node) -> int | None:
    """Where a node is told whether the model trains."""
    if node.op != "call_function":
        return None
    position = _TRAINING_ARGUMENT.get(node.target)
    return position if position is not None and len(node.args) > position else None


def recapture(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """Export a graph that ``capture`` made and later steps have changed."""
    return export(module, args, kwargs, dynamic_shapes)


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
    shapes = (*shaped_args, *shaped_kwargs.values())
    return _finish(program, tuple(args), dict(kwargs), shapes)


def _finish(
    program: torch.export.ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    *,
    training: bool | None = None,
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
    _mark_fixed(module, training)
    take_out_stubs(module)
    split_products(module)
    module.recompile()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in placeholders]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    dynamic = {
        name: frozenset(dim for dim, size in enumerate(shape) if not isinstance(size, int))
        for name, shape in zip(names, shapes, strict=True)
    }
    return Capture(module, args, kwargs, dynamic_shapes, names, dynamic)


def _mark_fixed(module: fx.GraphModule, training: bool | None) -> None:
    """Mark the nodes that do not follow the mode that the model was captured in."""
    for node in module.graph.nodes:
        position = _training_argument(node)
        if position is None:
            continue
        # A batch-norm without running statistics uses the batch's in both modes.
        stateless = node.target is torch.ops.aten.batch_norm.default and node.args[3] is None
        if stateless or (training is False and node.args[position] is True):
            node.meta[_FIXED] = True


def _with_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Any, Any]:
    """Example inputs of two samples or more, and their shapes with a dynamic batch.

    The first input says how many samples there are; an input of another first dimension (one row
    of positions, say) has none. A batch of one is repeated: torch.export takes a dimension of one
    to be one for ever.
    """
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
    batch = leaves[0].shape[0] if leaves else 0

    def has_batch(x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and x.shape[0] == batch

    def example(x: Any) -> Any:
        return torch.cat([x, x]) if batch == 1 and has_batch(x) else x

    def shape(x: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if has_batch(x) else None

    args, kwargs = pytree.tree_map(example, (args, kwargs))
    batch = 2 if batch == 1 else batch
    positional, named = pytree.tree_map(shape, (args, kwargs))
    return args, kwargs, positional, named


def _bind(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, partial: bool = False
) -> dict[str, Any]:
    """Arguments by the names that ``forward`` has for them, in its order."""
    signature = inspect.signature(model.forward)
    try:
        return (signature.bind_partial if partial else signature.bind)(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"{type(model).__name__} does not take the example inputs "
            f"{told_inputs(model, args, kwargs)}: {error}; pass what its forward takes"
        ) from error


def _for_graph(shapes: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Shapes as the captured graph takes them: a tuple, with ``*args`` spread out."""
    names = list(_bind(model, args, kwargs))
    if isinstance(shapes, Mapping):
        named = dict(shapes)
    elif isinstance(shapes, (tuple, list)):
        named = dict(zip(names, shapes, strict=False))
    else:
        return shapes
    parameters = inspect.signature(model.forward).parameters
    flat: list[Any] = []
    for name in _bind(model, args, {}, partial=True):
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            flat.extend(named.get(name) or ())
        else:
            flat.append(named.get(name))
    return (*flat, *(named.get(name) for name in kwargs))
