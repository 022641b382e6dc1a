"""The arithmetic, against ONNX Runtime, against torch, and against what it promises."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from quantkit.numerics import (
    SCALE_FLOOR,
    STORAGE,
    QParams,
    broadcast,
    choose_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_values,
    quantize,
    round_to_multiple,
    scale_shape,
    slices,
    sqnr,
    tensor_range,
)
from quantkit.spec import QuantSpec

SHAPE = (3, 6)
SPECS = [
    QuantSpec(),
    QuantSpec(symmetric=False),
    QuantSpec(bits=7, axis=0),
    QuantSpec(axis=1),
    QuantSpec(axis=-1, symmetric=False),
    QuantSpec(dtype="uint8"),
    QuantSpec(dtype="uint8", axis=0, symmetric=False),
    QuantSpec(dtype="int4"),
    QuantSpec(dtype="int4", axis=1, group_size=4),
    QuantSpec(dtype="int4", axis=0, group_size=2, symmetric=False),
    QuantSpec(axis=1, group_size=6),
    QuantSpec(dtype="fp8_e4m3"),
    QuantSpec(dtype="fp8_e4m3", axis=1),
]
INTEGER = [spec for spec in SPECS if not spec.is_float]
#: What torch's own operators compute.
NATIVE = [spec for spec in INTEGER if spec.group_size is None]

each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)
few = settings(max_examples=12, deadline=None, derandomize=True)


@st.composite
def tensors(draw: st.DrawFn, count: int = math.prod(SHAPE)) -> Tensor:
    """Values of one magnitude, from the smallest scale to the largest float, with some zeros."""
    magnitude = draw(st.sampled_from([1e-20, 1e-5, 0.1, 1.0, 6.0, 1e4, 3e38]))
    unit = st.floats(-1.0, 1.0, width=32)
    values = draw(st.lists(unit, min_size=count, max_size=count))
    return (torch.tensor(values) * magnitude).reshape(SHAPE)


@st.composite
def ties(draw: st.DrawFn, spec: QuantSpec) -> tuple[Tensor, QParams]:
    """A grid and values on, beside and between its halves, beyond both its ends."""
    qparams = choose_qparams(*tensor_range(draw(tensors()), spec), spec)
    halves = st.integers(2 * spec.qmin - 8, 2 * spec.qmax + 8)
    nudge = st.sampled_from([0.0, 0.0, 2**-22, -(2**-22), 0.1, -0.3])
    steps = [draw(halves) / 2 * (1 + draw(nudge)) for _ in range(math.prod(SHAPE))]
    scale, _ = broadcast(qparams, SHAPE)
    x = torch.tensor(steps).reshape(SHAPE) * scale
    return x.clamp(-3e38, 3e38), qparams


def grid_of(x: Tensor, spec: QuantSpec) -> QParams:
    return choose_qparams(*tensor_range(x, spec), spec)


# --- choosing the grid ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "scale", "zero_point"),
    [
        (QuantSpec(), 2.54 / 127, 0),
        (QuantSpec(bits=7), 2.54 / 63, 0),
        (QuantSpec(dtype="uint8"), 2.54 / 127, 128),
        (QuantSpec(dtype="uint8", bits=7), 2.54 / 63, 64),
        (QuantSpec(dtype="int4"), 2.54 / 7, 0),
        (QuantSpec(dtype="fp8_e4m3"), 2.54 / 448, 0),
        (QuantSpec(dtype="uint8", symmetric=False), 3.54 / 255, 72),
        (QuantSpec(symmetric=False), 3.54 / 255, 72 - 128),
    ],
    ids=str,
)
def test_the_grid_is_the_documented_one(spec: QuantSpec, scale: float, zero_point: int) -> None:
    qparams = choose_qparams(torch.tensor(-1.0), torch.tensor(2.54), spec)
    assert qparams.scale.item() == pytest.approx(scale, rel=1e-6)
    assert qparams.zero_point.item() == zero_point


@few
@given(tensors())
def test_the_grid_is_that_of_torch_ao(x: Tensor) -> None:
    from torch.ao.quantization.observer import MinMaxObserver

    pairs: list[tuple[QuantSpec, dict[str, Any]]] = [
        (QuantSpec(dtype="uint8", symmetric=False), {"dtype": torch.quint8}),
        (QuantSpec(symmetric=False), {"dtype": torch.qint8}),
    ]
    for spec, choices in pairs:
        if x.abs().max() > 1e38:  # torch.ao overflows there: max - min is infinite
            continue
        theirs = MinMaxObserver(qscheme=torch.per_tensor_affine, **choices)
        theirs(x)
        scale, zero_point = theirs.calculate_qparams()
        ours = grid_of(x, spec)
        assert ours.scale == scale
        # Ours rounds qmin - min / scale as ONNX does, theirs min / scale: a tie may go either way.
        assert abs(ours.zero_point - zero_point).item() <= 1


@each_spec
def test_an_all_zero_channel_has_the_smallest_scale_and_no_nan(spec: QuantSpec) -> None:
    x = torch.ones(SHAPE)
    x[1], x[:, 2] = 0.0, 0.0
    for values in (x, torch.zeros(SHAPE)):
        qparams = grid_of(values, spec)
        assert bool((qparams.scale >= SCALE_FLOOR).all())
        restored = dequantize(quantize(values, qparams), qparams)
        assert bool(restored.isfinite().all())
        assert bool((restored[values == 0] == 0).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_wider_than_the_largest_float_does_not_overflow(symmetric: bool) -> None:
    x = torch.tensor([-3.3e38, 0.0, 3.3e38])
    qparams = grid_of(x, QuantSpec(symmetric=symmetric))
    assert sqnr(x, fake_quantize(x, qparams)) > 40


@pytest.mark.parametrize(
    ("minimum", "maximum", "message"),
    [
        (math.nan, 1.0, "NaN or infinity"),
        (0.0, math.inf, "NaN or infinity"),
        (-math.inf, 0.0, "NaN or infinity"),
        (2.0, 1.0, "larger than its maximum"),
        (math.inf, -math.inf, "nothing was observed"),
    ],
)
def test_a_range_that_is_none_is_refused(minimum: float, maximum: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_qparams(torch.tensor(minimum), torch.tensor(maximum), QuantSpec())


def test_minimum_and_maximum_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        choose_qparams(torch.zeros(3), torch.ones(4), QuantSpec(axis=0))


@pytest.mark.parametrize(
    ("scale", "zero_point", "spec", "message"),
    [
        (torch.ones(()).double(), torch.zeros(()).int(), QuantSpec(), "float32"),
        (torch.ones(()), torch.zeros(()), QuantSpec(), "int32"),
        (torch.ones(2), torch.zeros(3).int(), QuantSpec(axis=0), "one zero_point a scale"),
        (torch.ones(2), torch.zeros(2).int(), QuantSpec(), "scale_shape"),
        (torch.ones(()), torch.zeros(()).int(), QuantSpec(axis=0), "scale_shape"),
        (torch.zeros(()), torch.zeros(()).int(), QuantSpec(), "finite and positive"),
        (torch.tensor(math.nan), torch.zeros(()).int(), QuantSpec(), "finite and positive"),
        (torch.ones(()), torch.tensor(200).int(), QuantSpec(), "from -128 to 127"),
        (torch.ones(()), torch.tensor(1).int(), QuantSpec(dtype="fp8_e4m3"), "from 0 to 0"),
    ],
)
def test_qparams_that_mean_nothing_are_refused_at_birth(
    scale: Tensor, zero_point: Tensor, spec: QuantSpec, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        QParams(scale=scale, zero_point=zero_point, spec=spec)


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("group_size", [None, 1, 2, 3, 4, 100])
def test_ranges_are_those_of_each_slice(axis: int, group_size: int | None) -> None:
    spec = QuantSpec(axis=axis, group_size=group_size)
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(axis))
    low, high = tensor_range(x, spec)
    assert tuple(low.shape) == scale_shape(x.shape, spec)
    if group_size is None:
        others = [d for d in range(3) if d != axis % 3]
        assert torch.equal(low, x.amin(others))
        assert torch.equal(high, x.amax(others))
        return
    parts = x.split(group_size, dim=axis)
    assert torch.equal(low, torch.stack([part.amin(axis) for part in parts], dim=axis))
    assert torch.equal(high, torch.stack([part.amax(axis) for part in parts], dim=axis))


@each_spec
def test_rows_of_slices_are_in_the_order_of_the_scales(spec: QuantSpec) -> None:
    x = torch.arange(18.0).reshape(SHAPE)
    low, _ = tensor_range(x, spec)
    assert torch.equal(slices(x, spec).amin(1), low.flatten())


@each_spec
def test_scales_broadcast_to_the_elements_of_their_slice(spec: QuantSpec) -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    qparams = grid_of(x, spec)
    scale, zero_point = (part.expand(SHAPE) for part in broadcast(qparams, SHAPE))
    assert torch.equal(slices(scale, spec)[:, 0], qparams.scale.flatten())
    low, high = tensor_range(scale, spec)
    assert torch.equal(low, high)
    assert zero_point.shape == x.shape


@pytest.mark.parametrize(
    ("scale_of", "shape"), [((4,), (3, 5)), ((3, 2), (3, 9)), ((3,), ())], ids=str
)
def test_scales_of_another_shape_are_refused(
    scale_of: tuple[int, ...], shape: Sequence[int]
) -> None:
    spec = QuantSpec(axis=0) if len(scale_of) == 1 else QuantSpec(axis=1, group_size=3)
    ones = torch.ones(scale_of)
    qparams = choose_qparams(-ones, ones, spec)
    for function in (quantize, dequantize, fake_quantize):
        with pytest.raises(ValueError, match=r"must have shape|has no axis"):
            function(torch.zeros(tuple(shape)), qparams)


def test_an_empty_tensor_has_no_range() -> None:
    with pytest.raises(ValueError, match="empty"):
        tensor_range(torch.zeros(0, 3), QuantSpec())


# --- what quantization promises -------------------------------------------------------------------


@each_spec
@few
@given(data=st.data())
def test_putting_a_tensor_on_its_grid_twice_changes_nothing(
    spec: QuantSpec, data: st.DataObject
) -> None:
    x, qparams = data.draw(ties(spec))
    once = fake_quantize(x, qparams)
    assert torch.equal(fake_quantize(once, qparams), once)
    restored = dequantize(quantize(x, qparams), qparams)
    assert torch.equal(dequantize(quantize(restored, qparams), qparams), restored)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.granularity == "tensor"], ids=str)
@few
@given(data=st.data())
def test_quantization_keeps_the_order(spec: QuantSpec, data: st.DataObject) -> None:
    x, qparams = data.draw(ties(spec))
    ordered = x.flatten().sort().values
    for reciprocal in (False, True):
        q = quantize(ordered, qparams, reciprocal=reciprocal).float()
        assert bool((q.diff() >= 0).all())


@pytest.mark.parametrize("spec", INTEGER, ids=str)
@few
@given(x=tensors())
def test_inside_the_range_the_error_is_at_most_half_a_step(spec: QuantSpec, x: Tensor) -> None:
    qparams = grid_of(x, spec)
    scale, _ = broadcast(qparams, SHAPE)
    # x / scale (or x * (1 / scale)) carries at most two float32 roundings and the scale itself
    # one, each 2**-24 relative, so a value of up to 255 steps may be taken for one that lies
    # 255 * 3 * 2**-24 steps beside it; the product q * scale rounds once more.
    bound = scale.double() * (0.5 + 255 * 4 * 2**-24)
    for restored in (
        dequantize(quantize(x, qparams), qparams),
        dequantize(quantize(x, qparams, reciprocal=True), qparams),
        fake_quantize(x, qparams),
    ):
        assert bool(((x.double() - restored.double()).abs() <= bound).all())


@few
@given(x=tensors())
def test_the_error_of_fp8_is_at_most_a_sixteenth(x: Tensor) -> None:
    qparams = grid_of(x, QuantSpec(dtype="fp8_e4m3"))
    error = (x.double() - dequantize(quantize(x, qparams), qparams).double()).abs()
    # 3 bits of mantissa: half a unit in the last place is 2**-4 of the value; below the smallest
    # normal 2**-6 steps are 2**-9, half of that is 2**-10.
    bound = torch.maximum(x.double().abs() * 2**-4, qparams.scale.double() * 2**-10)
    assert bool((error <= bound * (1 + 2**-20)).all())


@each_spec
@few
@given(data=st.data())
def test_zero_is_represented_exactly(spec: QuantSpec, data: st.DataObject) -> None:
    _, qparams = data.draw(ties(spec))
    zero = torch.zeros(SHAPE)
    for reciprocal in (False, True):
        q = quantize(zero, qparams, reciprocal=reciprocal)
        assert torch.equal(dequantize(q, qparams), zero)
    assert torch.equal(fake_quantize(zero, qparams), zero)


@each_spec
@few
@given(data=st.data())
def test_dividing_and_multiplying_by_the_reciprocal_differ_only_at_ties(
    spec: QuantSpec, data: st.DataObject
) -> None:
    x, qparams = data.draw(ties(spec))
    divided = quantize(x, qparams).float()
    multiplied = quantize(x, qparams, reciprocal=True).float()
    differs = divided != multiplied
    scale, zero_point = broadcast(qparams, SHAPE)
    steps = (x.double() / scale.double())[differs]
    if spec.is_float:  # the tie is the middle between the two neighbours
        tie = ((divided.double() + multiplied.double()) / 2)[differs]
        assert bool((divided.double() - multiplied.double())[differs].abs().le(32).all())
    else:
        tie = steps.floor() + 0.5
        assert bool((divided - multiplied).abs().le(1).all())
    assert bool(((steps - tie).abs() <= steps.abs() * 2**-22).all())
    assert zero_point.dtype == torch.int32


@each_spec
def test_quantized_tensors_have_the_storage_dtype(spec: QuantSpec) -> None:
    x = torch.linspace(-9, 9, 18).reshape(SHAPE)
    q = quantize(x, grid_of(x / 2, spec))
    assert q.dtype == STORAGE[spec.dtype]
    assert (int(q.float().min()), int(q.float().max())) == (spec.qmin, spec.qmax)


# --- ONNX Runtime ---------------------------------------------------------------------------------

_ONNX: dict[str, tuple[int, Any]] = {
    "int8": (TensorProto.INT8, np.int8),
    "uint8": (TensorProto.UINT8, np.uint8),
    "int4": (TensorProto.INT4, ml_dtypes.int4),
    "fp8_e4m3": (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
}


@functools.cache
def onnx_session(spec: QuantSpec) -> Any:
    """ONNX Runtime on QuantizeLinear, then DequantizeLinear, as written in the specification."""
    import onnxruntime as ort

    kind = _ONNX[spec.dtype][0]
    axis: dict[str, Any] = {} if spec.axis is None else {"axis": spec.axis}
    if spec.group_size is not None:
        axis["block_size"] = spec.group_size
    grid_shape = [None] * len(scale_shape(SHAPE, spec))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, grid_shape),
        helper.make_tensor_value_info("zero_point", kind, grid_shape),
    ]
    outputs = [
        helper.make_tensor_value_info("q", kind, SHAPE),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **axis),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "qdq", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    # Else Q followed by DQ is folded away.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_onnx(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """``q`` as float (where numpy can hold it) and ``dequantize(q)`` by ONNX Runtime."""
    import onnxruntime as ort

    spec = qparams.spec
    kind, dtype = _ONNX[spec.dtype]
    zero_point = qparams.zero_point.numpy().astype(dtype)
    if spec.dtype in ("int8", "uint8"):
        q, y = onnx_session(spec).run(
            None, {"x": x.numpy(), "scale": qparams.scale.numpy(), "zero_point": zero_point}
        )
        return torch.from_numpy(q), torch.from_numpy(y)
    if spec.dtype == "fp8_e4m3":
        zero_point = zero_point.view(np.uint8)
    else:
        # ONNX Runtime reads two int4 from a byte, low half first, out of a buffer that Python
        # describes as one byte an element: the second half of it is never read.
        halves = np.zeros((2 * zero_point.size,), np.uint8)
        halves[: zero_point.size] = zero_point.astype(np.uint8).flatten() & 0xF
        packed = halves[0::2] | halves[1::2] << 4
        zero_point = packed.reshape(zero_point.shape)
    feeds = {
        "x": ort.OrtValue.ortvalue_from_numpy(x.numpy()),
        "scale": ort.OrtValue.ortvalue_from_numpy(qparams.scale.numpy()),
        "zero_point": ort.OrtValue.ortvalue_from_numpy_with_onnx_type(zero_point, kind),
    }
    (y,) = onnx_session(spec).run_with_ort_values(["y"], feeds)
    restored = torch.from_numpy(y.numpy())
    return restored, restored


#: ONNX has no 7-bit form (the clamp is ours), and blocks must fill the axis.
_IN_ONNX = [
    spec
    for spec in SPECS
    if spec.bits is None
    and (spec.group_size is None or SHAPE[spec.axis or 0] % spec.group_size == 0)
] + [
    QuantSpec(dtype="int4", axis=1, group_size=3),
    QuantSpec(dtype="int4", axis=1, group_size=2, symmetric=False),
]


@pytest.mark.parametrize("spec", _IN_ONNX, ids=str)
@few
@given(data=st.data())
def test_quantize_and_dequantize_equal_onnx_runtime_bit_for_bit(
    spec: QuantSpec, data: st.DataObject
) -> None:
    x, qparams = data.draw(ties(spec))
    q, y = run_onnx(x, qparams)
    ours = quantize(x, qparams)
    assert torch.equal(dequantize(ours, qparams), y)
    if q.dtype == ours.dtype:
        assert torch.equal(ours, q)


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", NATIVE, ids=str)
@few
@given(data=st.data())
def test_the_reciprocal_form_equals_torch_bit_for_bit(spec: QuantSpec, data: st.DataObject) -> None:
    x, qparams = data.draw(ties(spec))
    native = fake_quantize(x, qparams)
    assert torch.equal(dequantize(quantize(x, qparams, reciprocal=True), qparams), native)


@pytest.mark.parametrize("spec", NATIVE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@few
@given(data=st.data())
def test_our_values_and_gradients_equal_torch_bit_for_bit(
    spec: QuantSpec, dtype: torch.dtype, data: st.DataObject
) -> None:
    x, qparams = data.draw(ties(spec))
    x = x.clamp(-6e4, 6e4).to(dtype)
    upstream = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for native in (True, False):
        leaf = x.clone().requires_grad_()
        y = fake_quantize_values(leaf, qparams.scale, qparams.zero_point, spec, native=native)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad))
    (torch_y, torch_grad), (our_y, our_grad) = results
    assert torch_y.dtype == our_y.dtype == dtype
    assert torch.equal(torch_y, our_y)
    assert torch_grad is not None
    assert our_grad is not None
    assert torch.equal(torch_grad, our_grad)


@pytest.mark.parametrize("spec", [s for s in SPECS if s not in NATIVE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_groups_and_fp8_pass_the_gradient_where_nothing_is_clipped(
    spec: QuantSpec, dtype: torch.dtype
) -> None:
    base = torch.linspace(-1, 1, 18).reshape(SHAPE)
    qparams = grid_of(base, spec)
    x = (base * torch.tensor([3.0, 1.0, 0.5]).view(3, 1)).to(dtype).requires_grad_()
    y = fake_quantize(x, qparams)
    assert y.dtype == dtype
    y.sum().backward()
    scale, zero_point = broadcast(qparams, SHAPE)
    steps = x.detach().float() * (1.0 / scale)
    inside = steps if spec.is_float else steps.round() + zero_point
    expected = ((inside >= spec.qmin) & (inside <= spec.qmax)).to(dtype)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)
    assert 0 < expected.sum() < expected.numel()


@few
@given(x=tensors(), step=st.sampled_from([1e-9, 3e-4, 0.25, 7.0, 1e3]))
def test_rounding_to_multiples_moves_by_half_a_step_and_is_idempotent(
    x: Tensor, step: float
) -> None:
    steps = torch.tensor(step)
    rounded = round_to_multiple(x, steps)
    # Half a step, and the float32 that the multiple is stored in.
    bound = step / 2 + x.double().abs() * 2**-23
    assert bool(((rounded.double() - x.double()).abs() <= bound).all())
    beyond = x.double().abs() / step > 2.0**31
    assert torch.equal(rounded[beyond], x[beyond])
    assert torch.equal(round_to_multiple(rounded, steps), rounded)


# --- sqnr -----------------------------------------------------------------------------------------


def test_sqnr_of_a_uniform_signal_gains_six_decibel_a_bit() -> None:
    x = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ratios = [
        sqnr(x, fake_quantize(x, grid_of(x, QuantSpec(bits=bits)))) for bits in (4, 5, 6, 7, 8)
    ]
    gains = [after - before for before, after in itertools.pairwise(ratios)]
    # Signal 1/3, noise step²/12 with step = 1 / (2**(bits-1) - 1): 20 log10 of the steps.
    expected = [20 * math.log10((2**b - 1) / (2 ** (b - 1) - 1)) for b in (4, 5, 6, 7)]
    assert gains == pytest.approx(expected, abs=0.2)


def test_sqnr_is_infinite_only_for_equal_tensors() -> None:
    x = torch.tensor([1.0, 2.0])
    assert sqnr(x, x) == math.inf
    assert sqnr(torch.zeros(2), torch.zeros(2)) == math.inf
    assert sqnr(torch.zeros(2), x) == -math.inf
    assert math.isnan(sqnr(x, torch.tensor([1.0, math.nan])))
    with pytest.raises(ValueError, match="one shape"):
        sqnr(x, torch.zeros(3))
