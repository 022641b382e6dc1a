"""Attention split into products: the same function, with nodes that can run in INT8."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from quantkit.graph.attention import split_attention
from quantkit.graph.capture import Capture, capture, recapture, set_training
from quantkit.workflow import prepare

aten = torch.ops.aten
DYNAMIC = torch.export.Dim.DYNAMIC


class Attention(nn.Module):
    """One call of scaled dot-product attention."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.settings)


def inputs(batch: int, length: int, keys: int, *, heads: int = 4, shared: int = 4,
           mask: str = "") -> tuple[Tensor, ...]:  # fmt: skip
    tensors = [torch.randn(batch, heads, length, 8)]
    tensors += [torch.randn(batch, shared, keys, 8) for _ in range(2)]
    if mask == "bool":
        allowed = torch.rand(batch, 1, length, keys) > 0.4
        allowed[..., 0] = True
        tensors.append(allowed)
    elif mask == "float":
        tensors.append(torch.randn(batch, heads, length, keys))
    return tuple(tensors)


def split(model: nn.Module, args: tuple[Tensor, ...]) -> Capture:
    """Captured with every batch and sequence dimension dynamic."""
    dims: Any = [{0: DYNAMIC, 2: DYNAMIC}] * 3 + [{0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}]
    captured = capture(model, args, dynamic_shapes=tuple(dims[: len(args)]))
    assert split_attention(captured.module) == 1
    captured.module.graph.lint()
    assert not targets(captured.module) & {aten.scaled_dot_product_attention.default}
    return captured


def targets(module: fx.GraphModule) -> set[Any]:
    return {node.target for node in module.graph.nodes}


@pytest.mark.parametrize(
    ("settings", "form"),
    [
        ({}, {}),
        ({"scale": 0.3}, {}),
        ({"is_causal": True}, {}),
        ({"enable_gqa": True}, {"heads": 8, "shared": 2}),
        ({"enable_gqa": True, "is_causal": True, "scale": 0.5}, {"heads": 4, "shared": 1}),
        ({}, {"mask": "bool"}),
        ({}, {"mask": "float"}),
    ],
)
def test_split_attention_equals_the_node_for_any_batch_and_sequence(
    settings: dict[str, Any], form: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Attention(**settings)
    captured = split(model, inputs(2, 6, 7, **form))
    for batch, length, keys in ((2, 6, 7), (3, 9, 5), (1, 4, 4), (2, 5, 11)):
        args = inputs(batch, length, keys, **form)
        torch.testing.assert_close(captured.module(*args), model(*args), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"is_causal": True}])
def test_split_attention_exports_again_with_dynamic_dimensions(settings: dict[str, Any]) -> None:
    captured = split(Attention(**settings), inputs(2, 6, 7))
    program = recapture(captured.module, captured.args, captured.kwargs, captured.dynamic_shapes)
    args = inputs(3, 9, 5)
    torch.testing.assert_close(program.module()(*args), captured.module(*args))


def test_split_attention_of_a_static_model_is_static() -> None:
    model = Attention(is_causal=True)
    captured = capture(model, inputs(2, 6, 7), dynamic_shapes=None)
    split_attention(captured.module)
    args = inputs(2, 6, 7)
    torch.testing.assert_close(captured.module(*args), model(*args))


@pytest.mark.parametrize("form", [{}, {"mask": "float"}])
def test_split_attention_has_the_gradients_of_the_node(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Attention()
    captured = split(model, inputs(2, 6, 7, **form))
    one = [tensor.requires_grad_() for tensor in inputs(2, 6, 7, **form)]
    other = [tensor.detach().clone().requires_grad_() for tensor in one]
    model(*one).square().sum().backward()
    captured.module(*other).square().sum().backward()
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4)


def test_a_row_that_is_masked_whole_gives_the_mean_of_all_values() -> None:
    captured = split(Attention(), inputs(2, 6, 7, mask="bool"))
    query, key, value, mask = inputs(2, 6, 7, mask="bool")
    mask[0, 0, 2] = False
    found = captured.module(query, key, value, mask)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, :, 2], value[0].mean(-2))


def test_a_row_masked_by_minus_infinity_but_for_one_key_gives_that_keys_value() -> None:
    captured = split(Attention(), inputs(2, 6, 7, mask="float"))
    query, key, value, mask = inputs(2, 6, 7, mask="float")
    mask[0, :, 2] = float("-inf")
    mask[0, :, 2, 3] = 0.0
    found = captured.module(query, key, value, mask)
    torch.testing.assert_close(found[0, :, 2], value[0, :, 3])


def test_both_products_read_plain_tensors_and_the_scale_is_on_the_query() -> None:
    captured = split(Attention(), inputs(2, 6, 7))
    products = [n for n in captured.module.graph.nodes if n.target is aten.matmul.default]
    scaled, transposed = products[0].args
    assert scaled.target is aten.mul.Tensor
    assert scaled.args[1] == pytest.approx(8**-0.5)
    assert transposed.target is aten.transpose.int
    assert products[1].args[0].target is aten.softmax.int


def test_dropout_of_attention_is_drawn_in_training_and_not_in_evaluation() -> None:
    model = Attention(dropout_p=0.5)
    captured = split(model, inputs(2, 6, 7))
    args = inputs(2, 6, 7)
    torch.testing.assert_close(captured.module(*args), Attention()(*args), atol=2e-6, rtol=1e-5)
    set_training(captured.module, True)
    torch.manual_seed(0)
    first = captured.module(*args)
    assert not torch.equal(first, captured.module(*args))
    torch.manual_seed(0)
    assert torch.equal(first, captured.module(*args))


def test_split_nodes_keep_the_path_of_their_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)

    qmodel = prepare(Outer(), "int8_ptq", example_inputs=(torch.randn(2, 4, 6, 32),))
    assert qmodel.plan.quantized == ("attention/matmul", "attention/matmul_1")


def test_a_module_without_attention_is_left_alone() -> None:
    captured = capture(nn.Linear(8, 8), (torch.randn(2, 8),))
    before = captured.module.code
    assert split_attention(captured.module) == 0
    assert captured.module.code == before


class Multihead(nn.Module):
    """PyTorch's own attention layer."""

    def __init__(self, *, weights: bool, mask: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.weights, self.mask = weights, mask

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[1], x.shape[1]).triu(1) - 1.0 if self.mask else None
        out: Tensor = self.attention(x, x, x, need_weights=self.weights, attn_mask=mask)[0]
        return out


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_pytorchs_own_attention_layer_is_quantized_in_all_its_forms(
    weights: bool, mask: bool
) -> None:
    torch.manual_seed(0)
    model = Multihead(weights=weights, mask=mask).eval()
    qmodel = prepare(model, "int8_ptq", example_inputs=(torch.randn(2, 24, 64),))
    kinds = [d.kind.value for d in qmodel.plan.decisions if d.quantized]
    assert kinds == ["linear", "matmul", "matmul", "linear"]
    roles = [t for t in qmodel.plan.tensors if t.role == "activation"]
    assert len(roles) == 6  # the input, Q, K, V, softmax, and what the heads give
    qmodel.simulate(False)
    x = torch.randn(3, 24, 64)
    torch.testing.assert_close(qmodel(x), model(x), atol=2e-6, rtol=1e-5)
