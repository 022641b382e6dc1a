"""A layer's weight lies as its source has it: (N, K) in PyTorch, (K, N) in ONNX's MatMul."""

from __future__ import annotations

import pytest

from quantkit.graph.abstract import Graph, Kind, Op, Value
from quantkit.graph.placement import place
from quantkit.recipe import Recipe


def linear(axis: int, inner: int, columns: int) -> Graph:
    shape = (columns, inner) if axis == 0 else (inner, columns)
    values = {
        "x": Value(name="x", shape=(None, inner)),
        "w": Value(name="w", shape=shape, constant=True),
        "y": Value(name="y", shape=(None, columns)),
    }
    fc = Op(name="fc", kind=Kind.LINEAR, inputs=("x", "w"), output="y", weight_axis=axis)
    return Graph((fc,), values, ("y",))


def recipe(weights: dict[str, object], activations: dict[str, object] | None) -> Recipe:
    scheme = {"weights": weights, "activations": activations}
    return Recipe.model_validate({"name": "mine", "scheme": scheme})


@pytest.mark.parametrize("axis", [0, 1])
def test_small_extents_are_called_by_their_right_names(axis: int) -> None:
    chosen = recipe({"per": "channel"}, {})
    said = [place(linear(axis, k, n), chosen).decision("fc").reason for k, n in
            ((8, 64), (64, 8), (64, 1), (64, 64))]  # fmt: skip
    assert [reason[:5] for reason in said] == ["K = 8", "N = 8", "N = 1", "weigh"]


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_lie_along_the_weight_axis_and_groups_along_the_other(axis: int) -> None:
    graph = linear(axis, 64, 32)
    channels = place(graph, recipe({"per": "channel"}, {})).tensor("fc", 1)
    grouped = recipe({"dtype": "int4", "per": "group", "group_size": 16}, None)
    groups = place(graph, grouped).tensor("fc", 1)
    assert channels is not None
    assert groups is not None
    assert (channels.spec.axis, groups.spec.axis) == (axis, 1 - axis)
