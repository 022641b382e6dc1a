"""ONNX Runtime's CPU kernels: which layers run in integers, and what is told of the others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantkit.errors import MissingDependencyError, ModelFileError, RecipeError, TargetError
from quantkit.interfaces import Inspection, Severity
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets.onnxruntime import OnnxRuntime, latency, medians

VNNI = OnnxRuntime(threads=1, cpu="avx512_vnni")
IMAGE = (1, 8, 6, 6)


class Net:
    """Writes small ONNX files, an operator a call."""

    def __init__(self, shape: tuple[int | str, ...] = IMAGE, opset: int = 20) -> None:
        self.shape, self.opset = shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def const(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"/{name}", **attributes))
        return name

    def qdq(self, x: str, zero: int = 128, dtype: type = np.uint8, scale: float = 0.03) -> str:
        grid = self.const(np.float32(scale)), self.const(np.array(zero, dtype))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *grid), *grid)

    def weights(self, *shape: int, axis: int = 0, top: int = 127, scale: Any = 0.003) -> str:
        values = self.rng.integers(-top, top + 1, shape).astype(np.int8)
        values.flat[0] = top
        scales = np.broadcast_to(np.float32(scale), shape[axis]).copy()
        zeros = np.zeros(shape[axis], np.int8)
        parts = [self.const(v) for v in (values, scales, zeros)]
        return self.op("DequantizeLinear", *parts, axis=axis)

    def floats(self, *shape: int) -> str:
        return self.const(self.rng.standard_normal(shape).astype(np.float32) * 0.1)

    def conv(self, x: str, **weights: Any) -> str:
        return self.op("Conv", x, self.weights(8, 8, 3, 3, **weights), self.floats(8))

    def save(self, folder: Path, *outputs: str, external: bool = False) -> Path:
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        ends = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, ends, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        file = folder / "model.onnx"
        onnx.save(
            model, file, save_as_external_data=external, location="model.data", size_threshold=0
        )
        return file


def image(batch: int = 1) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *IMAGE[1:])).astype(np.float32)


def inspect(folder: Path, net: Net, *outputs: str, target: OnnxRuntime = VNNI) -> Inspection:
    return target.inspect(net.save(folder, *outputs))


def codes(inspection: Inspection) -> list[str]:
    return [finding.code for finding in inspection.findings]


def two_convolutions(top: int = 127) -> tuple[Net, str]:
    net = Net()
    x = net.qdq(net.op("Relu", net.conv(net.qdq("x"), top=top)), zero=0)
    return net, net.qdq(net.conv(x, top=top))


def test_quantized_convolutions_run_in_integers(tmp_path: Path) -> None:
    report = inspect(tmp_path, *two_convolutions())
    assert [layer.kernel for layer in report.layers] == ["QLinearConv"] * 2
    assert [layer.precision for layer in report.layers] == ["int8"] * 2
    assert [layer.node for layer in report.layers] == ["/conv3", "/conv8"]
    assert (report.planned, report.covered, report.findings) == (2, 2, ())
    assert report.target.startswith("onnxruntime 1")
    assert report.seconds > 0


def _clip(net: Net, x: str, low: float, high: float) -> str:
    return net.op("Clip", x, net.const(np.float32(low)), net.const(np.float32(high)))


@pytest.mark.parametrize(
    ("follow", "covered"),
    [
        (lambda n, x: n.qdq(x), True),
        (lambda n, x: n.qdq(n.op("Relu", x), zero=0), True),
        (lambda n, x: n.qdq(n.op("Relu", x), zero=-128, dtype=np.int8), True),
        (lambda n, x: n.qdq(_clip(n, x, 0, 6), zero=0, scale=6 / 255), True),
        (lambda n, x: n.qdq(n.op("Relu", x), zero=128), False),
        (lambda n, x: n.qdq(n.op("Relu", x), zero=0, dtype=np.int8), False),
        (lambda n, x: n.qdq(_clip(n, x, 0, 6), zero=0, scale=7 / 255), False),
    ],
)
def test_a_clip_after_a_convolution_must_be_implied_by_the_grid(
    tmp_path: Path, follow: Callable[[Net, str], str], covered: bool
) -> None:
    net = Net()
    report = inspect(tmp_path, net, follow(net, net.conv(net.qdq("x"))))
    assert report.planned == 1
    assert report.covered == covered
    assert codes(report) == ([] if covered else ["clip-not-implied"])
    assert bool(report.layers[0].reason) != covered


def test_a_clip_of_the_integers_keeps_the_convolution_in_integers(tmp_path: Path) -> None:
    # The exact form of ReLU on a symmetric grid: what is below the zero-point is clipped there.
    net = Net()
    grid = net.const(np.float32(0.03)), net.const(np.uint8(128))
    q = net.op("QuantizeLinear", net.conv(net.qdq("x")), *grid)
    y = net.op("DequantizeLinear", net.op("Clip", q, grid[1]), *grid)
    report = inspect(tmp_path, net, y)
    assert (report.covered, report.findings) == (1, ())


@pytest.mark.parametrize("follow", ["Sigmoid", None])
def test_a_convolution_needs_a_quantized_output(tmp_path: Path, follow: str | None) -> None:
    net = Net()
    y = net.conv(net.qdq("x"))
    report = inspect(tmp_path, net, net.op(follow, y) if follow else y)
    assert (report.planned, report.covered) == (1, 0)
    assert codes(report) == ["output-not-quantized"]
    assert (follow or "the model's output") in report.layers[0].reason


def test_an_output_with_a_second_reader_is_float(tmp_path: Path) -> None:
    net = Net()
    y = net.conv(net.qdq("x"))
    report = inspect(tmp_path, net, net.qdq(y), net.op("Sigmoid", y))
    assert codes(report) == ["output-not-quantized"]
    assert "QuantizeLinear, Sigmoid" in report.layers[0].reason


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda n: n.op("Conv", "x", n.weights(8, 8, 3, 3)), "weight-only"),
        (
            lambda n: n.qdq(n.op("ConvTranspose", n.qdq("x"), n.weights(8, 8, 2, 2, axis=1))),
            "no-integer-kernel",
        ),
        (lambda n: n.qdq(n.op("MatMul", n.qdq("x"), n.floats(6, 6))), "activation-only"),
    ],
)
def test_what_has_no_integer_kernel_is_told_with_the_reason(
    tmp_path: Path, build: Callable[[Net], str], code: str
) -> None:
    net = Net()
    report = inspect(tmp_path, net, build(net))
    assert codes(report) == [code]
    assert report.findings[0].severity is Severity.WARNING
    assert report.findings[0].where == report.layers[0].node
    assert (report.planned, report.covered) == (1, 0)


def test_fp8_is_computed_in_float(tmp_path: Path) -> None:
    net = Net(opset=19)
    net.constants.append(helper.make_tensor("z8", TensorProto.FLOAT8E4M3FN, [], [0]))
    net.constants.append(helper.make_tensor("w8", TensorProto.FLOAT8E4M3FN, [6, 6], [1] * 36))
    scale = net.const(np.float32(0.03))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, "z8"), scale, "z8")
    y = net.op("MatMul", x, net.op("DequantizeLinear", "w8", scale, "z8"))
    report = inspect(tmp_path, net, y)
    assert codes(report) == ["no-integer-kernel"]
    assert "FLOAT8E4M3FN" in report.layers[0].reason


def test_weight_scales_along_the_inputs_of_a_matmul_leave_it_in_float(tmp_path: Path) -> None:
    net = Net()
    y = net.qdq(net.op("MatMul", net.qdq("x"), net.weights(6, 6, axis=0)))
    report = inspect(tmp_path, net, y)
    assert (report.covered, codes(report)) == (0, ["weight-axis"])


def test_a_layer_left_in_float_is_no_finding(tmp_path: Path) -> None:
    net = Net()
    report = inspect(tmp_path, net, net.op("Conv", "x", net.floats(8, 8, 3, 3)))
    (layer,) = report.layers
    assert (layer.quantized, layer.precision) == (False, "float32")
    assert "leaves it in float" in layer.reason
    assert report.findings == ()


def _linear(net: Net, bias: str, **weights: Any) -> str:
    return net.op("Add", net.op("MatMul", net.qdq("x"), net.weights(6, 4, axis=1, **weights)), bias)


@pytest.mark.parametrize(
    ("bias", "quantized_output", "kernel"),
    [
        (lambda n: n.floats(1, 1, 4), False, "MatMulIntegerToFloat"),
        (lambda n: n.floats(4), True, "QGemm"),
        (lambda n: n.floats(4), False, "Gemm"),
    ],
)
def test_the_bias_of_a_linear_layer_decides_its_kernel(
    tmp_path: Path, bias: Callable[[Net], str], quantized_output: bool, kernel: str
) -> None:
    net = Net((1, 5, 6))
    y = _linear(net, bias(net))
    report = inspect(tmp_path, net, net.qdq(y) if quantized_output else y)
    (layer,) = report.layers
    assert layer.op_type == "MatMul"
    assert layer.kernel == kernel
    assert codes(report) == (["float-bias"] if kernel == "Gemm" else [])


@pytest.mark.parametrize("int32_bias", [False, True])
def test_a_gemm_with_float_output_needs_an_integer_bias(tmp_path: Path, int32_bias: bool) -> None:
    net = Net((3, 6))
    bias = net.floats(4)
    if int32_bias:
        scales = np.full(4, 0.03 * 0.003, np.float32)
        bias = net.op(
            "DequantizeLinear", net.const(np.ones(4, np.int32)), net.const(scales), axis=0
        )
    y = net.op("Gemm", net.qdq("x"), net.weights(4, 6), bias, transB=1)
    report = inspect(tmp_path, net, y)
    assert report.covered == int32_bias
    assert codes(report) == ([] if int32_bias else ["float-bias"])


def test_weight_only_matmul_has_a_kernel_with_its_bits(tmp_path: Path) -> None:
    net = Net((3, 64), opset=21)
    (layer,) = inspect(tmp_path, net, net.op("MatMul", "x", net.weights(64, 32, axis=1))).layers
    assert (layer.quantized, layer.kernel, layer.precision) == (True, "MatMulNBits", "int8")


@pytest.mark.parametrize("move", ["MaxPool", "Transpose"])
def test_a_grid_passes_through_what_only_moves_values(tmp_path: Path, move: str) -> None:
    net = Net()
    how: dict[str, Any] = {"kernel_shape": [2, 2]} if move == "MaxPool" else {"perm": [0, 1, 3, 2]}
    report = inspect(tmp_path, net, net.qdq(net.conv(net.op(move, net.qdq("x"), **how))))
    assert (report.planned, report.covered) == (1, 1)


def test_nodes_without_names_and_with_equal_names_are_told_apart(tmp_path: Path) -> None:
    net, y = two_convolutions()
    for node in net.nodes:
        node.name = ""
    unnamed = inspect(tmp_path, net, y)
    assert [layer.node for layer in unnamed.layers] == ["Conv(conv3)", "Conv(conv8)"]
    assert unnamed.covered == 2
    # Eleven layers: the label of the second must not be the beginning of the eleventh's.
    deep = Net()
    x = "x"
    for number in range(12):
        x = deep.op(
            "MatMul", deep.qdq(x), deep.floats(6, 6) if number == 1 else deep.weights(6, 6, axis=1)
        )
    report = inspect(tmp_path, deep, x)
    assert [layer.kernel == "MatMul" for layer in report.layers] == [i == 1 for i in range(12)]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("cpu", ["avx2", "avx512_vnni", "arm_dotprod"])
@pytest.mark.parametrize("top", [63, 127])
def test_saturation_is_told_where_all_bits_meet_a_processor_without_vnni(
    tmp_path: Path, top: int, cpu: str, exact: bool
) -> None:
    net, y = two_convolutions(top)
    report = inspect(tmp_path, net, y, target=OnnxRuntime(threads=1, cpu=cpu, exact=exact))
    saturates = top == 127 and cpu == "avx2" and not exact
    assert codes(report) == (["saturates-without-vnni"] if saturates else [])
    if saturates:
        assert report.findings[0].where == "/conv3 and 1 more"
    assert report.ok


def _fused_wrongly(net: Net, case: str) -> str:
    if case == "weight-axis":
        scales = np.linspace(0.001, 0.01, 8)
        return net.qdq(net.op("Conv", net.qdq("x"), net.weights(8, 8, 3, 3, axis=1, scale=scales)))
    if case == "bias-overflow":
        scales = np.array([0.003] * 7 + [1e-12])
        return net.qdq(net.conv(net.qdq("x"), scale=scales))
    raise ValueError(case)


def _reference(file: Path, x: np.ndarray) -> np.ndarray:
    """What the file says, computed node by node without fusion."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("case", ["weight-axis", "bias-overflow"])
