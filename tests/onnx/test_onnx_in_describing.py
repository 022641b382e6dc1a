"""What the rules read of an ONNX graph: kinds, names of modules, operators of many nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import TensorProto, helper
from onnx_models import model_of, small_net, weight
from torch import Tensor, nn

from quantkit.graph.abstract import Graph, Kind
from quantkit.onnx.describing import OnnxDescription, describe_onnx
from quantkit.onnx.origins import module_of_name
from quantkit.onnx.reading import read_onnx

make = helper.make_node


def described(model: onnx.ModelProto | ir.Model) -> OnnxDescription:
    source = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    return describe_onnx(read_onnx(source).graph)


class Run(nn.Module):
    """A module that runs a function of its input."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def exported(
    function: Callable[..., Any], shape: tuple[int, ...], opset: int = 18, **modules: nn.Module
) -> Graph:
    program = torch.onnx.export(
        Run(function, **modules).eval(), (torch.randn(shape),), dynamo=True, verbose=False,
        opset_version=opset,
    )  # fmt: skip
    assert program is not None
    return described(program.model).graph


IMAGE = (2, 16, 8, 8)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda m, x: x + x, [Kind.ADD]),
        (lambda m, x: x + 1, [Kind.POINTWISE]),
        (lambda m, x: x / 2, [Kind.MUL]),
        (lambda m, x: x @ x, [Kind.MATMUL]),
        (lambda m, x: torch.cat([x, x]), [Kind.CONCAT]),
        (lambda m, x: F.relu6(x), [Kind.RELU]),
        (lambda m, x: F.gelu(x), [Kind.POINTWISE]),
        (lambda m, x: F.gelu(x, approximate="tanh"), [Kind.POINTWISE]),
        (lambda m, x: F.silu(x), [Kind.POINTWISE]),
        (lambda m, x: F.hardswish(x), [Kind.POINTWISE]),
        (lambda m, x: F.mish(x), [Kind.POINTWISE]),
        (lambda m, x: x.softmax(-1), [Kind.SOFTMAX]),
        (lambda m, x: F.layer_norm(x, [8]), [Kind.NORM]),
        (lambda m, x: F.max_pool2d(x, 2), [Kind.MAX_POOL]),
        (lambda m, x: F.avg_pool2d(x, 2), [Kind.AVERAGE_POOL]),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1), [Kind.AVERAGE_POOL]),
        (lambda m, x: x.mean((2, 3)), [Kind.AVERAGE_POOL]),
        (lambda m, x: x.mean(1), [Kind.POINTWISE]),
        (lambda m, x: x.flatten(1).unsqueeze(1), [Kind.MOVE, Kind.MOVE]),
        (lambda m, x: x[:, :4], [Kind.SLICE]),
        (lambda m, x: x[1], [Kind.SLICE]),
        (lambda m, x: F.pad(x, (1, 1, 1, 1)), [Kind.PAD]),
        (lambda m, x: F.pad(x, (1, 1, 1, 1), value=1.0), [Kind.OTHER]),
        (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), [Kind.OTHER]),
        (lambda m, x: F.interpolate(x, scale_factor=2.0), [Kind.UPSAMPLE]),
        (lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), [Kind.RESIZE]),
        (lambda m, x: x.cumsum(1), [Kind.OTHER]),
    ],
)
@pytest.mark.parametrize("opset", [18])
def test_an_operator_has_the_kind_that_it_has_in_pytorch(
    function: Callable[..., Any], kinds: list[Kind], opset: int
) -> None:
    assert [op.kind for op in exported(function, IMAGE, opset).ops] == kinds


def test_names_of_modules_are_found_in_nodes_of_the_older_exporter() -> None:
    graph = described(small_net()).graph
    assert [(op.name, op.kind) for op in graph.ops] == [
        ("stem.conv", Kind.CONV),
        ("stem.bn/batchnormalization", Kind.BATCH_NORM),
        ("stem.act/clip", Kind.RELU),
        ("layer1.0.conv1", Kind.CONV),
        ("layer1.0/add", Kind.ADD),
        ("layer1.0/relu", Kind.RELU),
        ("pool/globalaveragepool", Kind.AVERAGE_POOL),
        ("/Flatten", Kind.MOVE),
        ("fc", Kind.LINEAR),
    ]


@pytest.mark.parametrize(
    ("name", "op_type", "path"),
    [
        ("/conv/Conv", "Conv", "conv"),
        ("/a/a.0/b/Conv_3", "Conv", "a.0.b"),
        ("/blocks/blocks.1/blocks.1.2/mlp/fc1/MatMul", "MatMul", "blocks.1.2.mlp.fc1"),
        ("Conv_7", "Conv", ""),
        ("model/layer/Conv2D", "Conv", ""),
        ("/Conv", "Conv", ""),
    ],
)
def test_a_path_is_read_only_from_names_that_hold_one(name: str, op_type: str, path: str) -> None:
    assert module_of_name(name, op_type) == path


