"""Q/DQ networks written by hand, one for each form that an engine builder treats in its own way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
FP8 = ml_dtypes.float8_e4m3fn


class Net:
    """Writes one ONNX graph by hand; every tensor has its node's name."""

    def __init__(self, *shape: int | str) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def put(self, name: str, value: Any) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def qdq(self, x: str, name: str, scale: Any = 0.02, zero: Any = 0, **attributes: Any) -> str:
        scale = np.asarray(scale, np.float32)
        zero = zero if isinstance(zero, np.ndarray) else np.full(scale.shape, zero, np.int8)
        grid = [self.put(f"{name}_s", scale), self.put(f"{name}_z", zero)]
        q = self.node("QuantizeLinear", [x, *grid], f"{name}_q", **attributes)
        return self.node("DequantizeLinear", [q, *grid], name, **attributes)

    def weight(self, shape: tuple[int, ...], name: str, axis: int = 0, dtype: Any = np.int8) -> str:
        """Weights on their grid, one scale along ``axis``."""
        count = shape[axis]
        top = 7 if dtype == ml_dtypes.int4 else 127
        stored = [
            self.put(f"{name}_q", RNG.integers(-top, top + 1, shape).astype(dtype)),
            self.put(f"{name}_s", (RNG.random(count) + 0.5).astype(np.float32) * 0.01),
            self.put(f"{name}_z", np.zeros(count, dtype)),
        ]
        return self.node("DequantizeLinear", stored, name, axis=axis)

    def floats(self, shape: tuple[int, ...], name: str) -> str:
        return self.put(name, RNG.standard_normal(shape).astype(np.float32))

    def done(self, output: str) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", TensorProto.FLOAT, self.shape)],
            [value(output, TensorProto.FLOAT, None)],
            self.stored,
        )
        domains = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=10)


def conv_relu_conv(batch: int | str = 1) -> onnx.ModelProto:
    n = Net(batch, 8, 16, 16)
    y = n.node("Conv", [n.qdq("x", "dx"), n.weight((16, 8, 3, 3), "w1")], "conv1", pads=[1] * 4)
    y = n.qdq(n.node("Relu", [y], "relu"), "d2")
    return n.done(n.node("Conv", [y, n.weight((32, 16, 3, 3), "w2")], "conv2", pads=[1] * 4))


def conv_relu_conv_any_batch() -> onnx.ModelProto:
    return conv_relu_conv("batch")


def residual() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    x = n.qdq("x", "dx")
    y = n.node("Conv", [x, n.weight((8, 8, 3, 3), "w1")], "conv1", pads=[1] * 4)
    y = n.qdq(n.node("Relu", [y], "relu1"), "d2")
    y = n.node("Conv", [y, n.weight((8, 8, 3, 3), "w2")], "conv2", pads=[1] * 4)
    y = n.node("Relu", [n.node("Add", [y, x], "add")], "relu2")
    return n.done(n.node("Conv", [n.qdq(y, "d3"), n.weight((8, 8, 1, 1), "w3")], "conv3"))


def float_net() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    y = n.node("Conv", ["x", n.floats((16, 8, 3, 3), "w1")], "conv1")
    model = n.done(n.node("Conv", [y, n.floats((16, 16, 3, 3), "w2")], "conv2"))
    model.graph.node[0].metadata_props.add(key="quantkit.reason", value="fewer than 16 channels")
    return model


def matmul() -> onnx.ModelProto:
    n = Net(16, 64)
    y = n.node("MatMul", [n.qdq("x", "dx"), n.weight((64, 128), "w1", axis=1)], "matmul")
    y = n.qdq(n.node("Gelu", [y], "gelu"), "d2")
    bias = n.floats((32,), "b")
    return n.done(n.node("Gemm", [y, n.weight((32, 128), "w2"), bias], "gemm", transB=1))


def weight_only() -> onnx.ModelProto:
    n = Net(16, 64)
    return n.done(n.node("MatMul", ["x", n.weight((64, 128), "w", axis=1)], "matmul"))


