"""Names that lead back to the model, and rewrites that change no result."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.onnx.edit import add_constant
from quantkit.onnx.tidy import (
    fold_pads,
    name_dimensions,
    name_nodes,
    pool_globally,
    remove_unused,
)

SCOPES = "pkg.torch.onnx.name_scopes"
RNG = np.random.default_rng(0)


def graph_of(text: str, **constants: np.ndarray) -> ir.Model:
    """A model in ONNX's text form, with constants by name."""
    head = '<ir_version: 9, opset_import: ["" : 19]>'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(f"{head} g {text}"))
    for name, array in constants.items():
        value = add_constant(model.graph, name, array)
        for node in model.graph:
            for index, old in enumerate(node.inputs):
                if old is not None and old.name == name and old is not value:
                    node.replace_input_with(index, value)
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """ONNX Runtime without its own rewrites."""
    import onnxruntime

    model = model.clone()
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


# Names of nodes.


def test_nodes_are_named_after_their_module_and_layers_after_the_plan() -> None:
    model = graph_of(
        "(float[N] x) => (float[N] y)"
        "{ a = Relu(x) b = Relu(a) c = Neg(b) d = Relu(c) e = QuantizeLinear(d, d) y = Exp(e) }"
    )
    relu, relu2, layer, other, quantizer, last = model.graph
    for node in (relu, relu2):
        node.metadata_props[SCOPES] = "['', 'layer1.0', 'relu']"
    layer.name = layer.metadata_props["quantkit.layer"] = "layer1.0/Relu"
    other.metadata_props[SCOPES] = "['', 'relu']"
    quantizer.name = "x/QuantizeLinear"
    last.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/someone/model.py, line 3"
    last.doc_string = "File /home/someone/model.py"
    last.outputs[0].metadata_props["pkg.torch.onnx.original_node_name"] = "exp"
    name_nodes(model.graph)
    assert [node.name for node in model.graph] == [
        "layer1.0/Relu_1", "layer1.0/Relu_2", "layer1.0/Relu", "Relu", "x/QuantizeLinear", "Exp",
    ]  # fmt: skip
    assert layer.metadata_props == {"quantkit.layer": "layer1.0/Relu"}
    assert not any(node.metadata_props for node in model.graph if node is not layer)
    assert not last.outputs[0].metadata_props
    assert not last.doc_string


