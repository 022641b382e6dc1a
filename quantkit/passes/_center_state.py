"""The shifts of a centered model, saved with it: they are constants of its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from quantkit.errors import ModelFileError
from quantkit.model import keys_of
from quantkit.observer import own_tensors, restore_dtypes


class Centers(nn.Module):
    """The shift of each centered grid, as float32 buffers, kept so by ``half()``.

    Bounds of clips and borders of convolutions are numbers in the graph, which a state cannot
    change: one of other shifts is refused.

    Example:
        >>> one, other = Centers({"x": 0.5}), Centers({"x": 0.25})
        >>> one.load_state_dict(other.state_dict())
        Traceback (most recent call last):
        quantkit.errors.ModelFileError: x is centered at 0.25 there, at 0.5 here; ...
    """

    def __init__(self, shifts: Mapping[str, float]) -> None:
        super().__init__()
        self.grids = {key: grid for grid, key in keys_of(shifts).items()}
        for key, grid in self.grids.items():
            self.register_buffer(key, torch.tensor(shifts[grid], dtype=torch.float32))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for key, grid in self.grids.items():
            own, other = self.get_buffer(key), state_dict.get(prefix + key)
            if other is not None and float(own) != float(other):
                raise ModelFileError(
                    f"{grid} is centered at {float(other):.6g} there, at {float(own):.6g} here; "
                    "load it into a model that was calibrated on the same data"
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but not to float16: a rounded shift is another one."""
        before = own_tensors(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_dtypes(self, before)
        return self
