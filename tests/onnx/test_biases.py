"""Biases in the forms that ONNX Runtime fuses: the same values, exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.onnx.biases import integer_biases, widen_biases

RNG = np.random.default_rng(0)


class Net:
    """Writes a small graph, an operator a call."""

    def __init__(self, *shape: int | str) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, name: str, array: object) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def qdq(self, x: str, scale: object = np.float32(0.05), zero: object = np.uint8(128)) -> str:
        grid = [self.const(f"{x}_{part}", v) for part, v in (("scale", scale), ("zero", zero))]
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *grid), *grid)

    def weight(self, scale: np.ndarray, name: str = "w", **attributes: object) -> str:
        integers = RNG.integers(-127, 128, (8, 16)).astype(np.int8)
        parts = [
            self.const(f"{name}_q", integers),
            self.const(f"{name}_scale", scale),
            self.const(f"{name}_zero", np.zeros_like(scale, np.int8)),
        ]
        return self.op("DequantizeLinear", *parts, **attributes)

    def model(self, *outputs: str) -> ir.Model:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        ends = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "g", [x], ends, self.constants)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return [np.asarray(y) for y in session.run(None, {"x": x})]


def constant(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


SCALES = {
    "per channel": np.logspace(-3, -1, 8, dtype=np.float32),
    "per tensor": np.float32(0.01),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("flattened", [False, True])
def test_the_bias_of_a_gemm_becomes_the_integers_that_it_stands_for(
    scale: np.ndarray, flattened: bool
) -> None:
    integers = np.array([0, 1, -1, 127, -50000, 2**22, -(2**23), 7], np.int64)
    step = (np.float32(0.05) * scale).astype(np.float32)
    bias = (integers * step.astype(np.float64)).astype(np.float32)
    net = Net("N", 16)
    x = net.qdq("x")
    if flattened:
        x = net.op("Flatten", x)
    weight = net.weight(scale, **({"axis": 0} if scale.ndim else {}))
    model = net.model(net.op("Gemm", x, weight, net.const("b", bias), transB=1))
    data = RNG.standard_normal((5, 16)).astype(np.float32)
    (before,) = run(model, data)
    assert integer_biases(model.graph) == 1
    stored = constant(model, "b_quantized")
    assert stored.dtype == np.int32
    np.testing.assert_array_equal(stored, integers)
    np.testing.assert_array_equal(constant(model, "b_scale"), step)
    np.testing.assert_allclose(run(model, data)[0], before, rtol=1e-6)


def test_layers_that_share_a_bias_each_get_integers_of_their_own_step() -> None:
    net = Net("N", 16)
    x, bias = net.qdq("x"), net.const("b", np.arange(8, dtype=np.float32))
    scales = [np.full(8, s, np.float32) for s in (0.5, 0.25)]
    ends = [
        net.op("Gemm", x, net.weight(s, f"w{i}", axis=0), bias, transB=1)
        for i, s in enumerate(scales)
    ]
    model = net.model(*ends)
    data = RNG.standard_normal((5, 16)).astype(np.float32)
    before = run(model, data)
    assert integer_biases(model.graph) == 2
    for found, expected in zip(run(model, data), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gemms = [node for node in model.graph if node.op_type == "Gemm"]
    assert len({id(node.inputs[2]) for node in gemms}) == 2
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)


def fp8(net: Net) -> str:
    zero = helper.make_tensor("fp8_zero", TensorProto.FLOAT8E4M3FN, [], b"\x00", raw=True)
    net.constants.append(zero)
    scale = net.const("fp8_scale", np.float32(0.1))
    return net.op(
        "DequantizeLinear", net.op("QuantizeLinear", "x", scale, "fp8_zero"), scale, "fp8_zero"
    )


def left_alone(case: str) -> ir.Model:
    net = Net("N", 16)
    bias = net.const("b", np.ones(8, np.float32))
    flat = np.full(8, 0.01, np.float32)
    if case == "fp8 activations":
        ends = [fp8(net), net.weight(flat, axis=0), bias]
    elif case == "float activations":
        ends = ["x", net.weight(flat, axis=0), bias]
    elif case == "float weights":
        ends = [net.qdq("x"), net.const("w", np.ones((8, 16), np.float32)), bias]
    elif case == "weights in groups":
        groups = np.full((8, 4), 0.01, np.float32)
        ends = [net.qdq("x"), net.weight(groups, axis=1, block_size=4), bias]
    elif case == "no bias":
        ends = [net.qdq("x"), net.weight(flat, axis=0)]
    elif case == "a bias beyond 32 bits":
        huge = net.const("huge", np.full(8, 1e9, np.float32))
        ends = [net.qdq("x"), net.weight(flat, axis=0), huge]
    elif case == "a bias of two dimensions":
        rows = net.const("rows", np.ones((1, 8), np.float32))
        ends = [net.qdq("x"), net.weight(flat, axis=0), rows]
    else:
        assert case == "an operator between"
        ends = [net.op("Exp", net.qdq("x")), net.weight(flat, axis=0), bias]
    return net.model(net.op("Gemm", *ends, transB=1))


@pytest.mark.parametrize(
    "case",
    [
        "fp8 activations",
        "float activations",
        "float weights",
        "weights in groups",
        "no bias",
        "a bias beyond 32 bits",
        "a bias of two dimensions",
        "an operator between",
    ],
)
def test_a_bias_of_sums_that_are_not_of_integers_stays_float(case: str) -> None:
    model = left_alone(case)
    assert integer_biases(model.graph) == 0
    (gemm,) = (node for node in model.graph if node.op_type == "Gemm")
    assert all(v is None or v.dtype == ir.DataType.FLOAT for v in gemm.inputs)
    run(model, np.ones((2, 16), np.float32))


@pytest.mark.parametrize("first", [True, False])
def test_the_bias_behind_a_matmul_of_three_dimensions_gets_three_itself(first: bool) -> None:
    net = Net("N", 5, 16)
    weight, bias = (
        net.const("w", np.ones((16, 8), np.float32)),
        net.const("b", np.arange(8.0, dtype=np.float32)),
    )
    product = net.op("MatMul", "x", weight)
    model = net.model(net.op("Add", *((product, bias) if first else (bias, product))))
    data = RNG.standard_normal((2, 5, 16)).astype(np.float32)
    (before,) = run(model, data)
    assert widen_biases(model.graph) == 1
    assert constant(model, "b_wide").shape == (1, 1, 8)
    np.testing.assert_array_equal(run(model, data)[0], before)
    assert widen_biases(model.graph) == 0


def test_a_bias_that_two_products_share_is_widened_for_both() -> None:
    net = Net("N", 5, 16)
    weight, bias = (
        net.const("w", np.ones((16, 8), np.float32)),
        net.const("b", np.ones(8, np.float32)),
    )
    ends = [net.op("Add", net.op("MatMul", "x", weight), bias) for _ in range(2)]
    model = net.model(*ends)
    assert widen_biases(model.graph) == 2
    run(model, np.ones((2, 5, 16), np.float32))


@pytest.mark.parametrize(
    ("shape", "operator", "bias"),
    [
        (("N", 16), "MatMul", (8,)),
        (("N", 2, 5, 16), "MatMul", (8,)),
        (("N", 5, 16), "MatMul", (1, 8)),
        (("N", 5, 8), "Relu", (8,)),
    ],
    ids=["two dimensions", "four dimensions", "a wide bias", "no product"],
)
def test_other_sums_stay_as_they_are(
    shape: tuple[int | str, ...], operator: str, bias: tuple[int, ...]
) -> None:
    net = Net(*shape)
    inputs = ["x", net.const("w", np.ones((16, 8), np.float32))][: 2 if operator == "MatMul" else 1]
    model = net.model(
        net.op("Add", net.op(operator, *inputs), net.const("b", np.ones(bias, np.float32)))
    )
    assert widen_biases(model.graph) == 0
