"""The module that lays tensors out for a calibrator and keeps what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from quantkit import numerics
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec


class Observer(nn.Module):
    """Takes statistics of the tensors that pass through it, and returns them unchanged.

    The statistics are the calibrator's state, kept as buffers under its own names, so they are
    copied, moved and saved with the model. ``forward`` never waits for the device: NaN and
    infinities stay in the statistics and are reported by `calculate_qparams`.

    Args:
        spec: the grid to find; its axis says how tensors are laid out.
        calibrator: what turns samples into a range.
        channels: how many scales the tensor has: 1 per tensor, else the product of
            ``numerics.scale_shape``.
        name: the tensor's name, for messages.

    Example:
        >>> from quantkit.calibrators.minmax import MinMax
        >>> observer = Observer(QuantSpec(), MinMax())
        >>> _ = observer(torch.tensor([-1.27, 0.5]))
        >>> round(observer.calculate_qparams().scale.item(), 6)
        0.01
    """

    def __init__(
        self, spec: QuantSpec, calibrator: Calibrator, channels: int = 1, name: str = ""
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be 1 or more, got {channels}")
        if spec.granularity == "tensor" and channels != 1:
            raise ValueError(f"{spec} has one slice, not {channels}; give an axis or channels=1")
        self.spec = spec
        self.calibrator = calibrator
        self.channels = channels
        self.name = name
        state = calibrator.start(channels)
        self._state_names = tuple(state)
        for key, value in state.items():
            self.register_buffer(key, value)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``x`` in; returns ``x`` itself. An empty tensor holds nothing to see."""
        if x.numel() == 0:
            return x
        samples = numerics.slices(x.detach(), self.spec).float()
        if samples.shape[0] != self.channels:
            raise DataError(
                f"{self._label} has {samples.shape[0]} slices of {self.spec} in a tensor of shape "
                f"{tuple(x.shape)}, but was prepared for {self.channels}; prepare the model again "
                "with inputs of this shape"
            )
        self.calibrator.update(self._state(), samples)
        return x

    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest value to cover, each of shape ``(channels,)``."""
        return self.calibrator.range(self._state())

    def calculate_qparams(self) -> QParams:
        """The grid that covers the range: ``()`` per tensor, else flat, of shape ``(channels,)``.

        Raises:
            DataError: where nothing was observed, or NaN or infinity was.
        """
        minimum, maximum = self.range()
        if bool((minimum > maximum).all()):
            raise DataError(
                f"{self._label} has observed nothing; run calibration batches through the model, "
                "or leave this tensor in float if they never reach it"
            )
        if not bool((torch.isfinite(minimum) & torch.isfinite(maximum)).all()):
            raise DataError(
                f"{self._label} has observed NaN or infinity; look for them in the calibration "
                "data, or run the model in float32 if float16 overflows"
            )
        shape = () if self.spec.axis is None else (self.channels,)
        return numerics.choose_qparams(minimum.reshape(shape), maximum.reshape(shape), self.spec)

    def reset(self) -> None:
        """Forget everything seen."""
        for key, value in self.calibrator.start(self.channels).items():
            self.get_buffer(key).copy_(value)

    def extra_repr(self) -> str:
        """Such as ``int8 symmetric per tensor, MinMax()``."""
        many = "" if self.channels == 1 else f", channels={self.channels}"
        return f"{self.spec}, {self.calibrator!r}{many}"

    @property
    def _label(self) -> str:
        return f"tensor {self.name!r}" if self.name else "an unnamed tensor"

    def _state(self) -> dict[str, Tensor]:
        return {key: self.get_buffer(key) for key in self._state_names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but not to float16: statistics overflow there."""
        before = own_buffers(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_dtypes(self, before)
        return self


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of ``module`` itself, without those of its children."""
    return dict(module.named_buffers(recurse=False))


def restore_dtypes(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Gives the module's own buffers back the dtype and the values they had ``before``.

    ``model.half()`` would else round every scale and statistic to float16.
    """
    for key, after in own_buffers(module).items():
        if after.dtype != before[key].dtype:
            setattr(module, key, before[key].to(after.device))
