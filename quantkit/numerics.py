"""All arithmetic on scales and zero-points: pure functions on tensors, and nothing else.

Fake-quantize in training, rounding algorithms, export and the parity check call these, so that
what is simulated is what is deployed. The meaning is that of ONNX ``QuantizeLinear`` and
``DequantizeLinear`` (opset 21): round half to even, saturate, ``x ≈ (q - zero_point) * scale``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantkit.spec import QuantSpec
from quantkit.straight_through import LearnedStep, StraightThrough

#: The smallest scale, torch.ao's as well (float32 epsilon). A dead channel (all zero) would have
#: scale 0: its x / scale is NaN and TensorRT refuses it. Much smaller scales are no better: the
#: int32 bias of ONNX QLinearConv, b / (s_x * s_w), overflows.
SCALE_FLOOR = 2.0**-23

#: What holds ``q`` in memory. torch computes on no 4-bit integers, so int4 is held in int8.
STORAGE: dict[str, torch.dtype] = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int4": torch.int8,
    "fp8_e4m3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class QParams:
    """The grid of one tensor in numbers: ``x ≈ (q - zero_point) * scale``.

    Invariant: ``scale`` and ``zero_point`` have one shape, scales are finite and positive,
    zero-points lie on the grid, so that zero is represented exactly.

    Attributes:
        scale: float32; ``()`` per tensor, ``(channels,)`` per channel, and per group the shape of
            ``x`` with the axis divided by the group size (rounded up: the last may be short).
        zero_point: int32, of the same shape; ``spec.middle`` everywhere if symmetric.
        spec: what the numbers mean.

    Raises:
        ValueError: where the invariant does not hold.
    """

    scale: Tensor
    zero_point: Tensor
    spec: QuantSpec

    def __post_init__(self) -> None:
        if self.scale.dtype != torch.float32 or self.zero_point.dtype != torch.int32:
            raise ValueError(
                f"scale must be float32 and zero_point int32, got {self.scale.dtype} and "
                f"{self.zero_point.dtype}; convert them with .float() and .int()"
            )
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(
                f"scale has shape {tuple(self.scale.shape)} but zero_point "
                f"{tuple(self.zero_point.shape)}; give one zero_point a scale"
            )
        dims, form = self.scale.ndim, self.spec.granularity
        if (dims == 0) != (form == "tensor") or (form == "channel" and dims != 1):
            raise ValueError(
                f"scale of shape {tuple(self.scale.shape)} is not that of {self.spec}; see "
                "numerics.scale_shape"
            )
        if not bool((torch.isfinite(self.scale) & (self.scale > 0)).all()):
            raise ValueError(
                "every scale must be finite and positive; make them with choose_qparams, which "
                f"floors them at {SCALE_FLOOR:.3g}"
            )
        low, high = (0, 0) if self.spec.is_float else (self.spec.qmin, self.spec.qmax)
        if not bool(((self.zero_point >= low) & (self.zero_point <= high)).all()):
            raise ValueError(f"every zero_point of {self.spec} must be from {low} to {high}")


def _axis(spec: QuantSpec, dims: int) -> int:
    """``spec.axis`` as a dimension of a tensor of ``dims`` dimensions."""
    axis = 0 if spec.axis is None else spec.axis
    if not -dims <= axis < dims:
        raise ValueError(f"a tensor of {dims} dimensions has no axis {axis}, asked for by {spec}")
    return axis % dims


def scale_shape(shape: Sequence[int], spec: QuantSpec) -> tuple[int, ...]:
    """The shape of the scales of a tensor of this shape.

    Example:
        >>> scale_shape((8, 70), QuantSpec(dtype="int4", axis=1, group_size=32))
        (8, 3)
    """
    if spec.granularity == "tensor":
        return ()
    axis = _axis(spec, len(shape))
    if spec.group_size is None:
        return (shape[axis],)
    groups = -(-shape[axis] // spec.group_size)
    return (*shape[:axis], groups, *shape[axis + 1 :])


def slices(x: Tensor, spec: QuantSpec) -> Tensor:
    """Lays ``x`` out as ``(channels, samples)``: one row a scale, in the order of the scales.

    A short last group is filled up with its last value, which changes neither its minimum nor
    its maximum.

    Example:
        >>> slices(torch.tensor([[1, 2, 3]]), QuantSpec(axis=1, group_size=2)).tolist()
        [[1, 2], [3, 3]]
    """
    if spec.granularity == "tensor":
        return x.reshape(1, -1)
    axis = _axis(spec, x.ndim)
    if spec.group_size is None:
        return x.movedim(axis, 0).unsqueeze(-1).flatten(1)
    last = x.movedim(axis, -1)
    short = -last.shape[-1] % spec.group_size
    if short:
        last = torch.cat([last, last[..., -1:].expand(*last.shape[:-1], short)], dim=-1)
    groups = last.reshape(*last.shape[:-1], -1, spec.group_size)
    return groups.movedim(-2, axis).flatten(0, -2)


def row_range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of each row of ``(channels, samples)``; NaN stays NaN.

    Example:
        >>> row_range(torch.tensor([[1.0, -2.0]]))
        (tensor([-2.]), tensor([1.]))
    """
    # Two reductions: torch.aminmax along a dimension takes 20 times as long on a CPU (torch 2.13).
    return rows.amin(dim=1), rows.amax(dim=1)


