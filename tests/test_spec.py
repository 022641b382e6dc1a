"""QuantSpec and Scheme: frozen choices, checked at birth."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.spec import STORAGE_BITS, QuantSpec, Scheme


@pytest.mark.parametrize(
    ("spec", "qmin", "qmax", "middle"),
    [
        (QuantSpec(), -128, 127, 0),
        (QuantSpec(dtype="uint8"), 0, 255, 128),
        (QuantSpec(dtype="int4"), -8, 7, 0),
        (QuantSpec(dtype="fp8_e4m3"), -448, 448, 0),
        (QuantSpec(bits=7), -64, 63, 0),
        (QuantSpec(dtype="uint8", bits=7), 0, 127, 64),
        (QuantSpec(bits=2), -2, 1, 0),
    ],
    ids=str,
)
def test_the_grid_has_the_ends_of_its_format(
    spec: QuantSpec, qmin: int, qmax: int, middle: int
) -> None:
    assert (spec.qmin, spec.qmax, spec.middle) == (qmin, qmax, middle)


@given(st.sampled_from(["int8", "uint8", "int4"]), st.integers(2, 8))
def test_a_grid_of_b_bits_has_two_to_the_b_levels(dtype: Any, bits: int) -> None:
    if bits > STORAGE_BITS[dtype]:
        with pytest.raises(ValueError, match="bits must be from 2 to"):
            QuantSpec(dtype=dtype, bits=bits)
        return
    spec = QuantSpec(dtype=dtype, bits=bits)
    assert spec.qmax - spec.qmin + 1 == 2**bits
    assert spec.qmin <= spec.middle <= spec.qmax


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"dtype": "int3"}, "choose one of int8, uint8, int4, fp8_e4m3"),
        ({"group_size": 32}, "group_size needs an axis"),
        ({"axis": 0, "group_size": 0}, "group_size must be 1 or more"),
        ({"dtype": "fp8_e4m3", "symmetric": False}, "no zero-point"),
        ({"dtype": "fp8_e4m3", "bits": 8}, "bits applies to integer formats"),
        ({"bits": 1}, "bits must be from 2 to 8"),
    ],
    ids=str,
)
def test_a_spec_that_means_nothing_is_refused_at_birth(
    choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec(**choices)


def test_a_spec_is_frozen_hashable_and_equal_by_value() -> None:
    spec = QuantSpec(axis=0)
    with pytest.raises(FrozenInstanceError):
        spec.axis = 1  # type: ignore[misc]
    assert len({spec, QuantSpec(axis=0), QuantSpec(axis=1)}) == 2


@pytest.mark.parametrize(
    ("spec", "granularity", "text"),
    [
        (QuantSpec(), "tensor", "int8 symmetric per tensor"),
        (QuantSpec(axis=1, bits=7), "channel", "int8 (7 bits) symmetric per channel (axis 1)"),
        (
            QuantSpec(dtype="int4", axis=0, group_size=32, symmetric=False),
            "group",
            "int4 asymmetric per group of 32 (axis 0)",
        ),
    ],
)
def test_a_spec_says_what_it_is(spec: QuantSpec, granularity: str, text: str) -> None:
    assert (spec.granularity, str(spec)) == (granularity, text)


@pytest.mark.parametrize("weights", [None, QuantSpec(axis=0)])
@pytest.mark.parametrize("activations", [None, QuantSpec()])
def test_the_kind_of_a_scheme_is_which_part_is_none(
    weights: QuantSpec | None, activations: QuantSpec | None
) -> None:
    kinds = {
        (True, True): "weights and activations",
        (True, False): "weight-only",
        (False, True): "activation-only",
        (False, False): "none",
    }
    kind = Scheme(weights=weights, activations=activations).kind
    assert kind == kinds[weights is not None, activations is not None]


def test_activations_per_group_are_refused() -> None:
    with pytest.raises(ValueError, match="use per tensor"):
        Scheme(weights=None, activations=QuantSpec(axis=1, group_size=16))