def test_what_onnx_runtime_fuses_wrongly_is_an_error(tmp_path: Path, case: str) -> None:
    net = Net()
    file = net.save(tmp_path, _fused_wrongly(net, case))
    # The error is real: what runs is not what the file says.
    assert np.abs(VNNI.run(file, [{"x": image()}])[0][0] - _reference(file, image())).max() > 0.05
    report = VNNI.inspect(file)
    assert codes(report) == [case]
    assert not report.ok
    with pytest.raises(TargetError, match=case):
        VNNI.build(file, tmp_path / "built.onnx")
    assert not (tmp_path / "built.onnx").exists()


@pytest.mark.parametrize("bias", [False, True])
def test_activations_per_channel_fail_when_run_or_run_in_float(tmp_path: Path, bias: bool) -> None:
    net = Net()
    grid = net.const(np.full(8, 0.03, np.float32)), net.const(np.full(8, 128, np.uint8))
    q = net.op("QuantizeLinear", "x", *grid, axis=1)
    x = net.op("DequantizeLinear", q, *grid, axis=1)
    y = net.conv(x) if bias else net.op("Conv", x, net.weights(8, 8, 3, 3))
    file = net.save(tmp_path, net.qdq(y))
    report = VNNI.inspect(file)
    assert codes(report) == ["per-channel-activations"]
    # With a bias it is not fused. Without, it is, loads, and fails at the first batch.
    assert report.ok == bias
    if bias:
        assert report.covered == 0
        VNNI.run(file, [{"x": image()}])
    else:
        with pytest.raises(TargetError, match="QLinearConv"):
            VNNI.run(file, [{"x": image()}])


