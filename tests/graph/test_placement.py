"""The placement rules of TensorRT (and ONNX Runtime), each on a graph made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from abstract_graphs import (
    ACTIVATION_ONLY,
    BOTH,
    IMAGE,
    INT8,
    TOKENS,
    WEIGHT_ONLY,
    Net,
    grid_of,
    reads,
    recipe,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import small_models
from quantkit.graph.abstract import COMPUTE, Graph, Kind, Op
from quantkit.graph.aten import describe
from quantkit.graph.attention import split_attention
from quantkit.graph.capture import capture
from quantkit.graph.functionalize import functionalize
from quantkit.graph.placement import place
from quantkit.graph.plan import Edge, Placement
from quantkit.recipe import Recipe
from quantkit.workflow import resolve_recipe

PTQ = "int8_ptq"
CPU = "int8_asymmetric"


# --- one tensor, one quantizer ------------------------------------------------------------------


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


# --- Conv, BatchNorm, ReLU -----------------------------------------------------------------------


def test_nothing_stands_between_convolution_batch_norm_and_relu() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.op(Kind.BATCH_NORM, "bn", net.conv("a", "x")))
    net.conv("b", y)
    plan = net.place()
    assert reads(plan) == {"x": {("a", 0)}, "relu": {("b", 0)}}


# --- residual adds -------------------------------------------------------------------------------


def basic_block(*, project: str | None = None, norms: bool = True) -> Net:
    """ReLU before and behind; the projection is computed ``first`` or ``last``."""
    net = Net(x=IMAGE)

    def conv(name: str, x: str, kernel: int = 3) -> str:
        y = net.conv(name, x, kernel=kernel)
        return net.op(Kind.BATCH_NORM, f"{name}.bn", y) if norms else y

    x = net.op(Kind.RELU, "in", conv("stem", "x"))
    skip = conv("project", x, 1) if project == "first" else x
    y = net.op(Kind.RELU, "mid", conv("conv1", x))
    y = conv("conv2", y)
    skip = conv("project", x, 1) if project == "last" else skip
    out = net.op(Kind.RELU, "out", net.op(Kind.ADD, "add", y, skip))
    net.linear("fc", net.op(Kind.MOVE, "flat", out, shape=(None, 2048)))
    return net


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


# --- what commutes -------------------------------------------------------------------------------


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


# --- average pools -------------------------------------------------------------------------------


def test_an_average_pool_between_quantized_tensors_runs_in_int8() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", y)
    net.conv("c", net.op(Kind.AVERAGE_POOL, "pool", y))
    plan = net.place(outputs=("b", "c"))
    assert reads(plan)["relu"] == {("b", 0), ("pool", 0)}
    assert grid_of(plan, "c") == "pool"


@pytest.mark.parametrize("reader", [Kind.POINTWISE, None])
def test_an_average_pool_before_a_float_reader_or_an_output_reads_float(
    reader: Kind | None,
) -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", y)
    pool = net.op(Kind.AVERAGE_POOL, "pool", y)
    net.conv("c", pool)
    if reader is not None:
        net.op(reader, "float", pool)
    outputs = ("b", "c") + (("pool",) if reader is None else ("float",))
    plan = net.place(outputs=outputs)
    assert grid_of(plan, "pool") is None
    assert grid_of(plan, "c") == "pool"


def test_an_average_pool_alone_behind_a_convolution_stays_float() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.AVERAGE_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.linear("fc", net.op(Kind.MOVE, "flat", y, shape=(None, 32)))
    plan = net.place()
    assert grid_of(plan, "pool") is None
    assert reads(plan)["pool"] == {("flat", 0)}


# --- concat and upsampling -----------------------------------------------------------------------


def branches(**shape: Any) -> Net:
    net = Net(x=IMAGE)
    stem = net.op(Kind.RELU, "stem_relu", net.conv("stem", "x"))
    one = net.op(Kind.RELU, "one_relu", net.conv("one", stem))
    two = net.op(Kind.RELU, "two_relu", net.conv("two", stem))
    net.conv("mix", net.op(Kind.CONCAT, "cat", one, two, stem, shape=(None, 96, 8, 8)))
    return net


def test_separate_concat_quantizes_only_what_it_puts_out() -> None:
    plan = branches().place()
    assert [grid_of(plan, "cat", i) for i in range(3)] == [None, None, None]
    assert grid_of(plan, "mix") == "cat"


def test_shared_concat_gives_its_parts_and_its_output_one_grid() -> None:
    plan = branches().place(recipe(concat="shared"))
    assert [grid_of(plan, "cat", i) for i in range(3)] == ["cat", "cat", "cat"]
    assert grid_of(plan, "mix") == "cat"
    # The stem is a part as well: one tensor has one quantizer, so its other readers follow.
    assert grid_of(plan, "one") == "cat"
    assert {t.tensor for t in plan.grids["cat"]} == {"cat", "one_relu", "two_relu", "stem_relu"}


def test_shared_concats_that_share_a_part_are_one_grid() -> None:
    net = Net(x=IMAGE)  # DenseNet
    a = net.op(Kind.RELU, "a_relu", net.conv("a", "x"))
    first = net.op(Kind.CONCAT, "first", a, net.conv("b", a), shape=(None, 64, 8, 8))
    c = net.conv("c", first)
    second = net.op(Kind.CONCAT, "second", first, c, shape=(None, 96, 8, 8))
    net.conv("d", second)
    plan = net.place(recipe(concat="shared"))
    grids = {grid_of(plan, op, i) for op in ("first", "second") for i in (0, 1)}
    assert grids == {grid_of(plan, "c"), grid_of(plan, "d")}
    assert len(grids) == 1


def test_a_shared_concat_that_leaves_the_model_keeps_its_parts_float() -> None:
    plan = branches().place(recipe(concat="shared"), outputs=("mix", "cat"))
    assert [grid_of(plan, "cat", i) for i in range(3)] == [None, None, None]
    assert grid_of(plan, "mix") == "cat"


def test_a_shared_concat_wanted_in_two_forms_gives_no_part_two_quantizers() -> None:
    net = branches()
    net.conv("other", "cat")
    other = {"module": "other", "scheme": BOTH | {"activations": INT8 | {"bits": 7}}}
    plan = net.place(recipe(overrides=[other], concat="shared"), outputs=("mix", "other"))
    assert [grid_of(plan, "cat", i) for i in range(3)] == [None, None, None]
    assert grid_of(plan, "mix") != grid_of(plan, "other")


def test_channels_of_concat_parts_cannot_share_a_grid_per_channel() -> None:
    per_channel = BOTH | {"activations": INT8 | {"per": "channel"}}
    plan = branches().place(recipe(per_channel, concat="shared"))
    assert [grid_of(plan, "cat", i) for i in range(3)] == [None, None, None]


def test_nearest_upsampling_has_one_grid_on_both_sides() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.conv("b", net.op(Kind.UPSAMPLE, "up", y, shape=(None, 32, 16, 16)))
    plan = net.place()
    assert grid_of(plan, "up") == grid_of(plan, "b") == "relu"
    assert {t.tensor for t in plan.grids["relu"]} == {"relu", "up"}


def test_upsampling_twice_before_a_convolution_keeps_one_grid() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.UPSAMPLE, "up1", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.conv("b", net.op(Kind.UPSAMPLE, "up2", y))
    plan = net.place()
    assert grid_of(plan, "up1") == grid_of(plan, "up2") == grid_of(plan, "b") == "relu"


def test_a_unet_of_shared_concat_and_upsampling_is_one_grid() -> None:
    net = Net(x=IMAGE)
    skip = net.op(Kind.RELU, "skip", net.conv("down", "x"))
    deep = net.op(Kind.RELU, "deep", net.conv("bottom", skip))
    up = net.op(Kind.UPSAMPLE, "up", deep)
    net.conv("merge", net.op(Kind.CONCAT, "cat", up, skip, shape=(None, 64, 8, 8)))
    plan = net.place(recipe(concat="shared"))
    grids = [grid_of(plan, *edge) for edge in (("up", 0), ("cat", 0), ("cat", 1), ("merge", 0))]
    assert set(grids) == {"cat"}


def test_upsampling_that_a_float_layer_reads_too_is_not_cut_from_quantized_values() -> None:
    net = Net(x=IMAGE)
    up = net.op(Kind.UPSAMPLE, "up", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.conv("b", up)
    net.conv("c", up)
    plan = net.place(recipe(overrides=[{"module": "c", "scheme": None}]), outputs=("b", "c"))
    assert grid_of(plan, "up") is None
    assert grid_of(plan, "b") == "up"


def test_interpolation_makes_new_values_and_a_quantizer_stands_behind() -> None:
    net = Net(x=IMAGE)
    net.conv("b", net.op(Kind.RESIZE, "resize", net.op(Kind.RELU, "relu", net.conv("a", "x"))))
    assert reads(net.place()) == {"x": {("a", 0)}, "resize": {("b", 0)}}


# --- attention -----------------------------------------------------------------------------------


def attention(length: int | None = 24, *, mask: str | None = None, keys: int | None = None) -> Net:
    net = Net(x=(None, length, 64))
    keys = length if keys is None else keys
    q, k, v = (net.linear(name, "x") for name in ("q", "k", "v"))
    for name in (k, v):
        net.values[name] = type(net.values[name])(name=name, shape=(None, keys, 64))
    scores = net.matmul("qk", q, net.transpose("kt", k))
    scores = net.op(Kind.MUL, "scaled", scores)
    if mask == "add":
        scores = net.op(Kind.ADD, "masked", scores, net.constant("mask", (1, 1, 24, 24)))
    if mask == "add first":
        scores = net.op(Kind.ADD, "masked", net.constant("mask", (24, 24)), scores)
    if mask == "where":
        allowed = net.constant("mask", (1, 1, 24, 24), floating=False)
        scores = net.op(Kind.OTHER, "masked", allowed, scores, net.constant("fill", ()),
                        shape=net.shape(scores))  # fmt: skip
    weights = net.op(Kind.MOVE, "dropout", net.op(Kind.SOFTMAX, "softmax", scores))
    net.linear("proj", net.matmul("av", weights, v))
    return net


MASKS = [None, "add", "add first", "where"]


@pytest.mark.parametrize("mask", MASKS)
def test_attention_has_query_key_value_and_softmax_quantized_and_its_mask_float(
    mask: str | None,
) -> None:
    plan = attention(mask=mask).place()
    quantized = reads(plan)
    assert quantized["q"] == {("qk", 0)}
    assert quantized["k"] == {("kt", 0)}
    assert quantized["v"] == {("av", 1)}
    assert quantized["softmax"] == {("dropout", 0)}
    assert not {"qk", "scaled", "masked", "mask"} & set(quantized)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("product", ["qk", "av"])
def test_where_one_product_of_attention_is_float_so_is_the_other(
    product: str, mask: str | None
) -> None:
    plan = attention(mask=mask).place(recipe(overrides=[{"module": product, "scheme": None}]))
    other = {"qk": "av", "av": "qk"}[product]
    assert not plan.decision(other).quantized
    assert plan.decision(other).reason == "the other product of this attention is in float"
    assert not {"q", "k", "v", "softmax"} & set(reads(plan))


@pytest.mark.parametrize(
    ("length", "keys", "quantized"),
    [(512, 512, True), (513, 513, False), (1, 513, False), (513, 64, False), (None, None, True)],
)
def test_attention_beyond_512_positions_stays_float(
    length: int | None, keys: int | None, quantized: bool
) -> None:
    plan = attention(length, keys=keys).place()
    assert plan.decision("qk").quantized is quantized
    assert plan.decision("av").quantized is quantized
    if not quantized:
        assert "513 positions, beyond 512" in plan.decision("qk").reason


def test_long_heads_are_not_taken_for_long_sequences() -> None:
    net = Net(q=(None, 64, 768), k=(None, 64, 768), v=(None, 64, 768))
    weights = net.op(Kind.SOFTMAX, "softmax", net.matmul("qk", "q", net.transpose("kt", "k")))
    net.matmul("av", weights, "v")
    assert net.place().quantized == ("qk", "av")


def test_a_recipe_may_leave_attention_in_float() -> None:
    plan = attention().place(recipe(attention=False))
    assert plan.decision("av").reason == "the recipe leaves attention's products in float"
    assert plan.quantized == ("q", "k", "v", "proj")


def test_scores_of_several_products_are_quantized_all_or_none() -> None:
    net = Net(q=(None, 24, 64), k=(None, 24, 64), p=(None, 24, 64), v=(None, 24, 64))  # DeBERTa
    content = net.matmul("content", "q", net.transpose("kt", "k"))
    position = net.matmul("position", "q", net.transpose("pt", "p"))
    scores = net.op(Kind.ADD, "scores", content, position)
    net.matmul("av", net.op(Kind.SOFTMAX, "softmax", scores), "v")
    assert net.place().quantized == ("content", "position", "av")
    plan = net.place(recipe(overrides=[{"module": "position", "scheme": None}]))
    assert plan.quantized == ()


def test_a_classifier_before_a_softmax_is_no_attention() -> None:
    net = Net(x=(None, 64))
    net.op(Kind.SOFTMAX, "softmax", net.matmul("head", "x", net.constant("w", (64, 32))))
    assert net.place(recipe(attention=False)).quantized == ("head",)


def test_attention_pooling_with_a_vector_of_weights_has_a_reason() -> None:
    net = Net(x=TOKENS)
    scores = net.op(Kind.MATMUL, "scores", "x", net.constant("w", (64,)), shape=(None, 24))
    net.op(Kind.SOFTMAX, "softmax", scores)
    assert net.place().decision("scores").reason == (
        "a product with a vector is bound by memory, not arithmetic"
    )


def test_the_residual_stream_of_a_transformer_stays_float_and_says_so() -> None:
    net = Net(x=TOKENS)
    y = net.op(Kind.MOVE, "dropout", net.linear("proj", "x"))
    net.linear("fc", net.op(Kind.NORM, "norm", net.op(Kind.ADD, "add", "x", y)))
    plan = net.place()
    assert reads(plan) == {"x": {("proj", 0)}, "norm": {("fc", 0)}}
    assert "residual stream" in plan.decision("add").reason


# --- schemes and overrides -----------------------------------------------------------------------


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


# --- ONNX Runtime --------------------------------------------------------------------------------


def ort(**changes: Any) -> Recipe:
    return recipe(**({"residual": "both", "outputs": True, "small": True} | changes))


def test_for_onnx_runtime_convolutions_adds_and_pools_put_out_quantized_tensors() -> None:
    net = basic_block(project="last")
    plan = net.place(ort())
    assert (grid_of(plan, "add", 0), grid_of(plan, "add", 1)) == ("conv2.bn", "project.bn")
    assert plan.decision("add").reason == "both inputs quantized: an integer add"
    assert grid_of(plan, "flat") == "out"


def test_for_onnx_runtime_an_average_pool_is_quantized_on_both_sides() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.AVERAGE_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.op(Kind.POINTWISE, "sigmoid", y)
    plan = net.place(ort())
    assert (grid_of(plan, "pool"), grid_of(plan, "sigmoid")) == ("relu", "pool")


def test_for_onnx_runtime_the_models_last_output_is_not_quantized() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.RELU, "relu", net.conv("a", "x"))
    net.op(Kind.MOVE, "flat", net.conv("b", y), shape=(None, 2048))
    plan = net.place(ort())
    assert reads(plan) == {"x": {("a", 0)}, "relu": {("b", 0)}}


def test_for_onnx_runtime_a_concat_reads_quantized_parts_on_grids_of_their_own() -> None:
    plan = branches().place(ort())
    assert [grid_of(plan, "cat", i) for i in range(3)] == ["one_relu", "two_relu", "stem_relu"]
    assert grid_of(plan, "mix") == "cat"


def test_for_onnx_runtime_a_shared_concat_has_one_grid_too() -> None:
    plan = branches().place(ort(concat="shared"))
    assert {grid_of(plan, "cat", i) for i in range(3)} == {grid_of(plan, "mix")} == {"cat"}


def test_a_pool_of_quantized_values_with_a_quantizer_behind_keeps_their_grid() -> None:
    net = Net(x=IMAGE)
    y = net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x")))
    net.conv("b", y)
    net.op(Kind.POINTWISE, "gelu", y)
    plan = net.place(ort(), outputs=("b", "gelu"))
    assert grid_of(plan, "pool") == grid_of(plan, "b") == "relu"


def test_a_slice_of_a_convolutions_output_is_read_once() -> None:
    net = Net(x=IMAGE)
    net.conv("b", net.op(Kind.SLICE, "slice", net.op(Kind.RELU, "relu", net.conv("a", "x"))))
    plan = net.place(ort())
    assert reads(plan) == {"x": {("a", 0)}, "relu": {("slice", 0)}}
    assert all(len(set(t.edges)) == len(t.edges) for t in plan.tensors)


def test_a_pool_between_layers_of_two_forms_is_read_on_the_first_and_requantized_behind() -> None:
    net = Net(x=IMAGE)
    net.conv("b", net.op(Kind.MAX_POOL, "pool", net.op(Kind.RELU, "relu", net.conv("a", "x"))))
    other = {"module": "b", "scheme": BOTH | {"activations": INT8 | {"bits": 7}}}
    plan = net.place(ort(overrides=[other]))
    assert (grid_of(plan, "pool"), grid_of(plan, "b")) == ("relu", "pool")


# --- captured models -----------------------------------------------------------------------------


def captured(model: small_models.SmallModel) -> Graph:
    module = capture(model, model.example_inputs).module
    functionalize(module)
    split_attention(module)
    return describe(module).graph


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {make.__name__: captured(make()) for make in small_models.ALL}


@pytest.mark.parametrize("name", [make.__name__ for make in small_models.ALL])
@pytest.mark.parametrize("named", [PTQ, CPU, "int8_weight_only", "int8_activation_only"])
def test_the_plan_of_a_captured_model_is_sound(
    graphs: dict[str, Graph], name: str, named: str
) -> None:
    chosen = resolve_recipe(named)
    assert_sound(graphs[name], chosen, place(graphs[name], chosen))


def test_resnet_reads_its_skips_from_the_blocks_input_and_from_the_projection(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["resnet"], resolve_recipe(PTQ))
    assert len(plan.quantized) == 7
    assert grid_of(plan, "identity/add", 1) == grid_of(plan, "identity.conv1.0") == "stem.2/relu"
    assert grid_of(plan, "identity/add", 0) is None
    assert grid_of(plan, "projection/add", 0) is None
    assert grid_of(plan, "projection/add", 1) == "projection.shortcut.1/batch_norm"
    assert grid_of(plan, "projection.shortcut.0") == grid_of(plan, "projection.conv1.0")
    assert "fuses into projection.conv2.0" in plan.decision("projection/add").reason


def test_a_bottleneck_with_in_place_operators_reads_its_skip_from_the_stem(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["bottleneck"], resolve_recipe(PTQ))
    assert grid_of(plan, "add", 1) == grid_of(plan, "reduce.0") == "stem.2/relu"
    assert grid_of(plan, "add", 0) is None


def test_an_inverted_residual_has_its_depthwise_convolutions_and_its_add_quantized(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["inverted_residual"], resolve_recipe(PTQ))
    assert len(plan.quantized) == 8
    assert grid_of(plan, "add", 0) == grid_of(plan, "adding.0.0") == "stem.2/hardtanh"
    assert grid_of(plan, "add", 1) is None


def test_inceptions_pooled_branch_shares_the_stems_quantizer(graphs: dict[str, Graph]) -> None:
    plan = place(graphs["inception"], resolve_recipe(PTQ))
    assert ("pooled.0/max_pool2d", 0) in reads(plan)["stem.2/relu"]
    assert all(grid_of(plan, "cat", i) is None for i in range(4))
    shared = resolve_recipe(PTQ).model_copy(update={"placement": recipe(concat="shared").placement})
    plan = place(graphs["inception"], shared)
    assert {grid_of(plan, "cat", i) for i in range(4)} == {grid_of(plan, "mix.0")} == {"cat"}


def test_the_branches_of_one_tensor_share_it_and_both_pools_read_int8(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["multi_branch"], resolve_recipe(PTQ))
    readers = {("conv.0", 0), ("max/max_pool2d", 0), ("avg/avg_pool2d", 0)}
    assert reads(plan)["stem.2/relu"] == readers
    assert grid_of(plan, "after_avg.0") == "avg/avg_pool2d"


def test_unets_transposed_convolution_is_float_and_its_other_layers_are_not(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["unet_transposed"], resolve_recipe(PTQ))
    assert [d.op for d in plan.decisions if not d.quantized] == ["up"]
    assert grid_of(plan, "up") is None


def test_an_encoder_has_attention_quantized_and_its_residual_stream_float(
    graphs: dict[str, Graph],
) -> None:
    plan = place(graphs["encoder"], resolve_recipe(PTQ))
    assert grid_of(plan, "matmul", 0) == "mul"  # the scaled query
    assert {"key", "value", "softmax"} <= set(reads(plan))
    assert [d.op for d in plan.decisions if not d.quantized] == ["add", "add_1"]
    assert all(grid_of(plan, add, i) is None for add in ("add", "add_1") for i in (0, 1))


@pytest.mark.parametrize("make", small_models.CONVOLUTIONAL)
def test_for_onnx_runtime_no_convolution_puts_out_float_but_the_last(
    graphs: dict[str, Graph], make: Callable[[], small_models.SmallModel]
) -> None:
    graph = graphs[make.__name__]
    plan = place(graph, resolve_recipe(CPU))
    for op in graph.of({Kind.CONV}):
        name = op.output
        while len(readers := graph.consumers[name]) == 1 and readers[0][0].kind in {
            Kind.BATCH_NORM,
            Kind.RELU,
        }:
            name = readers[0][0].output
        assert readers, op.name
        assert all(reads_quantized(graph, plan, reader, i) for reader, i in readers), op.name


def test_the_plan_is_the_same_for_another_seed_and_other_weights() -> None:
    one, other = small_models.resnet(), small_models.resnet()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3.0)
    chosen = resolve_recipe(PTQ)
    assert place(captured(one), chosen) == place(captured(other), chosen)


# --- any graph -----------------------------------------------------------------------------------

PASSING = {Kind.MOVE, Kind.MAX_POOL, Kind.SLICE, Kind.PAD}


def reads_quantized(graph: Graph, plan: Placement, op: Op, index: int) -> bool:
    """Whether an input comes from a quantizer, through what only moves its values."""
    while plan.tensor(op.name, index) is None:
        producer = graph.producer.get(op.inputs[index])
        if producer is None or producer.kind not in PASSING:
            return False
        op, index = producer, 0
    return True


def copies_to_output(graph: Graph, op: Op) -> bool:
    if op.kind not in PASSING | {Kind.UPSAMPLE, Kind.CONCAT}:
        return False
    if op.output in graph.outputs:
        return True
    return any(copies_to_output(graph, reader) for reader, _ in graph.consumers[op.output])


def assert_sound(graph: Graph, chosen: Recipe, plan: Placement) -> None:
    """What holds for every plan, whatever the graph."""
    ops = {op.name: op for op in graph.ops}
    edges = [edge for tensor in plan.tensors for edge in tensor.edges]
    assert len(set(edges)) == len(edges), "an edge has two quantizers"
    for tensor in plan.tensors:
        assert tensor.edges
        assert tensor.reason
        for edge in tensor.edges:
            assert ops[edge.op].inputs[edge.index] == tensor.tensor
            # A tensor may be read by a layer and leave the model; what leaves is float.
            assert tensor.role == "weight" or not copies_to_output(graph, ops[edge.op])
    for members in plan.grids.values():
        assert len({(t.spec, t.role) for t in members}) == 1, "a grid has two forms"
        assert len({t.tensor for t in members}) == len(members)
    assert {d.op for d in plan.decisions if d.kind in COMPUTE} == {
        o.name for o in graph.of(COMPUTE)
    }
    assert all(decision.reason for decision in plan.decisions)
    for decision in plan.decisions:
        if decision.quantized and decision.kind in COMPUTE:
            assert_layer_is_quantized(graph, chosen, plan, ops[decision.op])
    if not chosen.placement.outputs:
        assert_float_layers_read_float(graph, plan)
    assert Placement.from_json(plan.to_json()) == plan
    assert place(graph, chosen) == plan
    assert str(plan).startswith("Plan of recipe ")


def assert_layer_is_quantized(graph: Graph, chosen: Recipe, plan: Placement, op: Op) -> None:
    matching = [o.scheme for o in chosen.overrides if o.matches(op.name, op.kind)]
    scheme = matching[-1] if matching else chosen.scheme
    assert scheme is not None
    constant = graph.values[op.inputs[1]].constant
    if constant:
        assert (plan.tensor(op.name, 1) is not None) is (scheme.weights is not None)
    for index in (0,) if constant else (0, 1):
        quantized = reads_quantized(graph, plan, op, index)
        if scheme.activations is not None or not chosen.placement.outputs:
            assert quantized is (scheme.activations is not None), (op.name, index)


def assert_float_layers_read_float(graph: Graph, plan: Placement) -> None:
    """TensorRT's plan rounds nothing that a float operator reads."""
    for op in graph.ops:
        decision = next((d for d in plan.decisions if d.op == op.name), None)
        if op.kind in {Kind.UPSAMPLE, Kind.CONCAT, Kind.AVERAGE_POOL} | PASSING:
            continue
        if decision is None or not decision.quantized:
            for index in range(len(op.inputs)):
                assert not reads_quantized(graph, plan, op, index), (op.name, index)
        if op.kind is Kind.ADD and decision is not None and decision.quantized:
            assert any(reads_quantized(graph, plan, op, index) for index in (0, 1))
    for pool in graph.of({Kind.AVERAGE_POOL}):
        if reads_quantized(graph, plan, pool, 0):
            assert any(t.tensor == pool.output for t in plan.tensors)


