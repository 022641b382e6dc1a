"""Edits of a captured graph change its form and not its result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from quantkit.errors import CaptureError
from quantkit.graph.capture import capture
from quantkit.graph.edit import (
    Emitter,
    add_constant,
    constant,
    has_constant,
    readers,
    set_constant,
)
from quantkit.graph.functionalize import functionalize
from quantkit.graph.products import split_products

aten = torch.ops.aten


class Run(nn.Module):
    """A module that runs a function of its input, with one convolution at hand."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def module_of(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> fx.GraphModule:
    inputs = tuple(torch.randn(shape) for shape in shapes)
    return copy.deepcopy(capture(Run(function).eval(), inputs).module)


def names(module: fx.GraphModule) -> list[str]:
    return [
        node.target._schema.name.split("::")[-1]
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    ]


# --- in-place operators --------------------------------------------------------------------------


def skip_after_relu(m: Run, x: Tensor) -> Tensor:
    x = m.conv(x)
    y = F.relu_(x)
    return m.conv(y) + x  # the skip sees the ReLU, as pre-activation blocks rely on


def chained(m: Run, x: Tensor) -> Tensor:
    x = m.conv(x)
    before = x * 2
    x += before
    x.relu_().mul_(3)
    return x + before


def write_slice(m: Run, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, :2] = 0.5
    y[..., 0].mul_(3)
    return m.conv(y)


def write_part_of_part(m: Run, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 1:3][:, :, ::2].add_(x[:, 1:3][:, :, ::2])
    return y + y[:, :1]


def write_through_view(m: Run, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.view(-1, 4, 64).relu_()
    y.transpose(1, 2)[:, 0] = 1.0
    y.permute(0, 2, 3, 1).unsqueeze(0).clamp_(max=0.7)
    return m.conv(y)


def older_view(m: Run, x: Tensor) -> Tensor:
    y = x * 2
    flat, part = y.flatten(1), y.chunk(2, 1)[1]
    y.sigmoid_()
    return flat.sum(1) + part.flatten(1).sum(1)


def view_of_a_copy(m: Run, x: Tensor) -> Tensor:
    y = m.conv(x).transpose(1, 2)
    z = y.reshape(-1, 256).relu_()  # reshape had to copy: y keeps its values
    return y.flatten(1) + z


def only_the_view_goes_on(m: Run, x: Tensor) -> Tensor:
    return (x * 2).chunk(2, 1)[0].relu_() + 1


def write_input(m: Run, x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 0].fill_(0.0)
    x.view(-1).add_(1)
    return x


IN_PLACE = [
    skip_after_relu, chained, write_slice, write_part_of_part, write_through_view, older_view,
    view_of_a_copy, only_the_view_goes_on, write_input,
]  # fmt: skip


@pytest.mark.parametrize("function", IN_PLACE)
def test_functional_operators_compute_what_in_place_operators_did(
    function: Callable[..., Tensor],
) -> None:
    torch.manual_seed(0)
    model = Run(function).eval()
    module = copy.deepcopy(capture(model, (torch.randn(2, 4, 8, 8),)).module)
    assert any(name.endswith("_") for name in names(module))
    assert functionalize(module) > 0
    assert not any(name.endswith("_") for name in names(module))
    module.graph.lint()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 8, 8)
        torch.testing.assert_close(module(x.clone()), model(x.clone()), atol=0, rtol=0)


def test_each_in_place_operator_is_counted() -> None:
    assert functionalize(module_of(chained, (2, 4, 8, 8))) == 3
    assert functionalize(module_of(lambda m, x: m.conv(x).relu(), (2, 4, 8, 8))) == 0


def test_a_buffer_that_the_model_updates_is_still_updated() -> None:
    def counts(m: Run, x: Tensor) -> Tensor:
        m.count.add_(1)
        return m.conv(x) * m.count

    module = module_of(counts, (2, 4, 8, 8))
    assert functionalize(module) == 0
    module(torch.randn(2, 4, 8, 8))
    module(torch.randn(2, 4, 8, 8))
    assert module.get_buffer("count") == 2


def test_a_write_through_an_unknown_view_is_refused_with_its_place() -> None:
    def function(m: Run, x: Tensor) -> Tensor:
        y = m.conv(x)
        y.diagonal(0, 2, 3).relu_()
        return m.conv(y)

    module = module_of(function, (2, 4, 8, 8))
    with pytest.raises(CaptureError, match=r"relu_ writes in place through a view") as caught:
        functionalize(module)
    assert "\n" not in str(caught.value)
    assert "test_edit.py" in str(caught.value)
    assert "torch.cat or torch.where" in str(caught.value)


# --- products ------------------------------------------------------------------------------------

EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,kj->ki", (3, 4), (5, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bhid, bhjd -> bhij", (2, 4, 3, 8), (2, 4, 5, 8)),
    ("bqhd,bkhd->bhqk", (2, 3, 4, 8), (2, 5, 4, 8)),
    ("bhqk,bkhd->bqhd", (2, 4, 3, 5), (2, 5, 4, 8)),
    ("bhwc,cd->bhwd", (2, 3, 5, 4), (4, 6)),
    ("bchw,oc->bohw", (2, 4, 3, 5), (6, 4)),
]


