"""The plan is a value: it prints, compares, and goes to JSON and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from abstract_graphs import BOTH, IMAGE, Net, recipe

from quantkit.graph.abstract import Kind
from quantkit.graph.plan import Decision, Edge, Placement


@pytest.fixture
def plan() -> Placement:
    net = Net(x=IMAGE)
    x = net.op(Kind.RELU, "relu", net.conv("stem", "x"))
    y = net.op(Kind.ADD, "add", net.conv("conv", x), x)
    net.conv("head", y, 2)
    grouped = {"weights": {"dtype": "int4", "per": "group", "group_size": 16}}
    overrides = [
        {"module": "conv", "scheme": BOTH | grouped},
        {"module": "nothing", "scheme": None},
    ]
    return net.place(recipe(overrides=overrides, concat="shared"))


def test_a_plan_prints_each_layer_with_its_reason_and_each_activation_with_its_grid(
    plan: Placement,
) -> None:
    assert str(plan).splitlines() == [
        "Plan of recipe test: 2 of 3 layers quantized",
        "  layer  kind  runs       why",
        "  stem   conv  quantized  weights and activations",
        "  conv   conv  quantized  override module=conv",
        "  add    add   quantized  fuses into conv; reads its skip branch in INT8",
        "  head   conv  float      2 channels, below the 16 of an INT8 tensor-core tile",
        "",
        "  activation  grid  form                       why",
        "  x           own   int8 symmetric per tensor  input of stem",
        "  relu        own   int8 symmetric per tensor  input of conv; skip branch of add",
        "warning: the override module=nothing matched no layer",
    ]


def test_a_plan_names_the_grid_that_a_tensor_shares() -> None:
    net = Net(x=IMAGE)
    up = net.op(Kind.UPSAMPLE, "up", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.conv("b", up)
    lines = [line.split() for line in str(net.place()).splitlines()]
    assert ["up", "relu"] in [line[:2] for line in lines]


def test_a_plan_goes_to_json_and_back(plan: Placement) -> None:
    text = plan.to_json()
    assert Placement.from_json(text) == plan
    assert set(json.loads(text)) == {"recipe", "tensors", "decisions", "unused"}
    assert "\n" not in text


def test_a_plan_without_anything_goes_to_json_and_back_and_prints() -> None:
    empty = Placement(recipe="none", tensors=(), decisions=())
    assert Placement.from_json(empty.to_json()) == empty
    assert str(empty).startswith("Plan of recipe none: 0 of 0 layers quantized")


def test_a_plan_is_frozen(plan: Placement) -> None:
    with pytest.raises(FrozenInstanceError):
        plan.recipe = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan.tensors[0].grid = "other"  # type: ignore[misc]


def test_a_plan_finds_what_an_input_reads(plan: Placement) -> None:
    tensor = plan.tensor("add", 1)
    assert tensor is not None
    assert (tensor.tensor, tensor.edges) == ("relu", (Edge("conv", 0), Edge("add", 1)))
    assert plan.tensor("add", 0) is None
    assert plan.grids["relu"] == (tensor,)


def test_adds_are_decided_on_but_are_not_counted_as_layers(plan: Placement) -> None:
    assert plan.quantized == ("stem", "conv")
    assert plan.decision("add") == Decision(
        op="add",
        kind=Kind.ADD,
        quantized=True,
        reason="fuses into conv; reads its skip branch in INT8",
    )


def test_an_unknown_layer_is_named_with_those_that_are_known(plan: Placement) -> None:
    with pytest.raises(LookupError, match="says nothing of 'fc'; it knows: stem, conv, add, head"):
        plan.decision("fc")
