"""Where NaN or infinity came from, when a loss is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.graph.aten import module_path
from quantkit.model import LAYER, QuantizedModel


def first_bad_layer(model: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What brought NaN or infinity into the model's result, in a few words.

    Looks at the inputs, then the parameters, then runs the model and looks at each tensor.
    """
    for index, x in enumerate(pytree.tree_leaves((args, kwargs))):
        if _is_bad(x):
            return f"input {index} of the batch holds NaN or infinity; clean the data"
    for name, parameter in model.named_parameters():
        if _is_bad(parameter):
            return (
                f"parameter {name.removeprefix('graph.')} holds NaN or infinity after the last "
                "step; lower the learning rate, or set clip_gradient"
            )
    flat = pytree.tree_leaves((args, {name: kwargs[name] for name in model.capture.kwargs}))
    finder = _Finder(model.graph)
    with torch.no_grad():
        finder.run(*flat, enable_io_processing=False)
    if finder.found is None:
        return (
            "the model's outputs are finite, so the loss itself has divided by zero or overflowed"
        )
    return (
        f"layer {finder.found} is the first whose result holds NaN or infinity; lower the learning "
        "rate, or train in float32"
    )


def bad_gradient(model: QuantizedModel) -> str | None:
    """The first parameter whose gradient holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and _is_bad(parameter.grad):
            return name.removeprefix("graph.")
    return None


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
