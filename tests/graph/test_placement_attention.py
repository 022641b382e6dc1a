"""The plan of attention: both products or none, and never the mask."""

from __future__ import annotations

import pytest
from abstract_graphs import (
    TOKENS,
    Net,
    reads,
    recipe,
)

from quantkit.graph.abstract import Kind


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