def int4(n: Net, x: str, groups: int) -> onnx.ModelProto:
    stored = [
        n.put("w_q", RNG.integers(-7, 8, (64, 128)).astype(ml_dtypes.int4)),
        n.put("w_s", np.full((groups, 128), 0.01, np.float32)),
        n.put("w_z", np.zeros((groups, 128), ml_dtypes.int4)),
    ]
    w = n.node("DequantizeLinear", stored, "w", axis=0, block_size=64 // groups)
    return n.done(n.node("MatMul", [x, w], "matmul"))


def int4_groups() -> onnx.ModelProto:
    return int4(Net(16, 64), "x", groups=2)


def int4_groups_with_int8_activations() -> onnx.ModelProto:
    n = Net(16, 64)
    return int4(n, n.qdq("x", "dx"), groups=2)


def int4_per_channel() -> onnx.ModelProto:
    n = Net(16, 64)
    w = n.weight((64, 128), "w", axis=1, dtype=ml_dtypes.int4)
    return n.done(n.node("MatMul", ["x", w], "matmul"))


def attention() -> onnx.ModelProto:
    n = Net(1, 128, 64)
    x = n.qdq("x", "dx")

    def head(name: str, order: list[int]) -> str:
        y = n.node("MatMul", [x, n.weight((64, 64), f"w{name}", axis=1)], f"project_{name}")
        y = n.node("Reshape", [y, n.put(f"shape_{name}", [1, 128, 2, 32])], f"split_{name}")
        return n.qdq(n.node("Transpose", [y], f"turn_{name}", perm=order), f"d{name}")

    q, k, v = head("q", [0, 2, 1, 3]), head("k", [0, 2, 3, 1]), head("v", [0, 2, 1, 3])
    y = n.node("Mul", [n.node("MatMul", [q, k], "qk"), n.floats((), "root")], "scaled")
    y = n.qdq(n.node("Softmax", [y], "softmax", axis=-1), "dp", 1 / 127)
    y = n.node("Transpose", [n.node("MatMul", [y, v], "pv")], "turn", perm=[0, 2, 1, 3])
    y = n.qdq(n.node("Reshape", [y, n.put("shape", [1, 128, 64])], "join"), "do")
    return n.done(n.node("MatMul", [y, n.weight((64, 64), "wo", axis=1)], "out"))


def one_conv(op: str = "", inputs: Callable[[Net], list[str]] | None = None) -> onnx.ModelProto:
    """A quantized convolution behind an operator that may commute with DequantizeLinear."""
    n = Net(1, 8, 16, 16)
    x = n.qdq("x", "dx")
    options = {"kernel_shape": [2, 2]} if op.endswith("Pool") else {}
    if op:
        x = n.node(op, [x, *(inputs(n) if inputs else [])], "between", **options)
    return n.done(n.node("Conv", [x, n.weight((16, 8, 3, 3), "w")], "conv"))


def behind_maxpool() -> onnx.ModelProto:
    return one_conv("MaxPool")


def behind_resize() -> onnx.ModelProto:
    return one_conv("Resize", lambda n: ["", n.put("sizes", np.array([1, 1, 2, 2], np.float32))])


def behind_average_pool() -> onnx.ModelProto:
    return one_conv("AveragePool")


def transposed_conv() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    w = n.weight((8, 16, 2, 2), "w", axis=1)
    return n.done(n.node("ConvTranspose", [n.qdq("x", "dx"), w], "deconv", strides=[2, 2]))


def float_weight() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    return n.done(n.node("Conv", [n.qdq("x", "dx"), n.floats((16, 8, 3, 3), "w")], "conv"))


def wrong_axis() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    w = n.weight((8, 8, 3, 3), "w", axis=1)
    return n.done(n.node("Conv", [n.qdq("x", "dx"), w], "conv"))


def channel_activations() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    x = n.qdq("x", "dx", np.full(8, 0.02), axis=1)
    return n.done(n.node("Conv", [x, n.weight((16, 8, 3, 3), "w")], "conv"))


def weight_only_conv() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    return n.done(n.node("Conv", ["x", n.weight((16, 8, 3, 3), "w")], "conv"))


def uneven_concat() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    y = n.node("Concat", [n.qdq("x", "da", 0.02), n.qdq("x", "db", 0.01)], "join", axis=1)
    return n.done(n.node("Conv", [y, n.weight((16, 16, 3, 3), "w")], "conv"))


def computed_scale() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    grid = [n.node("ReduceMax", ["x"], "largest", keepdims=0), n.put("z", np.int8(0))]
    q = n.node("QuantizeLinear", ["x", *grid], "q")
    x = n.node("DequantizeLinear", [q, *grid], "dx")
    return n.done(n.node("Conv", [x, n.weight((16, 8, 3, 3), "w")], "conv"))


def fp8() -> onnx.ModelProto:
    n = Net(16, 64)
    x = n.qdq("x", "dx", zero=np.zeros((), FP8))
    stored = [n.put("w_q", RNG.standard_normal((64, 128)).astype(FP8)), "dx_s", "dx_z"]
    return n.done(n.node("MatMul", [x, n.node("DequantizeLinear", stored, "w")], "matmul"))


def shifted_zero() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    w1, w2 = n.weight((8, 8, 1, 1), "w1"), n.weight((8, 8, 1, 1), "w2")
    y = n.node("Conv", [n.qdq("x", "d1", zero=3), w1], "conv1")
    return n.done(n.node("Conv", [n.qdq(y, "d2", zero=-128), w2], "conv2"))


def zero_scale() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    x = n.qdq("x", "dx", scale=0.0)
    return n.done(n.node("Conv", [x, n.weight((16, 8, 3, 3), "w")], "conv"))


def uint8_weight() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    stored = [n.put("w_q", RNG.integers(0, 256, (16, 8, 3, 3)).astype(np.uint8))]
    stored += [n.put("w_s", np.float32(0.01)), n.put("w_z", np.uint8(128))]
    w = n.node("DequantizeLinear", stored, "w")
    return n.done(n.node("Conv", [n.qdq("x", "dx"), w], "conv"))


def uint8_activation() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    x = n.qdq("x", "dx", zero=np.zeros((), np.uint8))
    return n.done(n.node("Conv", [x, n.weight((16, 8, 3, 3), "w")], "conv"))


def int32_bias() -> onnx.ModelProto:
    n = Net(1, 8, 16, 16)
    stored = [n.put("b_q", np.ones(16, np.int32)), n.put("b_s", np.full(16, 0.1, np.float32))]
    inputs = [n.qdq("x", "dx"), n.weight((16, 8, 3, 3), "w")]
    bias = n.node("DequantizeLinear", stored, "bias", axis=0)
    return n.done(n.node("Conv", [*inputs, bias], "conv"))


def custom_operator() -> onnx.ModelProto:
    n = Net(1, 8)
    y = n.node("Mystery", ["x"], "mystery", domain="own")
    return n.done(n.node("Relu", [y], "relu"))


def four_troubles() -> onnx.ModelProto:
    """A custom operator, a zero-point that is not 0, a computed scale and a ConvTranspose."""
    n = Net("N", 8, 16, 16)
    y = n.node("Conv", [n.qdq("x", "d1"), n.weight((8, 8, 3, 3), "w1")], "conv1", pads=[1] * 4)
    y = n.node("Relu", [n.node("Mystery", [y], "mystery", domain="own")], "relu1")
    y = n.node("Conv", [n.qdq(y, "d2", zero=3), n.weight((8, 8, 3, 3), "w2")], "conv2")
    grid = [n.node("ReduceMax", [y], "largest", keepdims=0), n.put("z", np.int8(0))]
    y = n.node("DequantizeLinear", [n.node("QuantizeLinear", [y, *grid], "q3"), *grid], "d3")
    y = n.node("Conv", [y, n.weight((8, 8, 1, 1), "w3")], "conv3")
    w = n.weight((8, 4, 2, 2), "w4", axis=1)
    return n.done(n.node("ConvTranspose", [n.qdq(y, "d4"), w], "deconv", strides=[2, 2]))


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write ``model.onnx``."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path