def test_a_layer_without_notes_is_called_after_its_weight() -> None:
    nodes = [make("Conv", ["x", "body.3.weight"], ["y"], "Conv_9", kernel_shape=[1, 1])]
    model = model_of(nodes, {"x": ["N", 16, 4, 4]}, {"y": ["N", 16, 4, 4]},
                     {"body.3.weight": weight(16, 16, 1, 1)})  # fmt: skip
    assert [op.name for op in described(model).graph.ops] == ["body.3"]


def linear(inputs: Sequence[str], bias: np.ndarray) -> OnnxDescription:
    nodes = [make("MatMul", ["x", "w"], ["h"], "fc"), make("Add", inputs, ["y"], "bias")]
    return described(
        model_of(nodes, {"x": ["N", 24]}, {"y": ["N", 32]}, {"w": weight(24, 32), "b": bias})
    )


@pytest.mark.parametrize("inputs", [("h", "b"), ("b", "h")])
def test_a_product_and_its_bias_are_one_layer_with_channels_on_axis_1(
    inputs: Sequence[str],
) -> None:
    found = linear(inputs, weight(32))
    (op,) = found.graph.ops
    assert (op.kind, op.inputs, op.output, op.weight_axis) == (
        Kind.LINEAR, ("x", "w", "b"), "y", 1,
    )  # fmt: skip
    bias = found.bias("fc")
    assert bias is not None
    assert bias[0][0].name == "bias"
    assert bias[1].name == "b"


def test_what_is_added_to_all_columns_alike_is_no_bias() -> None:
    kinds = [op.kind for op in linear(("h", "b"), np.ones((1,), np.float32)).graph.ops]
    assert kinds == [Kind.LINEAR, Kind.POINTWISE]


def test_gemm_is_a_layer_in_either_layout() -> None:
    for transposed, shape in ((0, (24, 32)), (1, (32, 24))):
        model = model_of([make("Gemm", ["x", "w"], ["y"], "fc", transB=transposed)],
                         {"x": ["N", 24]}, {"y": ["N", 32]}, {"w": weight(*shape)})  # fmt: skip
        (op,) = described(model).graph.ops
        assert (op.kind, op.weight_axis) == (Kind.LINEAR, 1 - transposed)


def test_factors_of_a_gemm_go_into_its_constants() -> None:
    model = model_of([make("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, beta=2.0)],
                     {"x": ["N", 24]}, {"y": ["N", 32]},
                     {"w": weight(24, 32), "b": weight(32)})  # fmt: skip
    (node,) = read_onnx(ir.from_proto(model)).graph
    arrays = [v.const_value.numpy() for v in node.inputs[1:] if v is not None and v.const_value]
    np.testing.assert_array_equal(arrays[0], weight(24, 32) * np.float32(0.5))
    np.testing.assert_array_equal(arrays[1], weight(32) * np.float32(2.0))
    assert not {"alpha", "beta"} & node.attributes.keys()


def test_shapes_that_are_computed_are_no_tensors_of_the_model() -> None:
    graph = exported(lambda m, x: x.reshape(x.shape[0], -1, 4), IMAGE)
    assert {op.kind for op in graph.ops} == {Kind.MOVE}
    nodes = [make("Shape", ["x"], ["s"]), make("Gather", ["s", "zero"], ["n"]),
             make("Concat", ["n", "rest"], ["t"], axis=0), make("Relu", ["x"], ["r"]),
             make("Reshape", ["r", "t"], ["y"])]  # fmt: skip
    constants = {"zero": np.array([0]), "rest": np.array([-1])}
    graph = described(model_of(nodes, {"x": ["N", 4, 4]}, {"y": ["N", 16]}, constants)).graph
    assert [op.kind for op in graph.ops] == [Kind.RELU, Kind.MOVE]
    assert [(op.kind, index) for op, index in graph.consumers["x"]] == [(Kind.RELU, 0)]


def test_what_a_branch_reads_from_outside_is_an_input_of_the_if() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16])
        return helper.make_graph([make("Neg", ["r"], [name])], name, [], [out])

    nodes = [make("Relu", ["x"], ["r"]),
             make("If", ["yes"], ["y"], then_branch=branch("a"),
                  else_branch=branch("b"))]  # fmt: skip
    model = model_of(nodes, {"x": ["N", 16]}, {"y": ["N", 16]})
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    graph = described(model).graph
    assert [op.kind for op in graph.ops] == [Kind.RELU, Kind.OTHER]
    assert "r" in graph.ops[1].inputs


def test_parts_of_a_split_are_as_a_captured_model_has_them() -> None:
    model = model_of([make("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
                      make("Add", ["a", "b"], ["y"])],
                     {"x": ["N", 32]}, {"y": ["N", 16]})  # fmt: skip
    assert [op.kind for op in described(model).graph.ops] == [
        Kind.SLICE, Kind.SLICE, Kind.SLICE, Kind.ADD,
    ]  # fmt: skip


def test_attention_that_stays_whole_says_why() -> None:
    shape = ["N", 4, 16, 16]
    nodes = [make("Attention", ["q", "k", "v"], ["y"], "attend", softcap=5.0)]
    model = model_of(nodes, dict.fromkeys("qkv", shape), {"y": shape}, opset=23)
    found = described(model)
    assert found.notes == {"attend": "Attention with softcap stays whole"}