UNARY = [
    Kind.RELU, Kind.BATCH_NORM, Kind.MOVE, Kind.MOVE, Kind.MAX_POOL, Kind.AVERAGE_POOL, Kind.SLICE,
    Kind.PAD, Kind.UPSAMPLE, Kind.RESIZE, Kind.POINTWISE, Kind.SOFTMAX, Kind.NORM, Kind.OTHER,
]  # fmt: skip


@st.composite
def random_graphs(draw: st.DrawFn) -> Graph:
    """A network of up to 14 operators, each reading any tensors before it."""
    shape = (None, 32, 32, 32)
    net = Net(x=shape, y=shape)
    names = ["x", "y"]
    for number in range(draw(st.integers(1, 14))):
        name = f"op{number}"
        # Mostly what was made last: chains are where rules meet.
        one, two = (draw(st.sampled_from([*names, *names[-2:], *names[-1:] * 3])) for _ in range(2))
        what = draw(st.sampled_from(["conv", "conv", "linear", "matmul", "add", "cat", "unary"]))
        if what == "conv":
            net.conv(name, one, kernel=draw(st.sampled_from([1, 3])))
        elif what == "linear":
            net.linear(name, one, 32)
        elif what == "matmul":
            net.matmul(name, one, two)
        elif what == "add":
            net.op(Kind.ADD, name, one, two)
        elif what == "cat":
            net.op(Kind.CONCAT, name, one, two)
        else:
            kind = draw(st.sampled_from(UNARY))
            net.op(kind, name, one, spatial=kind is Kind.PAD and draw(st.booleans()))
        names.append(name)
    made = [op.output for op in net.ops]
    extra = draw(st.sets(st.sampled_from(made), max_size=4))
    return net.graph(*sorted({made[-1]} | extra))


SCHEMES: list[Any] = [
    BOTH,
    WEIGHT_ONLY,
    ACTIVATION_ONLY,
    BOTH | {"activations": INT8 | {"bits": 7}},
    BOTH | {"activations": INT8 | {"per": "channel"}},
]


@st.composite
def random_recipes(draw: st.DrawFn) -> Recipe:
    scheme = st.sampled_from(SCHEMES)
    override = st.builds(
        lambda number, own: {"module": f"op{number}", "scheme": own},
        st.integers(0, 14),
        st.none() | scheme,
    )
    return recipe(
        draw(scheme),
        draw(st.lists(override, max_size=4)),
        residual=draw(st.sampled_from(["skip", "both", "none"])),
        outputs=draw(st.booleans()),
        concat=draw(st.sampled_from(["separate", "shared"])),
        attention=draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(random_graphs(), random_recipes())
def test_the_plan_of_any_graph_is_sound(graph: Graph, chosen: Recipe) -> None:
    assert_sound(graph, chosen, place(graph, chosen))
