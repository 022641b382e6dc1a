"""The fake-quantize operator: the values of the module, to the bit, and one node in a graph."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quantkit import numerics
from quantkit.operators import OPERATOR, Call, is_call, spec_arguments
from quantkit.spec import QuantSpec

SPECS = [
    QuantSpec(),
    QuantSpec(axis=0),
    QuantSpec(axis=-1),
    QuantSpec(bits=4),
    QuantSpec(dtype="uint8", symmetric=False),
    QuantSpec(dtype="fp8_e4m3", axis=0),
    QuantSpec(dtype="int4", axis=1, group_size=4),
]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=str)


def grid_of(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    low, high = numerics.tensor_range(x, spec)
    qparams = numerics.choose_qparams(low, high, spec)
    return qparams.scale, qparams.zero_point


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_values_are_those_of_the_simulation_to_the_bit(
    spec: QuantSpec, dtype: torch.dtype
) -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = grid_of(x.float(), spec)
    beyond = 1.5 * x
    expected = numerics.fake_quantize_values(beyond, *grid, spec)
    result = OPERATOR(beyond, *grid, *spec_arguments(spec))
    assert result.dtype is dtype
    assert torch.equal(result, expected)


@given(
    st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=20),
    st.floats(2.0**-20, 2.0**20, width=32),
)
def test_any_value_on_any_grid_is_that_of_the_simulation(values: list[float], step: float) -> None:
    x, scale = torch.tensor(values), torch.tensor(step)
    zero = torch.zeros((), dtype=torch.int32)
    result = OPERATOR(x, scale, zero, *spec_arguments(QuantSpec()))
    assert torch.equal(result, numerics.fake_quantize_values(x, scale, zero, QuantSpec()))


@each_spec
def test_it_keeps_what_pytorch_asks_of_an_operator(spec: QuantSpec) -> None:
    x = torch.randn(6, 8)
    arguments = (x, *grid_of(x, spec), *spec_arguments(spec))
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    assert set(torch.library.opcheck(OPERATOR, arguments, test_utils=tests).values()) == {"SUCCESS"}


class OnGrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.1))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = OPERATOR(x, self.scale, self.zero_point, *spec_arguments(QuantSpec(axis=None)))
        return y + 1


def test_a_program_has_one_node_of_it_with_a_dynamic_batch_even_when_decomposed() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(OnGrid(), (torch.randn(4, 3),), dynamic_shapes=dynamic)
    calls = [node for node in program.run_decompositions().graph.nodes if is_call(node)]
    assert [Call.of(node.args).spec for node in calls] == [QuantSpec()]
    x = torch.randn(7, 3)
    assert torch.equal(program.module(check_guards=False)(x), OnGrid()(x))


@each_spec
def test_its_arguments_are_read_back_as_the_spec(spec: QuantSpec) -> None:
    x = torch.randn(6, 8)
    scale, zero_point = grid_of(x, spec)
    call = Call.of((x, scale, zero_point, *spec_arguments(spec)))
    assert call.spec == spec
    assert torch.equal(call.qparams.scale, scale)
