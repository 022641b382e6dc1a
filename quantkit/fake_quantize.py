"""The module that puts values on a grid, in training and in simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from quantkit import numerics
from quantkit.errors import DataError
from quantkit.numerics import QParams
from quantkit.observer import Observer, own_tensors, restore_dtypes
from quantkit.spec import QuantSpec


class FakeQuantize(nn.Module):
    """Rounds a tensor to its grid, still in float, with a straight-through gradient.

    It observes, quantizes, both or neither (identity, as when made). Where it does both, as in
    quantization-aware training, the grid follows at each step in training mode: the observer, or,
    without one (a weight), the range that the tensor has at that moment. In evaluation mode it
    stays. The switches are plain ``bool`` attributes, which ``torch.compile`` and ``torch.export``
    see through; they are saved with the buffers as one uint8 tensor, since safetensors holds
    nothing else.

    After `learn` the grid is trained instead: ``scale`` is a parameter, and so is ``lowest`` where
    the grid is not symmetric. `settle` makes buffers of what was learned.

    Attributes:
        spec: the grid.
        observer: where the grid comes from; ``None`` where it is only set, or that of the moment.
        name: the tensor's name, for messages.
        scale: float32 buffer (or parameter), kept so by ``half()`` and ``bfloat16()``.
        zero_point: int32 buffer of the same shape.
        lowest: float32 parameter of the same shape, the value of the lowest code; only while an
            asymmetric grid learns.
        observing: whether ``forward`` takes statistics.
        quantizing: whether ``forward`` rounds.
        calibrated: whether the grid was ever filled.

    Args:
        spec: the grid.
        shape: of the scales, see ``numerics.scale_shape``.
        observer: takes the statistics.
        name: the tensor's name.

    Example:
        >>> from quantkit.calibrators.minmax import MinMax
        >>> quantizer = FakeQuantize(QuantSpec(), observer=Observer(QuantSpec(), MinMax()))
        >>> quantizer.observe()
        >>> _ = quantizer(torch.tensor([-127.0, 3.0]))
        >>> quantizer.calibrate()
        >>> quantizer(torch.tensor([0.6, 1e4])).tolist()
        [1.0, 127.0]
        >>> quantizer
        FakeQuantize(
          int8 symmetric per tensor, scale=1
          (observer): Observer(int8 symmetric per tensor, MinMax())
        )
    """

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor | None

    def __init__(
        self,
        spec: QuantSpec,
        *,
        shape: Sequence[int] = (),
        observer: Observer | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if (len(shape) == 0) != (spec.granularity == "tensor"):
            raise ValueError(
                f"scales of shape {tuple(shape)} are not those of {spec}; use numerics.scale_shape"
            )
        self.spec = spec
        self.name = name
        self.observing = False
        self.quantizing = False
        self.calibrated = False
        self.register_buffer("scale", torch.ones(tuple(shape)))
        middle = torch.full(tuple(shape), spec.middle, dtype=torch.int32)
        self.register_buffer("zero_point", middle)
        self.register_parameter("lowest", None)
        self.observer = observer

    def forward(self, x: Tensor) -> Tensor:
        """Observe and quantize ``x`` as the switches say; the shape and dtype stay.

        Raises:
            DataError: where it should quantize and was never calibrated.
        """
        if self.observing and (self.training or not (self.quantizing and self.calibrated)):
            self._observe(x)
        if not self.quantizing:
            return x
        self._need_grid()
        if self.learning:
            # What has an observer is an activation, of which the first dimension counts samples.
            samples = x.shape[0] if self.observer is not None and x.dim() > 0 else 1
            return numerics.learned_fake_quantize(
                x, self.scale, self.lowest, self.spec, samples=samples
            )
        return numerics.fake_quantize_values(x, self.scale, self.zero_point, self.spec)

    @property
    def learning(self) -> bool:
        """Whether the grid is trained."""
        return "scale" in self._parameters

    @property
    def qparams(self) -> QParams:
        """A copy of the grid, checked.

        Raises:
            DataError: where it was never calibrated.
        """
        self._need_grid()
        scale, zero_point = self._grid()
        return QParams(scale=scale.clone(), zero_point=zero_point.clone(), spec=self.spec)

    def set_qparams(self, qparams: QParams) -> None:
        """Fill the grid; the switches stay as they are.

        Raises:
            ValueError: where ``qparams`` is for another spec or another number of scales.
        """
        if qparams.spec != self.spec:
            raise ValueError(
                f"{self._label} is {self.spec}, but the grid is {qparams.spec}; "
                "choose the grid with the quantizer's own spec"
            )
        if qparams.scale.numel() != self.scale.numel():
            raise ValueError(
                f"{self._label} has {self.scale.numel()} scales, but the grid "
                f"{qparams.scale.numel()}; choose the grid from a tensor of the shape prepared for"
            )
        with torch.no_grad():
            self.scale.copy_(qparams.scale.reshape(self.scale.shape))
            self.zero_point.copy_(qparams.zero_point.reshape(self.scale.shape))
            self._place_lowest()
        self.calibrated = True

    def calibrate(self) -> None:
        """Take the grid from the observer, stop observing, start quantizing.

        Raises:
            DataError: where there is no observer, or it has seen nothing, NaN or infinity.
        """
        if self.observer is None:
            raise DataError(f"{self._label} has no observer to calibrate from; use set_qparams")
        self.set_qparams(self.observer.calculate_qparams())
        self.observing, self.quantizing = False, True

    def observe(self, enabled: bool = True) -> None:
        """Switch the taking of statistics on or off."""
        self.observing = enabled

    def learn(self) -> None:
        """Let the grid be trained from what it is now: learned step size (LSQ, LSQ+).

        ``parameters()`` has one or two more from now on, so call this before an optimizer, or
        ``DistributedDataParallel``, is made. The observer no longer moves the grid.

        Raises:
            DataError: where it was never calibrated: there is nothing to begin with.
        """
        self._need_grid()
        self.observing = False
        if not self.learning:
            self._let_learn()

    def settle(self) -> None:
        """Keep what was learned as the grid, and learn no more."""
        if not self.learning:
            return
        scale, zero_point = self._grid()
        del self.scale
        self.register_buffer("scale", scale.clone())
        self.zero_point = zero_point.clone()
        self.register_parameter("lowest", None)

    def quantize_values(self, enabled: bool = True) -> None:
        """Switch the rounding on or off."""
        self.quantizing = enabled

    def get_extra_state(self) -> Tensor:
        """``[observing, quantizing, calibrated, learning]`` as uint8."""
        flags = [self.observing, self.quantizing, self.calibrated, self.learning]
        return torch.tensor(flags, dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` gave."""
        flags = [bool(flag) for flag in state.tolist()]
        self.observing, self.quantizing, self.calibrated = flags[:3]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """A state of a grid that learns makes this one learn, and one that does not settles it."""
        flags = state_dict.get(f"{prefix}_extra_state")
        if flags is not None:
            learning = len(flags) > 3 and bool(flags[3])
            if learning and not self.learning:
                self._let_learn()
            elif not learning:
                self.settle()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Such as ``int8 symmetric per tensor, scale=0.0123``."""
        parts = [str(self.spec)]
        if not self.calibrated:
            parts.append("not calibrated")
        elif self.scale.ndim == 0 and self.scale.device.type != "meta":
            parts.append(f"scale={self.scale.item():.6g}")
            if not self.spec.symmetric:
                parts.append(f"zero_point={self._grid()[1].item()}")
        else:
            parts.append(f"scales={tuple(self.scale.shape)}")
        if self.learning:
            parts.append("learning")
        if self.observing:
            parts.append("observing")
        if self.calibrated and not self.quantizing:
            parts.append("off")
        return ", ".join(parts)

    @property
    def _label(self) -> str:
        return f"quantizer {self.name!r}" if self.name else "an unnamed quantizer"

    def _need_grid(self) -> None:
        if not self.calibrated:
            raise DataError(
                f"{self._label} has no grid: it was never calibrated; observe batches and call "
                "calibrate(), or set_qparams(), before it quantizes"
            )

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero-point as they are now, also while they are learned."""
        if self.learning:
            return numerics.learned_grid(self.scale, self.lowest, self.spec)
        return self.scale.detach(), self.zero_point

    def _observe(self, x: Tensor) -> None:
        """Take ``x`` in, and let the grid follow where it is in use."""
        observer = self.observer
        if observer is not None:
            observer(x)
        if not self.quantizing or self.learning:
            return
        # Unchecked: a check would wait for the device.
        low, high = numerics.tensor_range(x, self.spec) if observer is None else observer.range()
        scale, zero_point = numerics.grid(low, high, self.spec)
        with torch.no_grad():
            self.scale.copy_(scale.reshape(self.scale.shape))
            self.zero_point.copy_(zero_point.reshape(self.scale.shape))
        if not self.calibrated:
            self.calibrated = True

    def _let_learn(self) -> None:
        """Make parameters of the grid."""
        scale = self.scale
        del self.scale
        self.scale = nn.Parameter(scale)
        if not self.spec.symmetric:
            self.lowest = nn.Parameter(torch.empty_like(scale))
            self._place_lowest()

    def _place_lowest(self) -> None:
        """``lowest`` as scale and zero-point have it."""
        if self.lowest is not None:
            with torch.no_grad():
                self.lowest.copy_((self.spec.qmin - self.zero_point) * self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but not to float16: a rounded scale is another grid."""
        before = own_tensors(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        restore_dtypes(self, before)
        return self
