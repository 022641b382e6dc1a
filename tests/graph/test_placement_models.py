"""The plans of captured models, and what holds for the plan of any graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from abstract_graphs import (
    ACTIVATION_ONLY,
    BOTH,
    INT8,
    WEIGHT_ONLY,
    Net,
    grid_of,
    reads,
    recipe,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_plans import assert_sound, reads_quantized

import small_models
from quantkit.graph.abstract import COMPUTE, Graph, Kind
from quantkit.graph.aten import describe
from quantkit.graph.attention import split_attention
from quantkit.graph.capture import capture
from quantkit.graph.functionalize import functionalize
from quantkit.graph.placement import place
from quantkit.recipe import Recipe
from quantkit.workflow import resolve_recipe

PTQ = "int8_ptq"
CPU = "int8_asymmetric"


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


@pytest.mark.parametrize("name", [make.__name__ for make in small_models.ALL])
@pytest.mark.parametrize("named", ["w4a8_qat", "w4a4_qat"])
def test_the_ends_of_a_model_have_a_scheme_of_their_own(
    graphs: dict[str, Graph], name: str, named: str
) -> None:
    graph = graphs[name]
    layers = [op.name for op in graph.of(COMPUTE)]
    plan = place(graph, resolve_recipe(named))
    assert plan.unused == ()
    for tensor in plan.tensors:
        if tensor.role == "weight":
            at_end = {edge.op for edge in tensor.edges} & {layers[0], layers[-1]}
            assert tensor.spec.bits == (None if at_end else 4), tensor.edges


def test_a_result_goes_on_the_one_grid_that_its_readers_want(graphs: dict[str, Graph]) -> None:
    """The first layer has 8 bits; what it puts out is read with 4, and by pools."""
    chosen = resolve_recipe("w4a4_qat")
    placement = chosen.placement.model_copy(update={"residual": "both", "outputs": True})
    plan = place(graphs["multi_branch"], chosen.model_copy(update={"placement": placement}))
    (stem,) = (t for t in plan.tensors if t.tensor == "stem.2/relu")
    assert stem.spec.bits == 4
    assert {edge.op for edge in stem.edges} > {"conv.0"}


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