def tensor_range(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The smallest and largest value of each slice, each of shape ``scale_shape(x.shape, spec)``.

    Raises:
        ValueError: for an empty tensor.

    Example:
        >>> low, high = tensor_range(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), QuantSpec(axis=0))
        >>> low.tolist(), high.tolist()
        ([-2.0, 3.0], [1.0, 4.0])
    """
    if x.numel() == 0:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} is empty and has no range; skip it")
    low, high = row_range(slices(x.detach(), spec))
    shape = scale_shape(x.shape, spec)
    return low.reshape(shape), high.reshape(shape)


def grid(minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero-point as `choose_qparams`, unchecked: for each step of a training loop.

    A check would wait for the device. A NaN or an infinity in the range comes out as a NaN in
    the quantized tensor, so it is not hidden.
    """
    low = minimum.detach().float().clamp(max=0.0)
    high = maximum.detach().float().clamp(min=0.0)
    if spec.symmetric:
        scale = torch.maximum(-low, high) / (spec.qmax - spec.middle)
        return scale.clamp(min=SCALE_FLOOR), torch.full_like(scale, spec.middle, dtype=torch.int32)
    # Halves on both sides: exact, and high - low cannot overflow.
    scale = (high * 0.5 - low * 0.5) / ((spec.qmax - spec.qmin) * 0.5)
    scale = scale.clamp(min=SCALE_FLOOR)
    zero_point = torch.round(spec.qmin - low / scale).clamp(spec.qmin, spec.qmax)
    return scale, zero_point.nan_to_num(nan=spec.qmin).to(torch.int32)


def choose_qparams(minimum: Tensor, maximum: Tensor, spec: QuantSpec) -> QParams:
    """The finest grid that covers a range, widened to contain zero.

    Symmetric: ``amax / (qmax - middle)``, that is ``amax / 127`` for int8 and uint8, ``/ 7`` for
    int4, ``/ 448`` for fp8. Asymmetric: ``(max - min) / (qmax - qmin)`` with the zero-point
    ``qmin - min / scale`` rounded half to even (ONNX ``DynamicQuantizeLinear``).

    Args:
        minimum: smallest values, of the shape of the scales.
        maximum: largest values, of the same shape.
        spec: the form of the grid.

    Raises:
        ValueError: for NaN, infinities, or ``minimum > maximum``.

    Example:
        >>> q = choose_qparams(torch.tensor(-1.0), torch.tensor(2.54), QuantSpec())
        >>> round(q.scale.item(), 6), q.zero_point.item()
        (0.02, 0)
    """
    if minimum.shape != maximum.shape:
        raise ValueError(
            f"minimum has shape {tuple(minimum.shape)} but maximum {tuple(maximum.shape)}; give "
            "one of each a slice"
        )
    if bool(((minimum == math.inf) & (maximum == -math.inf)).any()):
        raise ValueError("the range is empty: nothing was observed; calibrate with data first")
    if not bool((torch.isfinite(minimum) & torch.isfinite(maximum)).all()):
        raise ValueError("the range holds NaN or infinity; look for them in the data or the model")
    if bool((minimum > maximum).any()):
        raise ValueError("a minimum is larger than its maximum; swap them")
    scale, zero_point = grid(minimum, maximum, spec)
    return QParams(scale=scale, zero_point=zero_point, spec=spec)


def _fit(scale: Tensor, shape: Sequence[int], spec: QuantSpec) -> None:
    expected = scale_shape(shape, spec)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"scales of shape {tuple(scale.shape)} do not fit a tensor of shape {tuple(shape)}, "
            f"{spec}: they must have shape {expected}"
        )