def test_weights_per_group_load_but_fail_when_run_with_quantized_activations(
    tmp_path: Path,
) -> None:
    net = Net((3, 64), opset=21)
    scales = net.const(net.rng.uniform(0.001, 0.01, (2, 32)).astype(np.float32))
    integers = net.const(net.rng.integers(-127, 128, (64, 32)).astype(np.int8))
    zeros = net.const(np.zeros((2, 32), np.int8))
    weights = net.op("DequantizeLinear", integers, scales, zeros, axis=0, block_size=32)
    file = net.save(tmp_path, net.op("MatMul", net.qdq("x"), weights))
    assert codes(VNNI.inspect(file)) == ["group-weights"]
    with pytest.raises(TargetError, match="MatMulIntegerToFloat"):
        VNNI.run(file, [{"x": np.ones((3, 64), np.float32)}])


def test_float_weights_of_a_quantized_convolution_are_quantized_by_the_runtime(
    tmp_path: Path,
) -> None:
    net = Net()
    y = net.qdq(net.op("Conv", net.qdq("x"), net.floats(8, 8, 3, 3)))
    assert codes(inspect(tmp_path, net, y)) == ["weights-quantized-by-runtime"]


def test_int8_across_a_transpose_does_not_load_from_opset_21_on(tmp_path: Path) -> None:
    net = Net(opset=21)
    x = net.op("Transpose", net.qdq("x", zero=0, dtype=np.int8), perm=[0, 1, 3, 2])
    file = net.save(tmp_path, net.qdq(net.conv(x), zero=0, dtype=np.int8))
    (finding,) = VNNI.inspect(file).findings
    assert finding.code == "does-not-load"
    assert "opset 20" in finding.fix
    with pytest.raises(TargetError, match=r"does not load model\.onnx"):
        VNNI.run(file, [])


