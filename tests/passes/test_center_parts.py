"""The arithmetic of centering, without a model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from quantkit import numerics
from quantkit.graph.abstract import Kind
from quantkit.graph.capture import capture
from quantkit.numerics import QParams
from quantkit.passes._center_parts import bounds, carries, input_sums, pads, shift_bounds
from quantkit.spec import QuantSpec


@given(
    scale=st.floats(2.0**-13, 8.0, width=32),
    zero=st.integers(-128, 127),
    parts=st.lists(st.integers(-400, 400), min_size=1),
)
def test_a_shifted_tensor_has_the_same_codes_on_the_symmetric_grid(
    scale: float, zero: int, parts: list[int]
) -> None:
    # Not at ties, where float error decides.
    x = (torch.tensor(parts, dtype=torch.float64) + 0.3) * scale
    shift = -zero * scale
    old, new = (
        QParams(
            scale=torch.tensor(scale, dtype=torch.float32),
            zero_point=torch.tensor(z, dtype=torch.int32),
            spec=QuantSpec(symmetric=symmetric),
        )
        for z, symmetric in ((zero, False), (0, True))
    )
    codes = [numerics.quantize(v.float(), q) for v, q in ((x, old), (x - shift, new))]
    assert torch.equal(*codes)


class Run(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = eval(self.text, {"F": F, "torch": torch, "x": x, "w": torch.ones(4, 4, 2)})
        return result


def captured(text: str) -> tuple[fx.GraphModule, fx.Node]:
    """A graph that computes an expression, and its last operator."""
    module = capture(Run(text), (torch.randn(2, 4, 9),)).module
    return module, next(n for n in reversed(module.graph.nodes) if n.op == "call_function")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("F.relu(x)", (0.0, None)),
        ("F.relu6(x)", (0.0, 6.0)),
        ("F.hardtanh(x)", (-1.0, 1.0)),
        ("F.hardtanh(x, -0.5, 2.0)", (-0.5, 2.0)),
        ("x.clamp(max=0.5)", (None, 0.5)),
        ("x.clamp(-0.25)", (-0.25, None)),
        ("torch.clamp_min(x, 0.1)", (0.1, None)),
        ("torch.clamp_max(x, 0.1)", (None, 0.1)),
    ],
)
def test_a_clip_of_a_shifted_tensor_is_the_shifted_clip(
    text: str, expected: tuple[float | None, float | None]
) -> None:
    module, node = captured(text)
    x = torch.randn(3, 4, 9) * 4
    before = module(x)
    assert bounds(node) == expected
    assert carries(node)
    shift_bounds(node, 0.75)
    module.recompile()
    torch.testing.assert_close(module(x - 0.75), before - 0.75)


def test_a_clip_to_a_tensor_has_no_bounds_that_are_known() -> None:
    _, node = captured("torch.clamp(x, x.mean(), x.amax())")
    assert bounds(node) is None
    assert not carries(node)


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("F.conv1d(x, w)", [0, 0]),
        ("F.conv1d(x, w, padding=3)", [3, 3]),
        ("F.conv1d(x, w, padding='valid')", [0, 0]),
        ("F.conv1d(x, w, padding='same', dilation=2)", [1, 1]),
        ("F.conv1d(x, torch.ones(4, 4, 3), padding='same')", [1, 1]),
        ("F.avg_pool1d(x, 3, 1, 1)", [1, 1]),
    ],
)
def test_pads_are_those_that_the_operator_puts_around_its_input(
    text: str, amounts: list[int]
) -> None:
    _, node = captured(text)
    taps = () if "pool" in text else (3,) if "4, 3" in text else (2,)
    assert pads(node, taps) == amounts


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("F.avg_pool1d(x, 3, 1, 1)", True),
        ("F.avg_pool1d(x, 3, 2, 1, True)", False),
        ("F.avg_pool1d(x, 3, 2, 1, True, False)", True),
        ("F.avg_pool2d(x, 3, 1, 0, divisor_override=2)", False),
        ("x.flatten(1)", True),
        ("F.pad(x, (1, 1))", True),
        ("F.gelu(x)", False),
        ("x.mean()", False),
    ],
)
def test_what_carries_a_shift_is_known(text: str, does: bool) -> None:
    assert carries(captured(text)[1]) is does


def test_sums_over_inputs_are_what_a_layer_makes_of_ones() -> None:
    weight = torch.randn(6, 2, 3, 3)
    ones = torch.ones(1, 4, 3, 3)
    torch.testing.assert_close(
        input_sums(Kind.CONV, weight).float(), F.conv2d(ones, weight, groups=2).flatten()
    )
    weight = torch.randn(3, 5, 4)
    torch.testing.assert_close(
        input_sums(Kind.MATMUL, weight).float(), torch.ones(3, 1, 5) @ weight
    )
