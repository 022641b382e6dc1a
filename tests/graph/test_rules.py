"""When a layer is better left in float, and the reason that is printed for it."""

from __future__ import annotations

from typing import Any

import pytest
from abstract_graphs import ACTIVATION_ONLY, BOTH, FP8, IMAGE, TOKENS, WEIGHT_ONLY, Net, recipe

from quantkit.graph.abstract import Kind, Op
from quantkit.graph.rules import is_attention, products_before, reason_for_float


def reason(net: Net, name: str, scheme: Any = BOTH, *, forced: bool = False, **choice: Any) -> str:
    """The reason for one operator; empty where it is quantized."""
    chosen = recipe(scheme, **choice)
    graph = net.graph()
    op = next(op for op in graph.ops if op.name == name)
    found = reason_for_float(op, graph, chosen.scheme.scheme(), chosen.placement, forced=forced)
    return found or ""


def image(channels: int) -> Net:
    """A network whose first layer is out of the way, so that the next is no stem."""
    net = Net(x=IMAGE)
    net.conv("stem", "x", channels)
    return net


@pytest.mark.parametrize(
    ("channels_in", "out", "kernel", "groups", "why"),
    [
        (16, 16, 3, 1, ""),
        (15, 32, 3, 1, "15 channels, below the 16 of an INT8 tensor-core tile"),
        (32, 8, 1, 1, "8 channels, below the 16 of an INT8 tensor-core tile"),
        (64, 64, 3, 4, ""),
        (64, 64, 3, 8, "8 channels a group, below the 16 of an INT8 tensor-core tile"),
        (32, 32, 3, 32, ""),
        (32, 64, 3, 32, ""),
        (8, 8, 3, 8, ""),
        (32, 32, 1, 32, "depthwise with 32 channels and kernel 1x1: needs a multiple of 8 and 3"),
        (36, 36, 3, 36, "depthwise with 36 channels and kernel 3x3: needs a multiple of 8 and 3"),
    ],
)
def test_a_small_convolution_stays_float(
    channels_in: int, out: int, kernel: int, groups: int, why: str
) -> None:
    net = image(channels_in)
    net.conv("conv", "stem", out, kernel=kernel, groups=groups)
    assert reason(net, "conv").startswith(why)
    assert bool(reason(net, "conv")) is bool(why)
    assert reason(net, "conv", small=True) == ""


@pytest.mark.parametrize(
    ("out", "kernel", "quantized"),
    [(16, 3, True), (8, 7, True), (12, 3, False), (16, (3, 5), False)],
)
def test_the_stem_may_have_few_channels(
    out: int, kernel: int | tuple[int, int], quantized: bool
) -> None:
    net = Net(x=(None, 3, 8, 8))
    net.conv("stem", "x", out, kernel=kernel)
    assert (reason(net, "stem") == "") is quantized


@pytest.mark.parametrize("kind", [Kind.MOVE, Kind.PAD, Kind.SLICE, Kind.MUL, Kind.ADD])
def test_the_stem_may_read_the_input_moved_padded_or_normalized(kind: Kind) -> None:
    net = Net(x=(None, 3, 8, 8))
    y = net.op(kind, "first", "x", net.constant("mean", (1, 3, 1, 1)))
    net.conv("stem", y, 16)
    assert reason(net, "stem") == ""


def test_a_convolution_of_few_channels_behind_another_is_no_stem() -> None:
    net = image(3)
    net.conv("conv", net.op(Kind.RELU, "relu", "stem"), 16)
    assert reason(net, "conv").startswith("3 channels")