def test_run_returns_the_outputs_of_each_batch(tmp_path: Path) -> None:
    net = Net(("n", 3))
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    file = net.save(tmp_path, net.op("MatMul", "x", net.const(weights)), net.op("Neg", "x"))
    batches = [{"x": np.full((n, 3), n, np.float32)} for n in (1, 4)]
    got = OnnxRuntime(exact=True).run(file, batches)
    for batch, (product, negative) in zip(batches, got, strict=True):
        np.testing.assert_allclose(product, batch["x"] @ weights, rtol=1e-6)
        np.testing.assert_array_equal(negative, -batch["x"])


def test_integers_give_what_the_file_says(tmp_path: Path) -> None:
    net, y = two_convolutions()
    file = net.save(tmp_path, y)
    got = OnnxRuntime(threads=1, exact=True).run(file, [{"x": image()}])[0][0]
    # A step of the grid: sums are rounded from integers, not from floats.
    np.testing.assert_allclose(got, _reference(file, image()), atol=0.0301)
    assert np.ptp(got) > 1


def test_exact_is_an_option_of_the_session() -> None:
    ort = pytest.importorskip("onnxruntime")
    key = "session.x64quantprecision"
    assert OnnxRuntime(exact=True)._options(ort, {}).get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError):
        OnnxRuntime()._options(ort, {}).get_session_config_entry(key)


