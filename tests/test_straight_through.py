"""Gradients of grids that learn: those of the papers, and torch's own where it has them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit import numerics
from quantkit.fake_quantize import FakeQuantize
from quantkit.numerics import learned_fake_quantize, learned_grid, scale_shape
from quantkit.spec import QuantSpec

SHAPE = (4, 6, 5)
SYMMETRIC = [
    QuantSpec(),
    QuantSpec(dtype="uint8"),
    QuantSpec(dtype="int4"),
    QuantSpec(axis=1),
    QuantSpec(dtype="int4", axis=0),
]
ASYMMETRIC = [
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(dtype="int4", symmetric=False),
    QuantSpec(dtype="uint8", bits=4, symmetric=False, axis=1),
]
GROUPED = QuantSpec(dtype="int4", axis=1, group_size=4)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scales(spec: QuantSpec, seed: int = 3) -> Tensor:
    """Such that about a third of a normal tensor is clipped."""
    shape = scale_shape(SHAPE, spec)
    return (0.5 + normal(seed, shape).abs()) / (spec.qmax - spec.middle)


def weight(x: Tensor, scale: Tensor, spec: QuantSpec) -> float:
    """``1 / sqrt(n qmax)``, by the paper's words, of a weight."""
    return 1.0 / math.sqrt(x.numel() // scale.numel() * (spec.qmax - spec.middle))


@pytest.mark.parametrize("spec", SYMMETRIC, ids=str)
def test_values_and_gradients_of_a_learned_step_are_those_of_torch(spec: QuantSpec) -> None:
    x, upstream = normal(0), normal(1)
    scale = scales(spec)
    ours = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
    y = learned_fake_quantize(ours[0], ours[1], None, spec)
    y.backward(upstream)
    theirs = [x.clone().requires_grad_(), scale.reshape(-1).clone().requires_grad_()]
    zero = torch.full_like(theirs[1], spec.middle, requires_grad=True)
    factor = weight(x, scale, spec)
    if spec.axis is None:
        native = torch._fake_quantize_learnable_per_tensor_affine(
            theirs[0], theirs[1], zero, spec.qmin, spec.qmax, factor
        )
    else:
        native = torch._fake_quantize_learnable_per_channel_affine(
            theirs[0], theirs[1], zero, spec.axis, spec.qmin, spec.qmax, factor
        )
    native.backward(upstream)
    assert torch.equal(y, native)
    assert ours[0].grad is not None
    assert ours[1].grad is not None
    assert torch.equal(ours[0].grad, theirs[0].grad)  # type: ignore[arg-type]
    assert 0 < (ours[0].grad == 0).sum() < x.numel()
    torch.testing.assert_close(
        ours[1].grad.reshape(-1), theirs[1].grad, rtol=1e-4, atol=1e-5 * factor
    )


def lsq_plus(x: Tensor, scale: Tensor, lowest: Tensor, spec: QuantSpec) -> Tensor:
    """LSQ+, equation 4, with a straight-through round and autograd for all else.

    As torch's operators do, and unlike the paper, what still rounds to an end is not clipped.
    """
    steps, last = (x - lowest) / scale, spec.qmax - spec.qmin
    codes = torch.round(steps).detach()
    passed = steps + codes - steps.detach()
    return (
        torch.where((codes >= 0) & (codes <= last), passed, codes.clamp(0, last)) * scale + lowest
    )


@pytest.mark.parametrize("spec", ASYMMETRIC, ids=str)
def test_gradients_of_an_asymmetric_grid_are_those_of_lsq_plus(spec: QuantSpec) -> None:
    x, upstream = normal(0), normal(1)
    scale = scales(spec)
    steps = (spec.qmax - spec.qmin) // 3
    lowest = -steps * scale  # zero is on the grid, so our rounding of the zero-point is none
    spread = [-1 if d == spec.axis else 1 for d in range(3)]
    leaves = [t.clone().requires_grad_() for t in (x, scale, lowest)]
    y = learned_fake_quantize(leaves[0], leaves[1], leaves[2], spec)
    y.backward(upstream)
    expected = [t.clone().requires_grad_() for t in (x, scale, lowest)]
    wide = expected[1:] if spec.axis is None else [t.view(spread) for t in expected[1:]]
    reference = lsq_plus(expected[0], wide[0], wide[1], spec)
    reference.backward(upstream)
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-5)
    factor = weight(x, scale, spec)
    assert leaves[0].grad is not None
    torch.testing.assert_close(leaves[0].grad, expected[0].grad, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(leaves[1:], expected[1:], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, factor * theirs.grad, rtol=1e-3, atol=1e-3 * factor)


def test_the_gradient_of_a_step_counts_what_shares_it_in_one_sample() -> None:
    """Of an activation 30 elements a sample, of a weight all 120."""
    grads = []
    for samples in (1, 4):
        scale = torch.tensor(0.01, requires_grad=True)
        learned_fake_quantize(normal(0), scale, None, QuantSpec(), samples=samples).sum().backward()
        assert scale.grad is not None
        grads.append(scale.grad)
    torch.testing.assert_close(grads[1], 2.0 * grads[0])


@pytest.mark.parametrize("spec", [*SYMMETRIC, *ASYMMETRIC, GROUPED], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_values_are_those_of_the_grid_it_will_settle_to(
    spec: QuantSpec, dtype: torch.dtype
) -> None:
    x = normal(0).to(dtype).requires_grad_()
    scale = scales(spec).requires_grad_()
    lowest = None if spec.symmetric else (-0.3 * scales(spec, 5).abs() * 7).requires_grad_()
    y = learned_fake_quantize(x, scale, lowest, spec)
    step, zero = learned_grid(scale, lowest, spec)
    qparams = numerics.QParams(scale=step, zero_point=zero, spec=spec)
    assert torch.equal(y, numerics.fake_quantize(x.detach(), qparams))
    y.sum().backward()
    for leaf in (x, scale) if lowest is None else (x, scale, lowest):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert bool(leaf.grad.isfinite().all())


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(-1.0, 10.0, width=32),
    lowest=st.floats(-1e6, 1e6, width=32),
    dtype=st.sampled_from(["uint8", "int8", "int4"]),
)
def test_whatever_an_optimizer_makes_of_it_the_grid_is_valid(
    scale: float, lowest: float, dtype: str
) -> None:
    spec = QuantSpec(dtype=dtype, symmetric=False)  # type: ignore[arg-type]
    step, zero = learned_grid(torch.tensor(scale), torch.tensor(lowest), spec)
    numerics.QParams(scale=step, zero_point=zero, spec=spec)  # checks it


def test_a_scale_that_an_optimizer_made_negative_comes_back() -> None:
    x = normal(0)
    scale = torch.tensor(-0.5, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        (
            learned_fake_quantize(x, scale, None, QuantSpec(dtype="int4")) - x
        ).square().sum().backward()
        optimizer.step()
    assert scale.item() > 0.1


@pytest.mark.parametrize("spec", [SYMMETRIC[2], ASYMMETRIC[1], SYMMETRIC[4]], ids=str)
def test_learning_finds_a_grid_of_less_error_than_the_range(spec: QuantSpec) -> None:
    x = normal(0, (64, 32))
    quantizer = FakeQuantize(spec, shape=scale_shape(x.shape, spec))
    quantizer.set_qparams(numerics.choose_qparams(*numerics.tensor_range(x, spec), spec))
    quantizer.quantize_values()
    before = (quantizer(x) - x).square().sum().item()
    quantizer.learn()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum().backward()
        optimizer.step()
    learned = quantizer(x).detach()
    quantizer.settle()
    assert not list(quantizer.parameters())
    assert torch.equal(quantizer(x), learned)
    assert (quantizer(x) - x).square().sum().item() < 0.9 * before


@pytest.mark.parametrize("spec", [SYMMETRIC[0], ASYMMETRIC[0]], ids=str)
def test_learning_begins_where_calibration_ended(spec: QuantSpec) -> None:
    x = normal(0)
    quantizer = FakeQuantize(spec, shape=())
    quantizer.set_qparams(numerics.choose_qparams(x.min(), x.max(), spec))
    quantizer.quantize_values()
    before, qparams = quantizer(x), quantizer.qparams
    quantizer.learn()
    assert torch.equal(quantizer(x), before)
    assert torch.equal(quantizer.qparams.scale, qparams.scale)
    assert torch.equal(quantizer.qparams.zero_point, qparams.zero_point)
    assert "learning" in repr(quantizer)


@pytest.mark.parametrize("spec", [SYMMETRIC[0], ASYMMETRIC[0]], ids=str)
def test_states_of_grids_that_learn_and_do_not_load_into_either(spec: QuantSpec) -> None:
    def made(*, learning: bool, amax: float) -> FakeQuantize:
        quantizer = FakeQuantize(spec, shape=())
        low, high = torch.tensor(-0.2 * amax), torch.tensor(amax)
        quantizer.set_qparams(numerics.choose_qparams(low, high, spec))
        if learning:
            quantizer.learn()
        return quantizer

    for source in (True, False):
        for target in (True, False):
            one, other = made(learning=source, amax=3.0), made(learning=target, amax=1.0)
            other.load_state_dict(one.state_dict())
            assert other.learning == source
            assert torch.equal(other.qparams.scale, one.qparams.scale)
            assert torch.equal(other.qparams.zero_point, one.qparams.zero_point)


def test_a_learned_grid_follows_set_qparams_and_stays_in_float32() -> None:
    spec = ASYMMETRIC[0]
    quantizer = FakeQuantize(spec, shape=())
    quantizer.set_qparams(numerics.choose_qparams(torch.tensor(-1.0), torch.tensor(1.0), spec))
    quantizer.learn()
    parameter = quantizer.scale
    new = numerics.choose_qparams(torch.tensor(-2.0), torch.tensor(6.0), spec)
    quantizer.set_qparams(new)
    assert quantizer.scale is parameter
    assert torch.equal(quantizer.qparams.zero_point, new.zero_point)
    quantizer.half()
    assert quantizer.scale is parameter
    assert parameter.dtype == torch.float32
    assert torch.equal(quantizer.qparams.scale, new.scale)
