"""Rows of the table that a real builder can confirm: micro-networks built with TensorRT-RTX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.hardware import Format, Gpu, Runtime, Verdict, support
from quantkit.targets._engine_layers import kernel_for, precision
from quantkit.targets._engine_source import read_source
from quantkit.targets._rtx_layers import parse_layers
from quantkit.targets.tensorrt_rtx import TensorRTRTX

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)

RNG = np.random.default_rng(0)
K, N = 64, 128
FP8 = ml_dtypes.float8_e4m3fn


class Net:
    """One product, ``product``, in a network of fp16 (Turing takes no product in fp32)."""

    def __init__(self, shape: tuple[int, ...], dtype: int = TensorProto.FLOAT16) -> None:
        self.shape, self.dtype = shape, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def put(self, name: str, value: object) -> str:
        self.stored.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], *names: str, **attributes: object) -> str:
        made = helper.make_node(op, inputs, names, name=names[0], **attributes)
        if op.startswith("TRT_"):
            made.domain = "trt"
        self.nodes.append(made)
        return names[0]

    def done(self, op: str, x: str, w: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node(op, [x, w], ["y"], name="product"))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "g", [value("x", self.dtype, self.shape)], [value("y", self.dtype, None)],
            self.stored,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def half(value: object) -> np.ndarray:
    return np.asarray(value, np.float16)


def plain(dtype: int) -> onnx.ModelProto:
    net = Net((16, K), dtype)
    net.stored.append(helper.make_tensor("w", dtype, [K, N], RNG.standard_normal(K * N)))
    return net.done("MatMul", "x", "w")


def quantized(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], axis: int, dtype: np.dtype
) -> onnx.ModelProto:
    """Q/DQ on both sides, weights per channel (fp8: per tensor)."""
    net = Net(shape)
    grid = [net.put("xs", half(0.02)), net.put("xz", np.zeros((), dtype))]
    net.node("QuantizeLinear", ["x", *grid], "xq")
    net.node("DequantizeLinear", ["xq", *grid], "xd")
    count = () if dtype == FP8 else (weight[axis],)
    values = (RNG.standard_normal(weight) * 50).astype(dtype)
    stored = [net.put("wq", values), net.put("ws", half(np.full(count, 0.01)))]
    stored.append(net.put("wz", np.zeros(count, dtype)))
    along = {} if dtype == FP8 else {"axis": axis}
    net.node("DequantizeLinear", stored, "w", **along)
    return net.done(op, "xd", "w")


def int4() -> onnx.ModelProto:
    net = Net((16, K))
    values = RNG.integers(-7, 8, (K, N)).astype(ml_dtypes.int4)
    stored = [net.put("wq", values), net.put("ws", half(np.full((K // 32, N), 0.01)))]
    net.node("DequantizeLinear", stored, "w", axis=0, block_size=32)
    return net.done("MatMul", "x", "w")


def mxfp8() -> onnx.ModelProto:
    net = Net((16, K))
    fp8, fp16 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT16
    blocks = {"axis": -1, "block_size": 32}
    net.node("TRT_MXFP8DynamicQuantize", ["x"], "xq", "xs", output_dtype=fp8, **blocks)
    net.node("TRT_MXFP8DequantizeLinear", ["xq", "xs"], "xd", output_dtype=fp16, **blocks)
    stored = [net.put("wq", RNG.standard_normal((K, N)).astype(FP8))]
    stored.append(net.put("ws", np.full((K // 32, N), 127, np.uint8)))  # 2 to the power of 0
    net.node("TRT_MXFP8DequantizeLinear", stored, "w", axis=0, block_size=32, output_dtype=fp16)
    return net.done("MatMul", "xd", "w")


def nvfp4() -> onnx.ModelProto:
    net = Net((16, K))
    whole = net.put("xg", half(0.02))
    scale_type = TensorProto.FLOAT8E4M3FN
    blocks = {"axis": -1, "block_size": 16}
    net.node("TRT_FP4DynamicQuantize", ["x", whole], "xq", "xs8", scale_type=scale_type, **blocks)
    net.node("DequantizeLinear", ["xs8", whole], "xs")
    net.node("DequantizeLinear", ["xq", "xs"], "xd", **blocks)
    values = RNG.choice([0.5, 1, 1.5, 2, 3, -1, -2], K * N)
    net.stored.append(helper.make_tensor("wq", TensorProto.FLOAT4E2M1, [K, N], values))
    scales = [net.put("ws8", np.ones((K // 16, N)).astype(FP8)), net.put("wg", half(0.01))]
    net.node("DequantizeLinear", scales, "ws")
    net.node("DequantizeLinear", ["wq", "ws"], "w", axis=0, block_size=16)
    return net.done("MatMul", "xd", "w")


def int8() -> onnx.ModelProto:
    return quantized("MatMul", (16, K), (K, N), 1, np.dtype(np.int8))


def int8_conv() -> onnx.ModelProto:
    return quantized("Conv", (1, 32, 8, 8), (32, 32, 3, 3), 0, np.dtype(np.int8))


def fp8() -> onnx.ModelProto:
    return quantized("MatMul", (16, K), (K, N), 1, np.dtype(FP8))


NETS: dict[str, tuple[Format, Callable[[], onnx.ModelProto]]] = {
    "fp16": (Format.FP16, lambda: plain(TensorProto.FLOAT16)),
    "bf16": (Format.BF16, lambda: plain(TensorProto.BFLOAT16)),
    "int8": (Format.INT8, int8),
    "int8 convolution": (Format.INT8, int8_conv),
    "int4": (Format.INT4, int4),
    "fp8": (Format.FP8, fp8),
    "mxfp8": (Format.MXFP8, mxfp8),
    "nvfp4": (Format.NVFP4, nvfp4),
}
#: The type that the builder's product reads first, as it names it.
READS = {Format.FP16: "float16", Format.BF16: "bfloat16", Format.INT8: "int8", Format.FP8: "fp8"}
FLOAT = ("float16", "bfloat16", "float32")
CASES = [
    *(("fp16", cc) for cc in ("7.5", "12.0")),
    *(("bf16", cc) for cc in ("7.5", "8.0", "12.0")),
    *(("int8", cc) for cc in ("7.5", "8.0", "8.6", "8.9", "12.0")),
    *(("int8 convolution", cc) for cc in ("7.5", "8.6")),
    *(("int4", cc) for cc in ("7.5", "8.6", "12.0")),
    *(("fp8", cc) for cc in ("7.5", "8.0", "8.6", "8.9", "12.0")),
    *(("mxfp8", cc) for cc in ("8.6", "8.9")),
    *(("nvfp4", cc) for cc in ("8.9", "12.0", "12.1")),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """What the product of a network runs in, or ``refused``."""
    folder = tmp_path_factory.mktemp("nets")

    @cache
    def file(name: str) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(NETS[name][1](), path)
        return path

    def build(name: str, capability: str) -> str:
        source = read_source(file(name))
        target = TensorRTRTX(compute_capability=capability, progress=False)
        outcome = target._built(source, folder / "engine")
        if not outcome.built:
            assert any("HW-specific datatypes" in error for error in outcome.errors)
            return "refused"
        kernel = kernel_for(parse_layers(outcome.layers), "product")
        assert kernel is not None
        first = kernel.inputs[0].format
        return precision(kernel, quantized_weight=True) if name == "int4" else first

    return build


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_the_builder_confirms_the_table(
    name: str, capability: str, built: Callable[[str, str], str]
) -> None:
    format = NETS[name][0]
    cell = support(Gpu.of(capability), format, Runtime.TENSORRT_RTX)

    made = built(name, capability)

    if cell.verdict is Verdict.NO:
        assert made == "refused"
    elif cell.verdict is Verdict.WEIGHT_ONLY:
        assert made == f"{format} weights"
    elif cell.verdict is Verdict.EMULATED or (cell.only == "matrix products" and "conv" in name):
        assert made in FLOAT
    elif format is Format.NVFP4:
        assert made.startswith("fp4")
    else:
        assert cell.verdict is Verdict.TENSOR_CORE
        assert made == READS[format]


def test_every_target_of_the_builder_is_in_the_table_and_no_other() -> None:
    from quantkit.hardware import CHIPS
    from quantkit.targets.tensorrt_rtx import CAPABILITIES

    def runs(capability: tuple[int, int]) -> bool:
        cell = support(Gpu("", capability), Format.FP16, Runtime.TENSORRT_RTX)
        return cell.verdict is not Verdict.NO

    known = {"{}.{}".format(*c.capability) for c in CHIPS if runs(c.capability)}
    assert known == set(CAPABILITIES)