def test_a_number_that_is_taken_already_is_passed_over() -> None:
    model = graph_of("(float[N] x) => (float[N] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    names = ["['', 'a', 'r']", "['', 'a', 'r']", "['', 'a/Relu_1', 'r']"]
    for node, scopes in zip(model.graph, names, strict=True):
        node.metadata_props[SCOPES] = scopes
    model.graph.node(2).metadata_props["quantkit.layer"] = model.graph.node(2).name = "a/Relu_1"
    name_nodes(model.graph)
    assert [node.name for node in model.graph] == ["a/Relu", "a/Relu_2", "a/Relu_1"]


def test_nodes_within_branches_are_named_and_forget_their_notes_too() -> None:
    model = graph_of(
        """(bool c, float[N] x) => (float[N] y) {
        y = If(c) <then_branch = t () => (float[N] a) { a = Relu(x) },
                   else_branch = e () => (float[N] b) { b = Relu(x) }> }"""
    )
    for node in model.graph.all_nodes():
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/someone/model.py"
    for graph in model.graph.subgraphs():
        graph.metadata_props["pkg.torch.onnx.note"] = "/home/someone"
    name_nodes(model.graph)
    names = [node.name for node in model.graph.all_nodes()]
    assert sorted(names, key=str) == ["If", "Relu", "Relu_1"]
    assert b"someone" not in ir.serde.serialize_model(model).SerializeToString()


# Names of dimensions.


def shapes(model: ir.Model) -> list[list[object]]:
    values = [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]
    return [[getattr(d, "value", d) for d in v.shape] for v in values if v.shape is not None]


def test_what_varies_is_named_wherever_it_stands() -> None:
    model = graph_of("(float[s77, s8, 4] x, float[s77, s9] mask) => (float[s77, s8, 4] y)"
                     "{ a = Relu(x) y = Relu(a) }")  # fmt: skip
    model.graph.node(0).outputs[0].shape = ir.Shape(["s77", "2*s8 + s9", 4])
    name_dimensions(model.graph)
    assert shapes(model) == [
        ["batch", "x_1", 4],
        ["batch", "mask_1"],
        ["batch", "2*x_1 + mask_1", 4],
        ["batch", "x_1", 4],
    ]


def test_the_users_own_names_and_unknown_dimensions_stay() -> None:
    model = graph_of("(float[rows, length] x) => (float[u0] y) { y = Flatten(x) }")
    model.graph.outputs[0].shape = ir.Shape([None, "u0"])
    name_dimensions(model.graph)
    assert shapes(model) == [["rows", "length"], [None, "u0"]]


def test_a_first_dimension_of_its_own_is_called_after_its_input() -> None:
    model = graph_of(
        "(float[s1] x, float[s2] table, float[s10] z) => (float[s2] y) { y = Relu(x) }"
    )
    name_dimensions(model.graph)
    assert [s[0] for s in shapes(model)][:3] == ["batch", "table_0", "z_0"]
    assert shapes(model)[-1] == ["table_0"]


def test_a_name_that_the_user_gave_is_not_given_twice() -> None:
    model = graph_of("(float[s1, batch] x) => (float[s1, batch] y) { y = Relu(x) }")
    name_dimensions(model.graph)
    assert shapes(model) == [["x_0", "batch"]] * 2


# What nobody reads.


def test_what_nobody_reads_is_gone_and_all_else_stays() -> None:
    model = graph_of(
        "(float[N] x) => (float[N] y, float[2] k)"
        "<float[2] w = {1.0, 2.0}, float[2] u = {1.0, 2.0}, float[2] k = {1.0, 2.0}>"
        "{ a = Relu(x) dead = Add(a, u) deader = Relu(dead) y = Neg(a) }"
    )
    remove_unused(model.graph)
    assert operators(model) == ["Relu", "Neg"]
    assert list(model.graph.initializers) == ["k"]


# Global pooling.

IMAGE = RNG.standard_normal((2, 3, 5, 7)).astype(np.float32)


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3, -2]])
@pytest.mark.parametrize("keepdims", ["", "<keepdims = 1>"])
def test_a_mean_over_height_and_width_becomes_a_global_pool(axes: list[int], keepdims: str) -> None:
    model = graph_of(
        f"(float[N, 3, 5, 7] x) => (float[N, 3, 1, 1] y) {{ y = ReduceMean{keepdims}(x, axes) }}",
        axes=np.array(axes),
    )
    before = run(model, IMAGE)
    model.graph.node(0).metadata_props["quantkit.note"] = "kept"
    assert pool_globally(model.graph) == 1
    assert operators(model) == ["GlobalAveragePool"]
    assert model.graph.node(0).metadata_props["quantkit.note"] == "kept"
    np.testing.assert_allclose(run(model, IMAGE), before, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "operator", "axes"),
    [
        ("N, 3, 5, 7", "ReduceMean<keepdims = 0>", [2, 3]),
        ("N, 3, 5, 7", "ReduceMean", [3]),
        ("N, 3, 5, 7", "ReduceMean", [1, 2, 3]),
        ("N, 3", "ReduceMean", [1]),
        ("N, 3, 5, 7", "ReduceMax", [2, 3]),
    ],
)
def test_other_means_stay(shape: str, operator: str, axes: list[int]) -> None:
    model = graph_of(
        f"(float[{shape}] x) => (float y) {{ y = {operator}(x, axes) }}", axes=np.array(axes)
    )
    assert pool_globally(model.graph) == 0
    assert operators(model) == [operator.partition("<")[0]]


