"""The step of integer sums, and room in 32 bits for the bias that joins them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.numerics import QParams
from quantkit.spec import QuantSpec
from quantkit.sums import bias_step, room_for_bias

CHANNELS = QuantSpec(axis=0)
positive = st.floats(2.0**-30, 1e3, width=32)


def grid(*scales: float, spec: QuantSpec = CHANNELS) -> QParams:
    scale = torch.tensor(scales if spec.axis is not None else scales[0], dtype=torch.float32)
    return QParams(scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), spec=spec)


@given(
    activation=positive,
    weights=st.lists(positive, min_size=3, max_size=3),
    biases=st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3),
)
def test_a_bias_fits_32_bits_and_no_scale_falls(
    activation: float, weights: list[float], biases: list[float]
) -> None:
    x, w, bias = grid(activation, spec=QuantSpec()), grid(*weights), torch.tensor(biases)
    roomy = room_for_bias(x, w, bias)
    step = bias_step(x, roomy, bias)
    assert step is not None
    assert bool((bias.double().abs() / step.double() < 2.0**31).all())
    assert bool((roomy.scale >= w.scale).all())


def test_a_grid_with_room_is_returned_as_it_is() -> None:
    weight = grid(0.1, 0.2)
    assert room_for_bias(grid(0.5, spec=QuantSpec()), weight, torch.ones(2)) is weight


def test_sums_without_one_integer_step_have_none() -> None:
    x, bias = grid(0.5, spec=QuantSpec()), torch.ones(2)
    assert bias_step(x, grid(0.1, 0.2, 0.3), bias) is None
    assert bias_step(grid(0.5, 0.5), grid(0.1, 0.2), bias) is None
    assert bias_step(x, grid(0.1, spec=QuantSpec(dtype="fp8_e4m3")), bias) is None