@pytest.mark.parametrize(("equation", "one", "other"), EQUATIONS)
def test_an_einsum_that_is_a_product_becomes_a_matmul(
    equation: str, one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    a, b = torch.randn(one), torch.randn(other)
    model = Run(lambda m, a, b: torch.einsum(equation, a, b))
    module = capture(model, (a, b), dynamic_shapes=None).module
    assert names(module).count("matmul") == 1
    assert "einsum" not in names(module)
    torch.testing.assert_close(module(a, b), torch.einsum(equation, a, b))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ii->i", [(4, 4)]),
        ("bij,bij->b", [(2, 3, 4), (2, 3, 4)]),
        ("bi,bj,bk->bijk", [(2, 3), (2, 4), (2, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("bte,ehd->bthd", [(2, 3, 4), (4, 5, 6)]),
        ("ij,jk->i", [(3, 4), (4, 5)]),
    ],
)
def test_another_einsum_stays_as_it_is(equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = [torch.randn(shape) for shape in shapes]
    model = Run(lambda m, *x: torch.einsum(equation, *x))
    captured = capture(model, tuple(inputs), dynamic_shapes=None)
    assert split_products(captured.module) == 0
    torch.testing.assert_close(captured.module(*inputs), torch.einsum(equation, *inputs))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda m, c, a, b: torch.addmm(c, a, b), [(5,), (3, 4), (4, 5)]),
        (lambda m, c, a, b: torch.baddbmm(c, a, b), [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    ],
)
def test_an_added_product_becomes_a_matmul_and_an_add(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    inputs = tuple(torch.randn(shape) for shape in shapes)
    module = capture(Run(function), inputs, dynamic_shapes=None).module
    assert names(module) == ["matmul", "add"]
    torch.testing.assert_close(module(*inputs), function(None, *inputs))


def test_a_scaled_added_product_stays_as_it_is() -> None:
    inputs = torch.randn(5), torch.randn(3, 4), torch.randn(4, 5)
    model = Run(lambda m, c, a, b: torch.addmm(c, a, b, beta=2, alpha=3))
    module = capture(model, inputs, dynamic_shapes=None).module
    assert names(module) == ["addmm"]
    torch.testing.assert_close(module(*inputs), model(*inputs))


# --- constants and new nodes ---------------------------------------------------------------------


@pytest.fixture
def module() -> fx.GraphModule:
    return module_of(lambda m, x: m.conv(x) * m.count, (2, 4, 8, 8))


def node_of(module: fx.GraphModule, target: Any) -> fx.Node:
    return next(node for node in module.graph.nodes if node.target == target)


def test_a_constant_is_read_from_the_node_that_names_it(module: fx.GraphModule) -> None:
    assert constant(module, node_of(module, "conv.weight")) is module.get_parameter("conv.weight")
    assert constant(module, node_of(module, "count")) is module.get_buffer("count")
    assert constant(module, node_of(module, aten.conv2d.default)) is None
    assert constant(module, 3) is None


def test_a_new_value_stays_parameter_or_buffer_and_frozen_if_it_was(module: fx.GraphModule) -> None:
    module.get_parameter("conv.weight").requires_grad_(False)
    for path in ("conv.weight", "conv.bias", "count"):
        old = constant(module, node_of(module, path))
        assert old is not None
        set_constant(module, path, torch.ones_like(old))
    assert not module.get_parameter("conv.weight").requires_grad
    assert module.get_parameter("conv.bias").requires_grad
    assert module.get_buffer("count") == 1
    assert module(torch.ones(1, 4, 8, 8)).unique().tolist() == [5.0]


def test_a_new_constant_can_be_read_by_the_graph(module: fx.GraphModule) -> None:
    assert has_constant(module, "conv.weight")
    assert not has_constant(module, "conv.extra")
    multiply = node_of(module, aten.mul.Tensor)
    new = add_constant(module, "conv.extra", torch.full((), 7.0), before=multiply)
    multiply.args = (multiply.args[0], new)
    module.recompile()
    module.graph.lint()
    assert has_constant(module, "conv.extra")
    assert "conv.extra" in dict(module.named_parameters())
    x = torch.randn(1, 4, 8, 8)
    expected = F.conv2d(x, constant(module, node_of(module, "conv.weight"))) * 7
    bias = module.get_parameter("conv.bias").view(1, -1, 1, 1) * 7
    torch.testing.assert_close(module(x), expected + bias)


def test_readers_of_a_constant_are_counted_under_all_its_names(module: fx.GraphModule) -> None:
    weight = node_of(module, "conv.weight")
    assert readers(module, weight) == 1
    with module.graph.inserting_before(weight):
        again = module.graph.get_attr("conv.weight")
    Emitter(module.graph, node_of(module, aten.mul.Tensor))(aten.neg.default, weight)
    assert readers(module, weight) == 2
    assert readers(module, again) == 2


def test_an_emitted_node_has_shape_and_module_of_the_node_it_stands_before(
    module: fx.GraphModule,
) -> None:
    multiply = node_of(module, aten.mul.Tensor)
    emit = Emitter(module.graph, multiply, like=node_of(module, aten.conv2d.default))
    node = emit(aten.mean.dim, multiply.args[0], [2, 3])
    batch = emit.size(node, 0)
    assert node.meta["val"].shape[1:] == (4,)
    assert isinstance(batch, fx.Node)
    assert emit.size(node, 1) == 4
    assert next(reversed(node.meta["nn_module_stack"].values()))[0] == "conv"
