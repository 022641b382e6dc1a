"""Where quantizers stand: layers, residual adds, what commutes; each on a graph made for it."""

from __future__ import annotations

import pytest
from abstract_graphs import (
    BOTH,
    IMAGE,
    INT8,
    TOKENS,
    Net,
    basic_block,
    grid_of,
    reads,
    recipe,
)

from quantkit.graph.abstract import Kind
from quantkit.graph.plan import Edge


def test_a_layer_has_its_input_and_its_weight_quantized_and_not_its_output() -> None:
    net = Net(x=IMAGE)
    net.op(Kind.RELU, "relu", net.conv("conv", "x"))
    plan = net.place()
    assert reads(plan) == {"x": {("conv", 0)}}
    weight = plan.tensor("conv", 1)
    assert weight is not None
    assert (weight.tensor, weight.grid, weight.role) == ("conv.w", "conv.weight", "weight")
    assert str(weight.spec) == "int8 symmetric per channel (axis 0)"


def test_a_tensor_with_several_readers_has_one_quantizer() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("stem", "x"))
    net.conv("a", y)
    net.conv("b", y)
    net.op(Kind.POINTWISE, "gelu", y)
    plan = net.place(outputs=("a", "b", "gelu"))
    assert reads(plan)["relu"] == {("a", 0), ("b", 0)}
    assert grid_of(plan, "gelu") is None


def test_layers_that_share_a_weight_share_its_quantizer() -> None:
    net = Net(x=TOKENS)
    first = net.linear("fc", "x")
    net.linear("fc_1", first, weight="fc.w")
    weights = [t for t in net.place().tensors if t.role == "weight"]
    assert [(t.tensor, t.edges) for t in weights] == [("fc.w", (Edge("fc", 1), Edge("fc_1", 1)))]


def test_one_tensor_wanted_in_two_forms_has_two_grids_of_two_names() -> None:
    net = Net(x=TOKENS)
    y = net.op(Kind.NORM, "norm", "x")
    net.linear("a", y)
    net.linear("b", y)
    other = {"module": "b", "scheme": BOTH | {"activations": INT8 | {"bits": 7}}}
    plan = net.place(recipe(overrides=[other]), outputs=("a", "b"))
    assert reads(plan)["norm"] == {("a", 0), ("b", 0)}
    assert grid_of(plan, "a") != grid_of(plan, "b")


def test_a_name_that_is_taken_is_not_given_to_a_second_grid() -> None:
    net = Net(x=TOKENS)
    y = net.op(Kind.NORM, "norm", "x")
    z = net.op(Kind.NORM, "norm.2", "x")
    for name, source in (("a", y), ("b", y), ("c", z)):
        net.linear(name, source)
    other = {"module": "b", "scheme": BOTH | {"activations": INT8 | {"bits": 7}}}
    plan = net.place(recipe(overrides=[other]), outputs=("a", "b", "c"))
    assert len({grid_of(plan, op) for op in "abc"}) == 3


def test_nothing_stands_between_convolution_batch_norm_and_relu() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.op(Kind.BATCH_NORM, "bn", net.conv("a", "x")))
    net.conv("b", y)
    plan = net.place()
    assert reads(plan) == {"x": {("a", 0)}, "relu": {("b", 0)}}


def test_an_identity_skip_reuses_the_grid_of_the_blocks_input() -> None:
    plan = basic_block().place()
    assert reads(plan)["in"] == {("conv1", 0), ("add", 1)}
    assert grid_of(plan, "add", 0) is None
    decision = plan.decision("add")
    assert decision.quantized
    assert decision.reason == "fuses into conv2; reads its skip branch in INT8"


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("norms", [True, False])
def test_a_projections_output_is_the_quantized_skip_whenever_it_is_computed(
    when: str, norms: bool
) -> None:
    plan = basic_block(project=when, norms=norms).place()
    assert grid_of(plan, "add", 1) == ("project.bn" if norms else "project")
    assert grid_of(plan, "add", 0) is None
    assert "fuses into conv2" in plan.decision("add").reason


