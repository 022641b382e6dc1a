"""Which tensors share a grid, pools, and what ONNX Runtime needs beside; on graphs for each."""

from __future__ import annotations

from typing import Any

import pytest
from abstract_graphs import (
    BOTH,
    IMAGE,
    INT8,
    Net,
    basic_block,
    branches,
    grid_of,
    reads,
    recipe,
)

from quantkit.graph.abstract import Kind
from quantkit.recipe import Recipe


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
