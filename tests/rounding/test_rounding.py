"""The contract of every rounding: weights on the grid, of their shape, near what they were."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantkit import numerics, plugins
from quantkit.interfaces import Rounding
from quantkit.numerics import QParams
from quantkit.spec import QuantSpec

NAMES = plugins.names_of("rounding", Rounding)
SPECS = [
    QuantSpec(),
    QuantSpec(axis=0),
    QuantSpec(axis=1),
    QuantSpec(axis=0, bits=7),
    QuantSpec(axis=0, symmetric=False),
    QuantSpec(dtype="uint8", axis=0, symmetric=False),
    QuantSpec(dtype="int4", axis=1, group_size=16),
    QuantSpec(dtype="fp8_e4m3", axis=0),
]


def rounding(name: str) -> Rounding:
    return plugins.find("rounding", name, Rounding)()


def grid_of(weight: Tensor, spec: QuantSpec) -> QParams:
    return numerics.choose_qparams(*numerics.tensor_range(weight, spec), spec)


def on_grid(weight: Tensor, qparams: QParams) -> Tensor:
    return numerics.dequantize(numerics.quantize(weight, qparams), qparams)


def weights(seed: int = 0) -> Tensor:
    """Two-dimensional, with rows of very different sizes, a row of zeros and an outlier."""
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed))
    weight *= torch.logspace(-3, 1, 12).view(-1, 1)
    weight[3] = 0.0
    weight[5, 7] = 40.0
    return weight


@pytest.mark.parametrize("name", NAMES)
def test_a_rounding_is_a_frozen_value_with_defaults(name: str) -> None:
    found = rounding(name)
    assert dataclasses.is_dataclass(found)
    assert found == rounding(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.setting = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rounded_weights_lie_on_the_grid_and_stay_there(name: str, spec: QuantSpec) -> None:
    weight = weights()
    qparams = grid_of(weight, spec)
    found = rounding(name).round(weight, qparams)
    assert found.shape == weight.shape
    assert torch.equal(on_grid(found, qparams), found)
    assert torch.equal(rounding(name).round(found, qparams), found)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_moves_by_less_than_a_step(name: str, spec: QuantSpec) -> None:
    weight = weights()
    qparams = grid_of(weight, spec)
    moved = (rounding(name).round(weight, qparams) - weight).abs()
    if spec.is_float:  # E4M3 has three bits of mantissa, and steps of 2**-9 below 2**-6
        step = torch.maximum(weight.abs() / 8, qparams.scale.view(-1, 1) * 2**-9)
    else:
        step = _spread(qparams.scale, qparams, weight)
    assert (moved <= step * (1 + 1e-5)).all()


def _spread(scale: Tensor, qparams: QParams, like: Tensor) -> Tensor:
    """Each element's own scale."""
    spec = qparams.spec
    if spec.axis is None:
        return scale.expand_as(like)
    if spec.group_size is not None:
        return scale.repeat_interleave(spec.group_size, dim=spec.axis)
    shape = [1] * like.dim()
    shape[spec.axis] = -1
    return scale.view(shape).expand_as(like)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_weights_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    weight = weights().to(dtype)
    found = rounding(name).round(weight, grid_of(weight.float(), QuantSpec(axis=0)))
    assert found.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_given_are_not_changed_and_carry_no_gradient(name: str) -> None:
    weight = weights().requires_grad_()
    before = weight.detach().clone()
    found = rounding(name).round(weight, grid_of(before, QuantSpec(axis=0)))
    assert torch.equal(weight.detach(), before)
    assert not found.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero_and_what_lies_beyond_the_grid_goes_to_its_end(name: str) -> None:
    qparams = QParams(scale=torch.tensor(0.1), zero_point=torch.tensor(0).int(), spec=QuantSpec())
    found = rounding(name).round(torch.tensor([0.0, 100.0, -100.0]), qparams)
    torch.testing.assert_close(found, torch.tensor([0.0, 12.7, -12.8]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(SPECS), st.sampled_from(NAMES))
def test_the_result_depends_on_weights_and_grid_alone(
    seed: int, spec: QuantSpec, name: str
) -> None:
    weight = weights(seed)
    qparams = grid_of(weight, spec)
    torch.manual_seed(seed % 7)
    first = rounding(name).round(weight, qparams)
    torch.manual_seed(seed % 5 + 10)
    assert torch.equal(rounding(name).round(weight, qparams), first)


def test_nearest_has_the_least_error_of_each_weight_and_rounds_half_to_even() -> None:
    weight = weights()
    qparams = grid_of(weight, QuantSpec(axis=0))
    error = (rounding("nearest").round(weight, qparams) - weight).abs()
    step = qparams.scale.view(-1, 1)
    for other in (-1, 1):
        neighbour = on_grid(weight, qparams) + other * step
        assert (error <= (neighbour - weight).abs() + 1e-7).all()
    unit = QParams(scale=torch.tensor(1.0), zero_point=torch.tensor(0).int(), spec=QuantSpec())
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert rounding("nearest").round(halves, unit).tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]
