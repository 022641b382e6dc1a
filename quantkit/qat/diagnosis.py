"""Where NaN or infinity came from, when a loss is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.graph.aten import module_path
from quantkit.model import LAYER, QuantizedModel


def cause(
    model: QuantizedModel,
    teacher: QuantizedModel | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str:
    """What brought NaN or infinity into a loss, in a few words.

    Looks at the inputs, then the parameters, then runs the model and its teacher and looks at each
    tensor. (A quantizer cuts infinity off, so the model may hide what its float self shows.)
    """
    for index, x in enumerate(pytree.tree_leaves((args, kwargs))):
        if _is_bad(x):
            return f"input {index} of the batch holds NaN or infinity; clean the data"
    if (name := bad_parameter(model)) is not None:
        return told_parameter(name)
    if (layer := _first_bad_layer(model, args, kwargs)) is not None:
        return (
            f"layer {layer} is the first whose result holds NaN or infinity; lower the learning "
            "rate, or train in float32"
        )
    if teacher is not None and (layer := _first_bad_layer(teacher, args, kwargs)) is not None:
        return (
            f"layer {layer} of the float model is the first whose result holds NaN or infinity; "
            "look at the batch, or whether the model itself is sound"
        )
    return "the model's outputs are finite, so the loss itself has divided by zero or overflowed"


def bad_parameter(model: QuantizedModel) -> str | None:
    """The first parameter that holds NaN or infinity."""
    return next((_plain(n) for n, p in model.named_parameters() if _is_bad(p)), None)


def bad_gradient(model: QuantizedModel) -> str | None:
    """The first parameter whose gradient holds NaN or infinity."""
    return next((_plain(n) for n, p in model.named_parameters() if _is_bad(p.grad)), None)


def told_parameter(name: str) -> str:
    """A parameter that is not finite, and what to do."""
    return (
        f"parameter {name} holds NaN or infinity; where it came with the last step, lower the "
        "learning rate or set clip_gradient"
    )


def _first_bad_layer(
    model: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    flat = pytree.tree_leaves((args, {name: kwargs[name] for name in model.capture.kwargs}))
    finder = _Finder(model.graph)
    with torch.no_grad():
        finder.run(*flat, enable_io_processing=False)
    return finder.found


def _plain(name: str) -> str:
    return name.removeprefix("graph.")


class _Finder(fx.Interpreter):
    """Runs a graph, and notes the first layer that makes of finite tensors one that is not."""

    found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        if (
            self.found is None
            and n.op != "output"
            and any(map(_is_bad, pytree.tree_leaves(result)))
        ):
            self.found = str(n.meta.get(LAYER) or module_path(n) or n.name)
        return result


def _is_bad(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and not bool(x.isfinite().all())
