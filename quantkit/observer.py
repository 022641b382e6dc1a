"""The module that lays tensors out for a calibrator and keeps what it has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Self

import torch
from torch import Tensor, nn

from quantkit import distributed, numerics
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator, Statistic
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec
from quantkit.statistics import Average, Range


class Observer(nn.Module):
    """Takes statistics of the tensors that pass through it, and returns them unchanged.

    The statistics that the calibrator reads are kept as buffers, so they are copied, moved and
    saved with the model. ``forward`` never waits for the device: NaN and infinities stay in the
    range and are reported by `calculate_qparams`.

    In training mode the range of a batch is that of all processes of a ``torch.distributed`` group:
    what follows it is equal on all. (Calibration runs in evaluation mode and adds up at the end.)

    Attributes:
        statistics: what is kept; ``state`` is what they have seen.

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
        self.statistics: tuple[Statistic, ...] = ()
        self._state_names: tuple[str, ...] = ()
        self._keep((Range(), *calibrator.statistics), persistent=True)

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
        low, high = numerics.row_range(samples)
        if self.training:
            low, high = distributed.common_range(low, high)
        state = self.state
        for statistic in self.statistics:
            statistic.update(state, samples, low, high)
        return x

    @property
    def state(self) -> dict[str, Tensor]:
        """What was seen, by the names of the statistics: the buffers themselves."""
        # Not get_buffer, which takes the name apart: this runs for each batch.
        buffers = self._buffers
        return {key: value for key in self._state_names if (value := buffers[key]) is not None}

    def keep(self, statistics: Iterable[Statistic]) -> None:
        """Keep these too from now on; ``state_dict`` does not hold them.

        Raises:
            ValueError: one is kept already, with other settings.
        """
        self._keep(statistics, persistent=False)

    def range(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest value to cover, each of shape ``(channels,)``."""
        return self.calibrator.range(self.state, self.spec)

    def calculate_qparams(self) -> QParams:
        """The grid that covers the range: ``()`` per tensor, else flat, of shape ``(channels,)``.

        Raises:
            DataError: where nothing was observed, or NaN or infinity was.
        """
        self.check()
        return self.grid(*self.range())

    def grid(self, minimum: Tensor, maximum: Tensor) -> QParams:
        """The grid that covers a range of shape ``(channels,)``, in the shape of this tensor."""
        shape = () if self.spec.axis is None else (self.channels,)
        return numerics.choose_qparams(minimum.reshape(shape), maximum.reshape(shape), self.spec)

    def check(self) -> None:
        """Refuse to go on with nothing, or with NaN or infinity.

        Raises:
            DataError: where nothing was observed, or NaN or infinity was.
        """
        minimum, maximum = self.get_buffer("minimum"), self.get_buffer("maximum")
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

    def begin_with(self, low: Tensor, high: Tensor) -> None:
        """Go on from a range seen elsewhere, each end of shape ``(channels,)``.

        What only counts samples, such as a histogram, takes nothing from it.
        """
        state, one = self.state, torch.ones((), dtype=torch.int64, device=low.device)
        seen = {"minimum": low, "maximum": high}
        seen |= {"average_minimum": low, "average_maximum": high, "batches": one}
        for statistic in self.statistics:
            if isinstance(statistic, Range | Average):
                statistic.merge(state, seen)

    def reset(self) -> None:
        """Forget everything seen."""
        for statistic in self.statistics:
            for key, value in statistic.start(self.channels).items():
                self.get_buffer(key).copy_(value)

    def extra_repr(self) -> str:
        """Such as ``int8 symmetric per tensor, MinMax()``."""
        many = "" if self.channels == 1 else f", channels={self.channels}"
        return f"{self.spec}, {self.calibrator!r}{many}"

    @property
    def _label(self) -> str:
        return f"tensor {self.name!r}" if self.name else "an unnamed tensor"

    def _keep(self, statistics: Iterable[Statistic], *, persistent: bool) -> None:
        for statistic in statistics:
            if statistic in self.statistics:
                continue
            state = statistic.start(self.channels)
            taken = state.keys() & set(self._state_names)
            if taken:
                kept = next(s for s in self.statistics if taken & s.start(1).keys())
                raise ValueError(
                    f"{self._label} keeps {kept} already, and cannot keep {statistic} beside it; "
                    "give the calibrators that read them the same settings"
                )
            device = self.get_buffer("minimum").device if self._state_names else None
            for key, value in state.items():
                self.register_buffer(key, value.to(device), persistent=persistent)
            self.statistics = (*self.statistics, statistic)
            self._state_names = (*self._state_names, *state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but not to float16: statistics overflow there."""
        before = own_tensors(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_dtypes(self, before)
        return self


def found_qparams(x: Tensor, spec: QuantSpec, calibrator: Calibrator, name: str = "") -> QParams:
    """The grid that a calibrator finds for a tensor that is there as a whole, such as a weight.

    Example:
        >>> from quantkit.calibrators.minmax import MinMax
        >>> found_qparams(torch.tensor([[1.27], [2.54]]), QuantSpec(axis=0), MinMax()).scale
        tensor([0.0100, 0.0200])
    """
    shape = numerics.scale_shape(x.shape, spec)
    observer = Observer(spec, calibrator, math.prod(shape), name).to(x.device).eval()
    observer(x)
    low, high = observer.range()
    return numerics.choose_qparams(low.reshape(shape), high.reshape(shape), spec)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The buffers and parameters of ``module`` itself, without those of its children."""
    named = (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False))
    return {key: value.detach() for key, value in named}


def restore_dtypes(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Gives the module's own tensors back the dtype and the values they had ``before``.

    ``model.half()`` would else round every scale and statistic to float16.
    """
    for key, after in own_tensors(module).items():
        if after.dtype == before[key].dtype:
            continue
        value = before[key].to(after.device)
        if key in module._buffers:
            setattr(module, key, value)
        else:  # the optimizer knows the parameter itself
            module.get_parameter(key).data = value