def _spread(values: Tensor, shape: Sequence[int], spec: QuantSpec) -> Tensor:
    """Views (per group: repeats) scales or zero-points so that they broadcast against ``shape``."""
    _fit(values, shape, spec)
    if spec.granularity == "tensor":
        return values
    axis = _axis(spec, len(shape))
    if spec.group_size is None:
        return values.view([-1 if d == axis else 1 for d in range(len(shape))])
    return values.repeat_interleave(spec.group_size, dim=axis).narrow(axis, 0, shape[axis])


def broadcast(qparams: QParams, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale and zero-point in a form that broadcasts against a tensor of ``shape``.

    Raises:
        ValueError: where the scales are not those of such a tensor.

    Example:
        >>> low, high = -torch.ones(3), torch.ones(3)
        >>> scale, _ = broadcast(choose_qparams(low, high, QuantSpec(axis=1)), (8, 3, 5))
        >>> tuple(scale.shape)
        (1, 3, 1)
    """
    spec = qparams.spec
    return _spread(qparams.scale, shape, spec), _spread(qparams.zero_point, shape, spec)


def quantize(x: Tensor, qparams: QParams, *, reciprocal: bool = False) -> Tensor:
    """``saturate(round(x / scale) + zero_point)``, half to even, in the dtype of `STORAGE`.

    The two forms differ by at most one step, and only where ``x / scale`` is a tie up to float32
    rounding. NaN has no place on an integer grid: the result is then undefined.

    Args:
        x: any shape that fits ``qparams``; computed in float32.
        qparams: the grid.
        reciprocal: ``False`` divides, as ONNX ``QuantizeLinear`` is specified and ONNX Runtime
            computes it. ``True`` multiplies by ``1 / scale``, as torch's native fake-quantize and
            TensorRT's kernels do.

    Example:
        >>> q = choose_qparams(torch.tensor(-127.0), torch.tensor(127.0), QuantSpec())
        >>> quantize(torch.tensor([0.5, 1.5, -300.0]), q).tolist()
        [0, 2, -128]
    """
    scale, zero_point = broadcast(qparams, x.shape)
    spec, steps = qparams.spec, x.float()
    steps = steps * (1.0 / scale) if reciprocal else steps / scale
    if not spec.is_float:
        steps = torch.round(steps) + zero_point
    return steps.clamp(spec.qmin, spec.qmax).to(STORAGE[spec.dtype])


def dequantize(q: Tensor, qparams: QParams) -> Tensor:
    """``(q - zero_point) * scale`` in float32.

    Example:
        >>> grid_of_one = choose_qparams(torch.tensor(-127.0), torch.tensor(127.0), QuantSpec())
        >>> dequantize(torch.tensor([-3], dtype=torch.int8), grid_of_one).tolist()
        [-3.0]
    """
    scale, zero_point = broadcast(qparams, q.shape)
    return (q.float() - zero_point) * scale


def fake_quantize_values(
    x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, *, native: bool | None = None
) -> Tensor:
    """`fake_quantize` on bare tensors, which it does not check: for modules, once a step.

    Args:
        x: float32, float16 or bfloat16.
        scale: float32, of shape ``scale_shape(x.shape, spec)``.
        zero_point: int32, of the same shape.
        spec: the form of the grid.
        native: use torch's operators where they exist (NaN then comes out as the lowest value), or
            quantkit's own, equal bit for bit; ``None``: torch's on devices where they are faster,
            that is not on a CPU. A graph under ``torch.compile`` or ``torch.export`` (which keeps
            the values, not the gradient) has quantkit's own.
    """
    if native is None:
        native = x.device.type not in {"cpu", "meta"}
    # torch.compile and torch.export know no symbolic shape of torch's operators, and fuse ours.
    native = native and not torch.compiler.is_compiling()
    if native and not spec.is_float and spec.group_size is None:
        _fit(scale, x.shape, spec)
        low, high = spec.qmin, spec.qmax
        if spec.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
        axis = _axis(spec, x.ndim)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)
    scale, zero_point = _spread(scale, x.shape, spec), _spread(zero_point, x.shape, spec)
    y: Tensor = StraightThrough.apply(x, scale, zero_point, spec)  # type: ignore[no-untyped-call]
    return y


def learned_fake_quantize(
    x: Tensor, scale: Tensor, lowest: Tensor | None, spec: QuantSpec, *, samples: int = 1
) -> Tensor:
    """`fake_quantize` on a grid that learns: gradients flow to ``scale`` and ``lowest`` as well.

    They are those of learned step size, scaled by ``1 / sqrt(n * qmax)``, with ``n`` the elements
    that share a scale, of activations in one sample (Esser et al. 2020, arXiv:1902.08153, section
    2.2). See `straight_through.LearnedStep`.

    Args:
        x: float32, float16 or bfloat16.
        scale: float32, of shape ``scale_shape(x.shape, spec)``; raised to `SCALE_FLOOR`.
        lowest: the value of the lowest code, of the same shape; ``None`` if ``spec`` is symmetric.
        spec: the form of the grid.
        samples: how many samples ``x`` holds; 1 for a weight.

    Example:
        >>> scale = torch.tensor(0.1, requires_grad=True)
        >>> y = learned_fake_quantize(torch.tensor([0.26, 99.0]), scale, None, QuantSpec())
        >>> [round(v, 4) for v in y.tolist()]
        [0.3, 12.7]
        >>> y.sum().backward()
        >>> round(scale.grad.item() * (127 * 2) ** 0.5, 3)  # 0.4 + 127; n is 2
        127.4
    """
    share = x.numel() // max(scale.numel() * samples, 1)
    weight = (max(share, 1) * max(spec.qmax - spec.middle, 1)) ** -0.5
    with torch.no_grad():
        step, zero_point = learned_grid(scale, lowest, spec)
    # The value of the floored step, with a gradient to the one that is learned.
    scale = _spread(scale + (step - scale.detach()), x.shape, spec)
    if lowest is not None:
        lowest = _spread(lowest, x.shape, spec)
    zero_point = _spread(zero_point, x.shape, spec)
    y: Tensor = LearnedStep.apply(x, scale, lowest, zero_point, spec, weight)  # type: ignore[no-untyped-call]
    return y


def learned_grid(scale: Tensor, lowest: Tensor | None, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero-point of a grid that learns: positive, and with zero on the grid.

    Example:
        >>> spec = QuantSpec(dtype="uint8", symmetric=False)
        >>> learned_grid(torch.tensor(0.5), torch.tensor(-1.1), spec)
        (tensor(0.5000), tensor(2, dtype=torch.int32))
    """
    scale = scale.detach().clamp(min=SCALE_FLOOR)
    if lowest is None:
        return scale, torch.full_like(scale, spec.middle, dtype=torch.int32)
    zero_point = torch.round(spec.qmin - lowest.detach() / scale).clamp(spec.qmin, spec.qmax)
    return scale, zero_point.nan_to_num(nan=spec.qmin).to(torch.int32)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``dequantize(quantize(x, reciprocal=True))`` in the dtype of ``x``, with a gradient.

    The gradient is straight-through: one inside the grid, zero where ``x`` is clipped (Bengio
    2013, arXiv:1308.3432). On GPUs integer grids are put on by torch's own operators.

    Example:
        >>> q = choose_qparams(torch.tensor(-12.7), torch.tensor(12.7), QuantSpec())
        >>> x = torch.tensor([0.26, 99.0], requires_grad=True)
        >>> y = fake_quantize(x, q)
        >>> y.sum().backward()
        >>> [round(v, 4) for v in y.tolist()], x.grad.tolist()
        ([0.3, 12.7], [1.0, 0.0])
    """
    return fake_quantize_values(x, qparams.scale, qparams.zero_point, qparams.spec)


def round_to_multiple(x: Tensor, step: Tensor) -> Tensor:
    """The nearest multiples of ``step``: a bias on the grid ``s_x * s_w`` of the sums it joins.

    Values that are more than 2³¹ steps, which no int32 bias holds, stay as they are.

    Args:
        x: ``(channels,)``.
        step: ``()`` or ``(channels,)``, positive.

    Example:
        >>> round_to_multiple(torch.tensor([0.26, -0.9]), torch.tensor(0.25)).tolist()
        [0.25, -1.0]
    """
    count = torch.round(x.detach().double() / step.double())
    fits = count.abs() < 2.0**31
    return torch.where(fits, count * step.double(), x.detach().double()).to(x.dtype)


def sqnr(reference: Tensor, approximation: Tensor) -> float:
    """Signal to quantization noise in dB: ``10 log10(sum(ref²) / sum((ref - approx)²))``.

    Infinite where the two are equal; summed in float64.

    Example:
        >>> round(sqnr(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0])), 6)
        20.0
    """
    if reference.shape != approximation.shape:
        raise ValueError(
            f"the reference has shape {tuple(reference.shape)} but the approximation "
            f"{tuple(approximation.shape)}; compare tensors of one shape"
        )
    signal = reference.detach().double()
    noise = float((signal - approximation.detach().double()).square().sum())
    power = float(signal.square().sum())
    if noise == 0.0:
        return math.inf
    return -math.inf if power == 0.0 else 10.0 * math.log10(power / noise)