# Padding.

WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)


def padded(
    pads: list[int],
    pad: str = "Pad(x, pads)",
    conv: str = "Conv(p, w)",
    **constants: np.ndarray,
) -> ir.Model:
    return graph_of(
        f"(float[N, 3, 5, 7] x) => (float[N, C, H, W] y) {{ p = {pad} y = {conv} }}",
        pads=np.array(pads),
        **({"w": WEIGHT} if "w" in conv else {}),
        **constants,
    )


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.one_of(st.none(), st.lists(st.integers(0, 2), min_size=4, max_size=4)),
    st.integers(1, 2),
)
def test_zeros_around_an_image_become_the_convolutions_own(
    outer: list[int], own: list[int] | None, stride: int
) -> None:
    attributes = f"strides = [{stride}, {stride}]" + (f", pads = {own}" if own else "")
    model = padded([0, 0, *outer[:2], 0, 0, *outer[2:]], conv=f"Conv<{attributes}>(p, w)")
    before = run(model, IMAGE)
    assert fold_pads(model.graph) == 1
    assert operators(model) == ["Conv"]
    np.testing.assert_allclose(run(model, IMAGE), before, rtol=1e-5, atol=1e-5)


def test_padding_that_two_convolutions_read_goes_into_both() -> None:
    model = graph_of(
        "(float[N, 3, 5, 7] x) => (float[N, C, H, W] y)"
        "{ p = Pad(x, pads) a = Conv(p, w) b = Conv<pads = [0, 0, 0, 0]>(p, w) y = Add(a, b) }",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        w=WEIGHT,
    )
    before = run(model, IMAGE)
    assert fold_pads(model.graph) == 1
    np.testing.assert_allclose(run(model, IMAGE), before, rtol=1e-5, atol=1e-5)


ALL = [0, 0, 1, 1, 0, 0, 1, 1]
STAYING = {
    "reflected": padded(ALL, 'Pad<mode = "reflect">(x, pads)'),
    "of ones": padded(ALL, "Pad(x, pads, one)", one=np.float32(1.0)),
    "of channels": padded(
        [0, 1, 0, 0, 0, 0, 0, 0], conv="Conv(p, v)", v=RNG.random((4, 4, 3, 3), np.float32)
    ),
    "of samples": padded([1, 0, 0, 0, 0, 0, 0, 0]),
    "cutting off": padded([0, 0, -1, 0, 0, 0, 0, 0]),
    "by axes": padded([1, 1], "Pad(x, pads, zero, axes)", zero=np.float32(0), axes=np.array([2])),
    "before a pool": padded(ALL, conv="MaxPool<kernel_shape = [2, 2]>(p)"),
    "before an automatic one": padded(ALL, conv='Conv<auto_pad = "SAME_UPPER">(p, w)'),
}


@pytest.mark.parametrize("case", STAYING)
def test_other_padding_stays(case: str) -> None:
    model = STAYING[case].clone()
    before = run(model, IMAGE)
    assert fold_pads(model.graph) == 0
    assert operators(model)[0] == "Pad"
    np.testing.assert_array_equal(run(model, IMAGE), before)


def test_padding_that_is_read_elsewhere_as_well_stays() -> None:
    model = graph_of(
        "(float[N, 3, 5, 7] x) => (float[N, C, H, W] y, float[N, 3, 7, 9] p)"
        "{ p = Pad(x, pads) y = Conv(p, w) }",
        pads=np.array(ALL),
        w=WEIGHT,
    )
    assert fold_pads(model.graph) == 0


@pytest.mark.parametrize("zero", [np.float32(0.0), np.array([0.0], np.float32)])
def test_a_fill_of_zero_may_be_written_out(zero: np.ndarray) -> None:
    model = padded(ALL, "Pad(x, pads, zero)", zero=zero)
    assert fold_pads(model.graph) == 1
