"""Schemes, and overrides by name and operator."""

from __future__ import annotations

import pytest
from abstract_graphs import (
    ACTIVATION_ONLY,
    BOTH,
    IMAGE,
    INT8,
    TOKENS,
    WEIGHT_ONLY,
    Net,
    basic_block,
    grid_of,
    reads,
    recipe,
)

from quantkit.graph.abstract import Kind


def test_a_transposed_convolution_stays_float_and_says_why() -> None:
    net = Net(x=IMAGE)
    net.conv("up", "x", kind=Kind.CONV_TRANSPOSE)
    plan = net.place()
    assert plan.tensors == ()
    assert "transposed convolutions in float" in plan.decision("up").reason


def test_weight_only_quantizes_no_activation_and_no_convolution() -> None:
    net = Net(x=TOKENS)
    net.matmul("bmm", net.linear("fc", "x"), net.transpose("t", "x"))
    net.conv("conv", net.op(Kind.MOVE, "image", "bmm", shape=IMAGE))
    plan = net.place(recipe(WEIGHT_ONLY))
    assert [(t.tensor, t.role) for t in plan.tensors] == [("fc.w", "weight")]
    assert "both of its inputs are activations" in plan.decision("bmm").reason
    assert "not in convolutions" in plan.decision("conv").reason
    assert plan.decision("fc").reason == "weight-only"


def test_activation_only_quantizes_no_weight() -> None:
    plan = basic_block().place(recipe(ACTIVATION_ONLY))
    assert {t.role for t in plan.tensors} == {"activation"}
    assert reads(plan)["in"] == {("conv1", 0), ("add", 1)}


@pytest.mark.parametrize("kind", ["linear", "matmul", "conv"])
def test_groups_cut_the_weight_along_the_dimension_of_the_sums(kind: str) -> None:
    net = Net(x=IMAGE if kind == "conv" else TOKENS)
    if kind == "linear":
        net.linear("layer", "x")
    elif kind == "conv":
        net.conv("layer", "x")
    else:
        net.matmul("layer", "x", net.constant("w", (64, 32)))
    grouped = {"weights": {"dtype": "int4", "per": "group", "group_size": 32}}
    plan = net.place(recipe(grouped | {"activations": INT8}))
    weight = plan.tensor("layer", 1)
    assert weight is not None
    assert (weight.spec.axis, weight.spec.group_size) == (0 if kind == "matmul" else 1, 32)


def test_a_matmuls_weight_has_its_channels_on_the_last_dimension() -> None:
    net = Net(x=TOKENS)
    net.matmul("layer", "x", net.constant("w", (64, 32)))
    weight = net.place().tensor("layer", 1)
    assert weight is not None
    assert weight.spec.axis == 1


def chain() -> Net:
    net = Net(x=TOKENS)
    x = "x"
    for name in ("block.0.fc", "block.1.fc", "head"):
        x = net.op(Kind.POINTWISE, f"{name}/gelu", net.linear(name, x))
    return net


def test_the_first_and_the_last_layer_are_quantized_and_the_last_output_is_not() -> None:
    plan = chain().place()
    assert plan.quantized == ("block.0.fc", "block.1.fc", "head")
    assert set(reads(plan)) == {"x", "block.0.fc/gelu", "block.1.fc/gelu"}


def test_an_override_by_glob_leaves_layers_in_float() -> None:
    plan = chain().place(recipe(overrides=[{"module": "block.*", "scheme": None}]))
    assert plan.quantized == ("head",)
    assert plan.decision("block.0.fc").reason == "override module=block.*: left in float"


def test_of_two_overrides_the_last_wins() -> None:
    overrides = [
        {"operator": "linear", "scheme": None},
        {"module": "head", "scheme": WEIGHT_ONLY},
        {"module": "block.0.*", "operator": "linear", "scheme": BOTH},
    ]
    plan = chain().place(recipe(overrides=overrides))
    assert plan.quantized == ("block.0.fc", "head")
    assert grid_of(plan, "head", 0) is None
    assert grid_of(plan, "head", 1) == "head.weight"
    assert plan.unused == ()


def test_an_override_has_a_scheme_of_its_own() -> None:
    int4 = {"weights": {"dtype": "int4", "per": "group", "group_size": 32}, "activations": None}
    plan = chain().place(recipe(overrides=[{"module": "head", "scheme": int4}]))
    weight = plan.tensor("head", 1)
    assert weight is not None
    assert str(weight.spec) == "int4 symmetric per group of 32 (axis 1)"
    assert plan.decision("head").reason == "override module=head"


def test_an_override_that_matches_nothing_is_reported() -> None:
    overrides = [{"module": "hed", "scheme": None}, {"operator": "conv", "scheme": None}]
    plan = chain().place(recipe(overrides=overrides))
    assert plan.unused == ("module=hed", "operator=conv")
    assert "warning: the override module=hed matched no layer" in str(plan)


def test_an_override_with_an_empty_scheme_leaves_a_layer_in_float() -> None:
    empty = {"weights": None, "activations": None}
    plan = chain().place(recipe(overrides=[{"module": "head", "scheme": empty}]))
    assert plan.decision("head").reason == "override module=head: left in float"
    assert plan.quantized == ("block.0.fc", "block.1.fc")


def test_an_override_may_quantize_what_does_not_pay() -> None:
    net = Net(x=(None, 4))
    net.linear("tiny", "x", 4)
    assert net.place().quantized == ()
    plan = net.place(recipe(overrides=[{"module": "tiny", "scheme": BOTH}]))
    assert plan.quantized == ("tiny",)


def test_an_override_cannot_quantize_what_has_no_meaning() -> None:
    net = Net(a=(None, 24, 64), b=(None, 64, 24))
    net.matmul("bmm", "a", "b")
    plan = net.place(recipe(overrides=[{"module": "bmm", "scheme": WEIGHT_ONLY}]))
    assert plan.quantized == ()
    assert plan.decision("bmm").reason == (
        "override module=bmm: weight-only: both of its inputs are activations"
    )