def test_the_built_file_holds_the_integer_kernels_and_gives_the_same(tmp_path: Path) -> None:
    net, y = two_convolutions()
    file = net.save(tmp_path, y)
    output = tmp_path / "out" / "built.onnx"
    output.parent.mkdir()
    output.write_bytes(b"older")
    assert VNNI.build(file, output).covered == 2
    kinds = [node.op_type for node in onnx.load(output).graph.node]
    assert kinds == ["QuantizeLinear", "QLinearConv", "QLinearConv", "DequantizeLinear"]
    assert [f.name for f in output.parent.iterdir()] == ["built.onnx"]
    feed = [{"x": image()}]
    np.testing.assert_array_equal(VNNI.run(output, feed)[0][0], VNNI.run(file, feed)[0][0])
    # What is built can be inspected as well.
    again = VNNI.inspect(output)
    assert (again.planned, again.covered) == (2, 2)


def test_a_model_with_external_data_is_built_with_external_data(tmp_path: Path) -> None:
    net = Net()
    y = net.qdq(net.conv(net.qdq("x")))
    y = net.op("MatMul", y, net.floats(4, 512))  # small constants stay in the file
    file = net.save(tmp_path, y, external=True)
    output = tmp_path / "out" / "built.onnx"
    output.parent.mkdir()
    assert VNNI.build(file, output).covered == 1
    assert {f.name for f in output.parent.iterdir()} == {"built.onnx", "built.onnx.data"}
    feed = [{"x": image()}]
    np.testing.assert_array_equal(VNNI.run(output, feed)[0][0], VNNI.run(file, feed)[0][0])


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    net, y = two_convolutions()
    with pytest.raises(TargetError, match=r"built.onnx cannot be written: No such file"):
        VNNI.build(net.save(tmp_path, y), tmp_path / "absent" / "built.onnx")


