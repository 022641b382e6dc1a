"""quantkit's quantizers in the shape that torch.ao's eager ``prepare_qat`` expects.

For models already written with ``torch.ao.quantization`` (``QuantStub``, ``qconfig``): hand them
`qconfig` of a quantkit scheme. torch.ao's eager flow is deprecated; this is the only file that
touches it. New models want ``quantkit.quantize`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import QConfig
from torch.ao.quantization.fake_quantize import FakeQuantizeBase
from torch.ao.quantization.observer import ObserverBase

from quantkit import numerics
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import RecipeError
from quantkit.fake_quantize import FakeQuantize
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer
from quantkit.spec import QuantSpec, Scheme

_DTYPES = {"int8": torch.qint8, "uint8": torch.quint8, "int4": torch.qint8}


def _ao_attributes(spec: QuantSpec) -> dict[str, Any]:
    """What torch.ao's ``convert`` reads off a quantizer or observer."""
    if spec.is_float or spec.group_size is not None:
        raise RecipeError(
            f"torch.ao's eager flow has no form for {spec}; use int8, uint8 or int4 per tensor or "
            "per channel, or quantkit.quantize"
        )
    schemes = {
        (False, True): torch.per_tensor_symmetric,
        (False, False): torch.per_tensor_affine,
        (True, True): torch.per_channel_symmetric,
        (True, False): torch.per_channel_affine,
    }
    return {
        "dtype": _DTYPES[spec.dtype],
        "qscheme": schemes[spec.axis is not None, spec.symmetric],
        "quant_min": spec.qmin,
        "quant_max": spec.qmax,
        "ch_axis": -1 if spec.axis is None else spec.axis,
        "is_dynamic": False,
    }


class AoFakeQuantize(FakeQuantize, FakeQuantizeBase):
    """A `FakeQuantize` that torch.ao's eager flow can make, switch and convert.

    torch.ao says how many channels there are only with the first tensor (or with the first
    ``load_state_dict``); the observer and the buffers get their size then. As in torch.ao it
    observes and quantizes from the start.

    Args:
        spec: the grid; per tensor or per channel, integer.
        calibrator: what turns samples into a range.
        factory_kwargs: device and dtype as torch.ao's layers pass them; ``to`` sets the device.
    """

    def __init__(
        self,
        spec: QuantSpec,
        calibrator: Calibrator,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        attributes = _ao_attributes(spec)
        super().__init__(spec, shape=() if spec.axis is None else (0,))
        # torch.ao keeps its switches in tensors, on which torch.compile breaks the graph.
        del self.fake_quant_enabled, self.observer_enabled
        self.calibrator = calibrator
        for key, value in attributes.items():
            setattr(self, key, value)
        if spec.axis is None:
            self._resize(1)
        self.to((factory_kwargs or {}).get("device"))
        self.observing = self.quantizing = True

    def forward(self, x: Tensor) -> Tensor:
        """Observe and quantize ``x`` as the switches say."""
        if self.observer is None:
            (channels,) = numerics.scale_shape(x.shape, self.spec)
            self._resize(channels)
        return super().forward(x)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, each of shape ``(channels,)``, as torch.ao's ``convert`` asks."""
        qparams = self.qparams
        return qparams.scale.reshape(-1), qparams.zero_point.reshape(-1)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Called by ``torch.ao.quantization.enable_fake_quant``."""
        self.quantize_values(bool(enabled))

    def enable_observer(self, enabled: bool = True) -> None:
        """Called by ``torch.ao.quantization.enable_observer``."""
        self.observing = bool(enabled)

    def _resize(self, channels: int) -> None:
        device = self.scale.device
        if self.spec.axis is not None:
            self.scale = torch.ones(channels, device=device)
            middle = torch.full((channels,), self.spec.middle, dtype=torch.int32)
            self.zero_point = middle.to(device)
        self.observer = Observer(self.spec, self.calibrator, channels, self.name).to(device)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "scale")
        if saved is not None and saved.shape != self.scale.shape and saved.ndim == 1:
            self._resize(saved.numel())
        super()._load_from_state_dict(state_dict, prefix, *rest)


class AoObserver(ObserverBase):
    """A `quantkit.observer.Observer` for torch.ao's eager ``prepare``, made at the first tensor.

    It holds an Observer and is none: torch.ao wants ``calculate_qparams`` to return a tuple.

    Args:
        spec: the grid; per tensor or per channel, integer.
        calibrator: what turns samples into a range.
        factory_kwargs: device and dtype as torch.ao's layers pass them.
    """

    def __init__(
        self,
        spec: QuantSpec,
        calibrator: Calibrator,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        attributes = _ao_attributes(spec)
        super().__init__(dtype=attributes["dtype"])
        self.spec = spec
        self.calibrator = calibrator
        self.observer: Observer | None = None
        for key, value in attributes.items():
            setattr(self, key, value)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``x`` in; returns ``x`` itself."""
        if self.observer is None:
            channels = 1 if self.spec.axis is None else x.shape[self.spec.axis]
            self.observer = Observer(self.spec, self.calibrator, channels).to(x.device)
        y: Tensor = self.observer(x)
        return y

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero-point, each of shape ``(channels,)``, as torch.ao's ``convert`` asks.

        Raises:
            DataError: where nothing was observed, or NaN or infinity was.
        """
        observer = self.observer or Observer(self.spec, self.calibrator)
        qparams = observer.calculate_qparams()
        return qparams.scale.reshape(-1), qparams.zero_point.reshape(-1)


def qconfig(scheme: Scheme, calibrator: Calibrator | None = None) -> QConfig:
    """A torch.ao ``QConfig`` for ``prepare_qat`` of the eager flow.

    Args:
        scheme: what is quantized; a ``None`` in it is left in float.
        calibrator: for activations; ``MovingAverage(momentum=0.01)`` if ``None``. Weights
            always follow their own range of the moment, which needs no memory.

    Raises:
        RecipeError: for fp8 or groups, for which torch.ao has no form.

    Example:
        >>> both = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
        >>> quantizer = qconfig(both).weight()
        >>> quantizer(torch.tensor([[1.27, 0.0], [0.0, 0.0]])).shape, quantizer.scale.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """

    def factory(spec: QuantSpec | None, chosen: Calibrator) -> Any:
        if spec is None:
            return nn.Identity
        _ao_attributes(spec)  # refused here rather than deep inside prepare_qat
        with_args: Any = AoFakeQuantize.with_args  # untyped in torch
        return with_args(spec=spec, calibrator=chosen)

    activations = MovingAverage(momentum=0.01) if calibrator is None else calibrator
    return QConfig(  # type: ignore[no-untyped-call]
        activation=factory(scheme.activations, activations),
        weight=factory(scheme.weights, MovingAverage(momentum=1.0)),
    )
