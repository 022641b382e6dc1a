"""What a model's author writes into it to mark where quantization begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantkit import distributed, numerics
from quantkit.observer import own_tensors, restore_dtypes
from quantkit.statistics import Average


class QuantStub(nn.Module):
    """Quantization begins at this tensor: an identity that the plan knows.

    Where a model has stubs, only layers between a `QuantStub` and a `DeQuantStub` are quantized;
    without any, all that the plan says. Those of ``torch.ao.quantization`` mean the same.

    In training mode it keeps a moving average of the range of what goes through, of all processes
    of a ``torch.distributed`` group; ``prepare`` gives the tensor's quantizer that range to begin
    with, and calibration another.

    Attributes:
        average_minimum, average_maximum: float32 buffers ``(1,)``; infinite before any tensor. A
            state without them (of the model before it had stubs) loads as well.

    Args:
        momentum: how far the average moves towards the range of a batch.

    Example:
        >>> model = nn.Sequential(QuantStub(), nn.Linear(32, 32), DeQuantStub(), nn.Linear(32, 32))
        >>> _ = model(torch.tensor([[1.0, -3.0] * 16]))
        >>> model[0]
        QuantStub(range -3 to 1)
        >>> import quantkit
        >>> quantkit.prepare(model, "int8_ptq", example_inputs=(torch.zeros(2, 32),)).plan.quantized
        ('1',)
    """

    average_minimum: Tensor
    average_maximum: Tensor

    def __init__(self, momentum: float = 0.01) -> None:
        super().__init__()
        self.statistic = Average(momentum=momentum)
        for key, value in self.statistic.start(1).items():
            self.register_buffer(key, value)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        if torch.compiler.is_exporting():
            return mark(x)
        if self.training and x.numel() > 0:
            low, high = numerics.row_range(x.detach().reshape(1, -1).float())
            low, high = distributed.common_range(low, high)
            buffers = {key: self.get_buffer(key) for key in self.statistic.start(1)}
            self.statistic.update(buffers, x, low, high)
        return x

    @property
    def range(self) -> tuple[Tensor, Tensor] | None:
        """The average range of what was seen, each end of shape ``(1,)``; ``None`` of nothing."""
        if not bool(self.average_minimum <= self.average_maximum):
            return None
        return self.average_minimum.clone(), self.average_maximum.clone()

    def extra_repr(self) -> str:
        """Such as ``range -3 to 1``."""
        if self.average_minimum.device.type == "meta" or self.range is None:
            return "nothing seen"
        return f"range {self.average_minimum.item():.6g} to {self.average_maximum.item():.6g}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Of a state that has none of the buffers, nothing is missed."""
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantStub:
        """Follow the model to its device, but not to float16."""
        before = own_tensors(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_dtypes(self, before)
        return self


class DeQuantStub(nn.Module):
    """Quantization ends at this tensor: an identity that the plan knows. See `QuantStub`."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return mark(x) if torch.compiler.is_exporting() else x


def mark(x: Tensor) -> Tensor:
    """``x``, with a node in the captured graph that tells which module it came from."""
    marked: Tensor = torch.ops.aten.alias.default(x)
    return marked