@pytest.mark.parametrize(
    ("inner", "columns", "why"),
    [
        (16, 16, ""),
        (15, 64, "K = 15, below the 16 of an INT8 tensor-core tile"),
        (64, 10, "N = 10, below the 16 of an INT8 tensor-core tile"),
        (64, 1, "N = 1, a product with a vector: bound by memory, not arithmetic"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "matmul"])
def test_a_product_of_few_rows_or_columns_stays_float(
    kind: str, inner: int, columns: int, why: str
) -> None:
    net = Net(x=(None, inner))
    if kind == "linear":
        net.linear("fc", "x", columns)
    else:
        net.matmul("fc", "x", net.constant("w", (inner, columns)))
    assert reason(net, "fc") == why
    assert reason(net, "fc", small=True) == (why if columns == 1 else "")


@pytest.mark.parametrize(
    ("shape", "vector"),
    [((1, 64), True), ((1, 1, 64), True), ((64,), True), ((2, 64), False), ((None, 64), False)],
)
def test_a_product_of_one_row_is_bound_by_memory(
    shape: tuple[int | None, ...], vector: bool
) -> None:
    net = Net(x=shape)
    net.linear("fc", "x", 32)
    assert (
        reason(net, "fc") == "M = 1, a product with a vector: bound by memory, not arithmetic"
    ) is vector
    # That is where quantized weights alone help most: there is less of them to read.
    assert reason(net, "fc", WEIGHT_ONLY) == ""


def test_a_batched_product_of_one_row_each_is_bound_by_memory() -> None:
    net = Net(a=(8, 1, 64), b=(8, 64, 32))
    net.matmul("bmm", "a", "b")
    assert reason(net, "bmm").startswith("M = 1")


def test_a_product_of_integers_stays_float() -> None:
    net = Net(x=TOKENS)
    net.matmul("mm", "x", net.constant("w", (64, 64), floating=False))
    assert reason(net, "mm") == "its inputs are not floating point"
    assert reason(net, "mm", forced=True) == "its inputs are not floating point"


def test_a_product_that_a_constant_begins_is_no_layer() -> None:
    net = Net(x=(None, 64, 24))
    net.matmul("mm", net.constant("w", (32, 64)), "x")
    assert "first input is constant" in reason(net, "mm")


def test_a_filter_that_is_an_activation_stays_float() -> None:
    net = Net(x=IMAGE, w=(32, 32, 3, 3))
    net.op(Kind.CONV, "conv", "x", "w", kernel=(3, 3), weight_axis=0)
    assert reason(net, "conv") == "its filter is an activation"
    assert reason(net, "conv", forced=True) == "its filter is an activation"


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        (BOTH, ""),
        (ACTIVATION_ONLY, ""),
        (WEIGHT_ONLY, "weight-only: engines dequantize in linear layers, not in convolutions"),
        ({"weights": None, "activations": None}, "the recipe leaves it in float"),
    ],
)
def test_what_is_quantized_of_a_convolution_depends_on_the_scheme(scheme: Any, why: str) -> None:
    net = image(32)
    net.conv("conv", "stem")
    assert reason(net, "conv", scheme) == why


def test_what_does_not_pay_can_be_forced() -> None:
    net = image(4)
    net.conv("conv", "stem", 4)
    net.conv("up", "conv", kind=Kind.CONV_TRANSPOSE)
    assert reason(net, "conv")
    assert reason(net, "up")
    assert reason(net, "conv", forced=True) == ""
    assert reason(net, "up", forced=True) == ""
    assert reason(net, "conv", WEIGHT_ONLY, forced=True) == ""


@pytest.mark.parametrize(
    ("kernel", "groups", "why"),
    [
        (3, 1, ""),
        (3, 32, "FP8 has no grouped or depthwise convolution"),
        (3, 2, "FP8 has no grouped or depthwise convolution"),
        ((5, 6), 1, ""),
        ((4, 8), 1, ""),
        ((3, 11), 1, "FP8 convolutions have at most 32 taps; this one has 33"),
    ],
)
def test_fp8_has_no_depthwise_and_no_large_filters(
    kernel: int | tuple[int, int], groups: int, why: str
) -> None:
    net = image(32)
    net.conv("conv", "stem", kernel=kernel, groups=groups)
    assert reason(net, "conv", FP8) == why
    assert reason(net, "conv", BOTH) == ""


def test_fp8_linear_layers_are_quantized() -> None:
    net = Net(x=TOKENS)
    net.linear("fc", "x")
    assert reason(net, "fc", FP8) == ""


def test_the_products_around_a_softmax_are_attention() -> None:
    net = Net(q=TOKENS, k=TOKENS, v=TOKENS)
    scores = net.op(Kind.MUL, "scale", net.matmul("qk", "q", net.transpose("kt", "k")))
    net.matmul("av", net.op(Kind.SOFTMAX, "softmax", scores), "v")
    graph = net.graph()
    ops = {op.name: op for op in graph.ops}
    assert is_attention(ops["qk"], graph)
    assert is_attention(ops["av"], graph)
    assert products_before(ops["av"], graph) == (ops["qk"],)
    assert products_before(ops["qk"], graph) == ()


def test_a_product_of_activations_elsewhere_is_no_attention() -> None:
    net = Net(a=TOKENS, b=TOKENS)
    net.op(Kind.NORM, "norm", net.matmul("mm", "a", net.transpose("bt", "b")))
    graph = net.graph()
    op = next(op for op in graph.ops if op.name == "mm")
    assert not is_attention(op, graph)
    assert not is_attention(Op(name="r", kind=Kind.RELU, inputs=("a",), output="r"), graph)