def test_a_projection_is_the_skip_when_the_add_names_it_first() -> None:
    net = Net(x=IMAGE)
    x = net.op(Kind.RELU, "in", net.conv("stem", "x"))
    skip = net.conv("project", x, kernel=1)
    net.op(Kind.ADD, "add", skip, net.conv("conv2", net.conv("conv1", x)))
    plan = net.place()
    assert (grid_of(plan, "add", 0), grid_of(plan, "add", 1)) == ("project", None)


def test_a_projection_behind_an_average_pool_is_still_the_skip() -> None:
    net = Net(x=IMAGE)  # ResNet-D
    x = net.op(Kind.RELU, "in", net.conv("stem", "x"))
    y = net.conv("conv2", net.op(Kind.RELU, "mid", net.conv("conv1", x)))
    skip = net.conv("project", net.op(Kind.AVERAGE_POOL, "pool", x), kernel=1)
    net.op(Kind.ADD, "add", y, skip)
    plan = net.place()
    assert (grid_of(plan, "add", 0), grid_of(plan, "add", 1)) == (None, "project")
    assert (grid_of(plan, "pool"), grid_of(plan, "project")) == ("in", "pool")


def test_the_skip_may_be_the_first_input_of_the_add() -> None:
    net = Net(x=IMAGE)
    x = net.op(Kind.RELU, "in", net.conv("stem", "x"))
    net.op(Kind.ADD, "add", x, net.conv("conv", x))
    assert (grid_of(net.place(), "add", 0), grid_of(net.place(), "add", 1)) == ("in", None)


def test_a_skip_through_a_max_pool_reads_the_grid_before_it() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("stem", "x")))
    net.op(Kind.ADD, "add", net.conv("conv2", net.conv("conv1", y)), y)
    assert reads(net.place())["relu"] == {("pool", 0)}


def test_the_shortcut_without_parameters_slices_and_pads_what_is_quantized_once() -> None:
    net = Net(x=IMAGE)  # ResNet for CIFAR, option A
    x = net.op(Kind.RELU, "in", net.conv("stem", "x"))
    y = net.conv("conv2", net.op(Kind.RELU, "mid", net.conv("conv1", x, 64)), 64)
    part = net.op(Kind.SLICE, "slice", x, shape=(None, 32, 4, 4))
    skip = net.op(Kind.PAD, "pad", part, shape=(None, 64, 4, 4))
    net.op(Kind.ADD, "add", y, skip)
    plan = net.place()
    assert reads(plan)["in"] == {("conv1", 0), ("slice", 0)}
    assert "slice" not in reads(plan)
    assert "pad" not in reads(plan)


def test_an_add_whose_convolution_is_float_stays_float() -> None:
    overrides = [{"module": "conv2", "scheme": None}]
    plan = basic_block().place(recipe(overrides=overrides))
    assert grid_of(plan, "add", 0) is None
    assert grid_of(plan, "add", 1) is None


def test_an_add_of_a_constant_is_no_residual() -> None:
    net = Net(x=IMAGE)
    bias = net.constant("bias", (1, 32, 1, 1))
    net.conv("b", net.op(Kind.ADD, "add", net.conv("a", "x"), bias))
    plan = net.place()
    assert reads(plan) == {"x": {("a", 0)}, "add": {("b", 0)}}


def test_adding_a_tensor_to_itself_is_no_residual() -> None:
    net = Net(x=IMAGE)
    y = net.conv("a", "x")
    net.conv("b", net.op(Kind.ADD, "add", y, y))
    assert reads(net.place()) == {"x": {("a", 0)}, "add": {("b", 0)}}


def test_a_convolution_that_is_also_an_output_does_not_fuse_with_its_add() -> None:
    net = Net(x=IMAGE)
    x = net.op(Kind.RELU, "in", net.conv("stem", "x"))
    y = net.conv("conv", x)
    net.conv("next", net.op(Kind.ADD, "add", y, x))
    assert grid_of(net.place(outputs=("conv", "next")), "add", 1) is None


def test_no_residual_leaves_both_branches_float_and_says_so() -> None:
    plan = basic_block().place(recipe(residual="none"))
    assert (grid_of(plan, "add", 0), grid_of(plan, "add", 1)) == (None, None)
    assert plan.decision("add").reason == "the recipe leaves adds in float"