@pytest.mark.parametrize("verb", ["inspect", "run", "build"])
@pytest.mark.parametrize("content", [None, b"", b"not a protocol buffer \xff\xff\xff"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, verb: str, content: bytes | None) -> None:
    file = tmp_path / "bad.onnx"
    if content is not None:
        file.write_bytes(content)
    extra: dict[str, tuple[Any, ...]] = {"run": ([],), "build": (tmp_path / "out.onnx",)}
    with pytest.raises(ModelFileError, match=r"bad\.onnx") as raised:
        getattr(VNNI, verb)(file, *extra.get(verb, ()))
    assert "\n" not in str(raised.value)


def test_a_graph_that_the_runtime_refuses_is_a_finding(tmp_path: Path) -> None:
    net = Net()
    report = inspect(tmp_path, net, net.op("NoSuchOperator", "x"))
    assert codes(report) == ["does-not-load"]
    assert "NoSuchOperator" in report.findings[0].why
    assert not report.ok


@pytest.mark.parametrize("feed", [{}, {"y": image()}, {"x": image()[:, :3]}])
def test_a_wrong_batch_is_answered_with_the_inputs(
    tmp_path: Path, feed: dict[str, np.ndarray]
) -> None:
    net, y = two_convolutions()
    with pytest.raises(TargetError, match=r"its inputs are x: tensor\(float\) \[1, 8, 6, 6\]") as e:
        VNNI.run(net.save(tmp_path, y), [feed])
    assert "\n" not in str(e.value)


def test_without_onnx_runtime_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, y = two_convolutions()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        VNNI.inspect(net.save(tmp_path, y))
    # What is refused is known without it.
    assert VNNI.refusals([]) == []


@pytest.mark.parametrize("options", [{"threads": 0}, {"cpu": "z80"}])
def test_options_are_checked_at_birth(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RecipeError)):
        OnnxRuntime(**options)


W8, A8 = QuantSpec(axis=0), QuantSpec(dtype="uint8")


@pytest.mark.parametrize(
    ("weights", "activations", "cpu", "expected"),
    [
        (W8, A8, "avx512_vnni", []),
        (W8, A8, "avx2", ["saturates-without-vnni"]),
        (QuantSpec(axis=0, bits=7), A8, "avx2", []),
        (W8, None, "avx2", []),
        (None, A8, "avx2", ["activation-only"]),
        (W8, QuantSpec(axis=1), "vnni", ["per-channel-activations"]),
        (QuantSpec(axis=0, group_size=32), A8, "vnni", ["group-weights"]),
        (QuantSpec(dtype="int4", axis=0), A8, "vnni", ["runs-in-float"]),
        (QuantSpec(dtype="int4", axis=0), None, "vnni", []),
        (QuantSpec(dtype="fp8_e4m3"), QuantSpec(dtype="fp8_e4m3"), "vnni", ["runs-in-float"] * 2),
    ],
)
def test_schemes_are_refused_before_any_work(
    weights: QuantSpec | None, activations: QuantSpec | None, cpu: str, expected: list[str]
) -> None:
    scheme = Scheme(weights=weights, activations=activations)
    said = OnnxRuntime(cpu=cpu).refusals([scheme, scheme])
    assert [finding.code for finding in said] == expected


def test_models_are_timed_in_turn(tmp_path: Path) -> None:
    files = {}
    for name, width in (("small", 8), ("large", 2048)):
        net = Net((16, 64))
        folder = tmp_path / name
        folder.mkdir()
        hidden = net.op("MatMul", "x", net.floats(64, width))
        files[name] = net.save(folder, net.op("MatMul", hidden, net.floats(width, 64)))
    feed = {"x": np.ones((16, 64), np.float32)}
    times = latency(files, feed, repeats=7)
    assert {name: len(values) for name, values in times.items()} == {"small": 7, "large": 7}
    assert medians(times)["large"] > medians(times)["small"] > 0
    each = latency(files, dict.fromkeys(files, feed), repeats=1, threads=None)
    assert list(each) == ["small", "large"]