@pytest.mark.parametrize("kind", [Kind.MAX_POOL, Kind.MOVE])
def test_what_only_moves_values_has_no_quantizer_of_its_own(kind: Kind) -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", net.op(kind, "second", net.op(kind, "first", y)))
    assert reads(net.place()) == {"x": {("a", 0)}, "relu": {("first", 0)}}


def test_a_pool_that_a_float_layer_reads_keeps_its_quantizer_behind() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.conv("b", y)
    net.conv("c", y)
    plan = net.place(recipe(overrides=[{"module": "c", "scheme": None}]), outputs=("b", "c"))
    assert reads(plan) == {"x": {("a", 0)}, "pool": {("b", 0)}}


def test_a_tensor_that_leaves_the_model_is_not_quantized_on_its_way() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    flat = net.op(Kind.MOVE, "flat", y, shape=(None, 2048))
    net.conv("b", y)
    net.linear("fc", flat)
    plan = net.place(outputs=("b", "fc", "flat"))
    assert reads(plan) == {"x": {("a", 0)}, "pool": {("b", 0)}, "flat": {("fc", 0)}}


def test_a_slice_that_leaves_the_model_is_not_cut_from_quantized_values() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    part = net.op(Kind.SLICE, "slice", y)
    net.conv("b", y)
    net.conv("c", part)
    plan = net.place(outputs=("b", "c", "slice"))
    assert reads(plan) == {"x": {("a", 0)}, "relu": {("b", 0)}, "slice": {("c", 0)}}


def test_a_slice_of_what_is_quantized_anyway_shares_its_quantizer() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", y)
    net.conv("c", net.op(Kind.SLICE, "second", net.op(Kind.SLICE, "first", y)))
    assert reads(net.place(outputs=("b", "c")))["relu"] == {("b", 0), ("first", 0)}


def test_parts_of_a_float_tensor_have_grids_of_their_own() -> None:
    net = Net(x=TOKENS)  # query, key and value of one projection
    packed = net.linear("packed", "x", 192)
    parts = [net.op(Kind.SLICE, name, packed, shape=TOKENS) for name in ("q", "k", "v")]
    for part in parts:
        net.linear(f"{part}_fc", part)
    plan = net.place(outputs=("q_fc", "k_fc", "v_fc"))
    assert {"q", "k", "v"} <= set(reads(plan))
    assert "packed" not in reads(plan)


def test_a_spatial_pad_before_a_convolution_is_passed_because_export_folds_it() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", net.op(Kind.PAD, "pad", y, spatial=True))
    assert reads(net.place())["relu"] == {("pad", 0)}


def test_a_pad_that_a_float_convolution_reads_too_is_not_passed() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.PAD, "pad", net.op(Kind.RELU, "relu", net.conv("a", "x")), spatial=True)
    net.conv("b", y)
    net.conv("c", y)
    plan = net.place(recipe(overrides=[{"module": "c", "scheme": None}]), outputs=("b", "c"))
    assert reads(plan)["pad"] == {("b", 0)}
    assert "relu" not in reads(plan)


def test_a_pad_of_channels_before_a_convolution_is_quantized_behind() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("c", y)
    net.conv("b", net.op(Kind.PAD, "pad", y, shape=(None, 48, 8, 8)))
    plan = net.place(outputs=("b", "c"))
    assert reads(plan)["pad"] == {("b", 0)}
    assert reads(plan)["relu"] == {("c", 0)}


def test_per_channel_activations_stand_right_before_their_layer() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    flat = net.op(Kind.MOVE, "flat", net.conv("b", y), shape=(None, 2048))
    net.linear("fc", flat)
    per_channel = BOTH | {"activations": INT8 | {"per": "channel"}}
    plan = net.place(recipe(per_channel, concat="shared"))
    axes = {t.tensor: t.spec.axis for t in plan.tensors if t.role == "activation"}
    assert axes == {"x": 1, "pool": 1, "flat": 1}


def test_per_channel_activations_of_tokens_have_their_channels_last() -> None:
    net = Net(x=TOKENS)
    net.linear("fc", "x")
    plan = net.place(recipe({"weights": None, "activations": INT8 | {"per": "channel"}}))
    tensor = plan.tensor("fc", 0)
    assert tensor is not None
    assert tensor.spec.axis == 2
