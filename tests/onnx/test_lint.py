"""Each rule fires on a file made for it, at the right node, and is silent on its good twin."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from quantkit.errors import ModelFileError
from quantkit.interfaces import Severity
from quantkit.onnx.lint import RULES, lint

T = TensorProto
F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
Tensors = dict[str, TensorProto]


def tensor(name: str, values: Any, kind: int = F32) -> TensorProto:
    array = np.asarray(values)
    if kind in (F32, T.INT8):
        stored = array.astype(helper.tensor_dtype_to_np_dtype(kind))
        return onnx.numpy_helper.from_array(stored, name)
    return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())


class Net:
    """A model under construction: quantizers and nodes are appended, tensors collected."""

    def __init__(self, shape: Sequence[int | str] = (1, 16, 8, 8), kind: int = F32) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: Tensors = {}
        self.inputs = [helper.make_tensor_value_info("x", kind, list(shape))]
        self.kind = kind

    def constant(self, name: str, values: Any, kind: int | None = None) -> str:
        self.tensors[name] = tensor(name, values, self.kind if kind is None else kind)
        return name

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        output = f"{name}.out"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def pair(
        self,
        source: str,
        name: str,
        *,
        kind: int = T.INT8,
        scale: Any = 0.05,
        zero: int | None = 0,
        scale_name: str = "",
        **attributes: Any,
    ) -> str:
        """QuantizeLinear ``name`` and DequantizeLinear ``name.dq`` after a tensor."""
        grid = [scale_name or self.constant(f"{name}.scale", scale)]
        if zero is not None:
            grid.append(self.constant(f"{name}.zero", np.full(np.shape(scale), zero), kind))
        quantized = self.node("QuantizeLinear", [source, *grid], name, **attributes)
        return self.node("DequantizeLinear", [quantized, *grid], f"{name}.dq", **attributes)

    def weight(
        self,
        shape: Sequence[int],
        name: str = "w",
        *,
        kind: int = T.INT8,
        axis: int | None = 0,
        block: int = 0,
        scale: Any = None,
        zero: int = 0,
    ) -> str:
        """A stored weight behind DequantizeLinear ``name``; one scale a slice of ``axis``."""
        values = np.arange(np.prod(shape)).reshape(shape) % 7
        if scale is None and axis is None:
            scale = 0.02
        elif scale is None and axis is not None:
            blocks = [n // block if i == axis else n for i, n in enumerate(shape)] if block else []
            scale = np.full(blocks or shape[axis], 0.02)
        grid_names = [
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero", np.full(np.shape(scale), zero), kind),
        ]
        attributes = {} if axis is None else {"axis": axis}
        attributes |= {"block_size": block} if block else {}
        stored = self.constant(f"{name}.q", values, kind)
        return self.node("DequantizeLinear", [stored, *grid_names], name, **attributes)

    def model(self, output: str, opset: int = 21, domains: Sequence[str] = ()) -> ModelProto:
        outputs = [helper.make_tensor_value_info(output, self.kind, None)]
        graph = helper.make_graph(
            self.nodes, "net", self.inputs, outputs, list(self.tensors.values())
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


Between = Callable[[Net, str], str]


def conv(
    op: str = "Conv",
    *,
    activation: dict[str, Any] | None = {},  # noqa: B006 - never written to
    weight: dict[str, Any] | None = {},  # noqa: B006
    between: Between | None = None,
    bias: Callable[[Net], str] | None = None,
    shape: Sequence[int | str] = (1, 16, 8, 8),
    opset: int = 21,
) -> ModelProto:
    """x → Q → DQ → conv → Relu → Q → DQ → conv2 → y, varied in one respect."""
    net = Net(shape)
    tensor_in = "x" if activation is None else net.pair("x", "qx", **activation)
    tensor_in = between(net, tensor_in) if between else tensor_in
    if weight is None:
        kernel = net.constant("w.float", np.ones((16, 16, 3, 3)))
    else:
        kernel = net.weight((16, 16, 3, 3), **weight)
    inputs = [tensor_in, kernel] + ([bias(net)] if bias else [])
    hidden = net.node("Relu", [net.node(op, inputs, "conv", pads=[1, 1, 1, 1])], "relu")
    second = net.weight((8, 16, 1, 1), "w2")
    output = net.node("Conv", [net.pair(hidden, "qh"), second], "conv2")
    return net.model(output, opset)


def matmul(
    op: str = "MatMul", *, quantized: bool = True, transposed: bool = False, **weight: Any
) -> ModelProto:
    net = Net((4, 128))
    attributes: dict[str, Any] = {"transB": 1} if op == "Gemm" else {}
    left = net.pair("x", "qx") if quantized else "x"
    right = net.weight((64, 128) if transposed or attributes else (128, 64), **weight)
    right = net.node("Transpose", [right], "turn", perm=[1, 0]) if transposed else right
    return net.model(net.node(op, [left, right], "layer", **attributes))


def one(op: str, domain: str = "", shape: Sequence[int] = (4, 8), count: int = 1) -> ModelProto:
    net = Net(shape)
    outputs = [f"y{i}" for i in range(count)]
    net.nodes.append(helper.make_node(op, ["x"], outputs, name="only", domain=domain))
    return net.model("y0", domains=[domain] if domain else [])


def integer(op: str, domain: str = "") -> ModelProto:
    """An operator of the QOperator form, between Q and DQ."""
    net = Net()
    grid = [net.constant("s", 0.1), net.constant("z", 0, T.INT8)]
    conv_shape = op in ("ConvInteger", "QLinearConv")
    weight = net.constant("w", np.ones((16, 16, 1, 1) if conv_shape else (8, 8)), T.INT8)
    source = net.node("QuantizeLinear", ["x", *grid], "qx")
    if op in ("ConvInteger", "MatMulInteger"):
        product = net.node(op, [source, weight], "only")
        return net.model(net.node("Cast", [product], "cast", to=F32))
    inputs = [source, *grid, weight, *grid, *grid]
    out = net.node(op, inputs, "only", domain=domain)
    output = net.node("DequantizeLinear", [out, *grid], "dqy")
    return net.model(output, domains=[domain] if domain else [])


def dynamic_quantize() -> ModelProto:
    net = Net()
    names = ["q", "s", "z"]
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], names, name="only"))
    return net.model(net.node("DequantizeLinear", names, "dq"))


def computed_scale(constant: bool) -> ModelProto:
    net = Net((4, 128))
    largest = net.constant("largest", 0.1) if constant else "x"
    scale = net.node("ReduceMax", [largest], "amax", keepdims=0)
    left = net.pair("x", "qx", scale_name=scale)
    return net.model(net.node("MatMul", [left, net.weight((128, 64), axis=1)], "layer"))


def attention(parts: str, mask: str = "") -> ModelProto:
    """softmax(q·k + mask)·v; ``parts`` of "qkpv" are quantized, ``mask``: where Q/DQ is wrong."""
    net = Net((4, 16, 8))
    net.inputs += [helper.make_tensor_value_info(n, F32, [4, 16, 8]) for n in ("k", "v")]
    net.inputs.append(helper.make_tensor_value_info("keep", F32, [4, 1, 16]))
    q, v = (net.pair(n, f"q{n}") if m in parts else n for n, m in (("x", "q"), ("v", "v")))
    k = net.node("Transpose", [net.pair("k", "qk") if "k" in parts else "k"], "kt", perm=[0, 2, 1])
    scores = net.node("Div", [net.node("MatMul", [q, k], "qk_product"), net.constant("d", 8)], "by")
    hidden = net.node("Sub", [net.constant("one", 1), "keep"], "invert")
    low = net.node("Mul", [hidden, net.constant("low", -1e4)], "low_mask")
    low = net.pair(low, "qmask", scale=1e4 / 127) if mask == "operand" else low
    masked = net.node("Add", [scores, low], "add_mask")
    masked = net.pair(masked, "qscores", scale=1e4 / 127) if mask == "sum" else masked
    weights = net.node("Softmax", [masked], "softmax", axis=-1)
    weights = net.pair(weights, "qp", scale=1 / 127) if "p" in parts else weights
    return net.model(net.node("MatMul", [weights, v], "pv_product"))


def islands(float32: bool) -> ModelProto:
    net = Net(kind=F16)
    middle = net.node("Conv", [net.pair("x", "qx"), net.weight((16, 16, 1, 1))], "conv")
    kind = F32 if float32 else F16
    middle = net.node("Cast", [middle], "cast", to=kind)
    kernel = net.constant("w.float", np.ones((16, 16, 1, 1)), kind)
    island = net.node("Conv", [middle, kernel], "island")
    return net.model(net.node("Cast", [island], "back", to=F16))


def clipped(scale: float) -> ModelProto:
    net = Net()
    first = net.node("Conv", [net.pair("x", "qx", kind=T.UINT8), net.weight((16, 16, 1, 1))], "c1")
    limits = [net.constant("low", 0), net.constant("high", 6)]
    relu6 = net.node("Clip", [first, *limits], "relu6")
    hidden = net.pair(relu6, "qh", kind=T.UINT8, scale=scale)
    return net.model(net.node("Conv", [hidden, net.weight((16, 16, 1, 1), "w2")], "c2"))


def external(present: bool) -> ModelProto:
    model = conv()
    weights = next(t for t in model.graph.initializer if t.name == "w.q")
    if not present:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value="absent.data")
    return model


def int32_bias(net: Net) -> str:
    stored = net.constant("b.q", np.ones(16), T.INT32)
    grid = [net.constant("b.s", np.full(16, 0.01)), net.constant("b.z", np.zeros(16), T.INT32)]
    return net.node("DequantizeLinear", [stored, *grid], "b", axis=0)


def float_bias(net: Net) -> str:
    return net.constant("b", np.ones(16))


def inserted(op: str, constants: dict[str, Any] | None = None, **attributes: Any) -> Between:
    def between(net: Net, source: str) -> str:
        names = [
            net.constant(name, values, T.INT64 if np.asarray(values).dtype.kind == "i" else F32)
            if values is not None
            else ""
            for name, values in (constants or {}).items()
        ]
        return net.node(op, [source, *names], "between", **attributes)

    return between


def then_pair(first: Between) -> Between:
    return lambda net, source: net.pair(first(net, source), "again")


RESIZE = inserted("Resize", {"roi": None, "sizes": [1.0, 1.0, 2.0, 2.0]}, mode="nearest")
AVERAGE = inserted("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
PADS = [0, 0, 1, 1, 0, 0, 1, 1]


@dataclass(frozen=True)
class Case:
    """A bad file, the node that it should be reported at, and its good twin."""

    code: str
    where: str
    bad: Callable[[], ModelProto]
    good: Callable[[], ModelProto] = conv
    rejected: bool = False  # TensorRT's parser refuses the bad file
    target: str = "tensorrt"


FP8 = {"kind": T.FLOAT8E4M3FN}
INT4_BLOCKS = {"kind": T.INT4, "axis": 0, "quantized": False}
DEAD = np.r_[0.0, np.full(15, 0.02)]

CASES = [
    Case("nonpositive-scale", "w", lambda: conv(weight={"scale": DEAD}), rejected=True),
    Case("nonpositive-scale", "w", lambda: conv(weight={"scale": DEAD - 1}), rejected=True),
    Case("nonpositive-scale", "qx", lambda: conv(activation={"scale": np.nan}), rejected=True),
    Case("nonpositive-scale", "qx", lambda: conv(activation={"scale": np.inf})),
    Case("opset-too-old", "qx", lambda: conv(activation=FP8, weight=FP8, opset=18)),
    Case("opset-too-old", "w", lambda: conv(opset=12), lambda: conv(opset=13)),
    Case("opset-too-old", "w", lambda: conv(weight={"kind": T.INT4}, opset=20)),
    Case("unreadable-data", "w", lambda: external(False), lambda: external(True)),
    Case("nonconstant-qparams", "qx", lambda: computed_scale(False), lambda: computed_scale(True)),
    Case("nonzero-zero-point", "qx", lambda: conv(activation={"zero": 3}), rejected=True),
    Case("nonzero-zero-point", "w", lambda: conv(weight={"zero": 3}), rejected=True),
    Case(
        "nonzero-zero-point",
        "qx",
        lambda: conv(activation={"zero": 128, "kind": T.UINT8}),
        rejected=True,
    ),
    Case("uint8-weights", "w", lambda: conv(weight={"kind": T.UINT8}), rejected=True),
    Case("uint8-zero-point", "qx", lambda: conv(activation={"kind": T.UINT8})),
    Case(
        "missing-zero-point",
        "qx",
        lambda: conv(activation={"zero": None}),
        lambda: conv(activation={"zero": None, "output_dtype": T.INT8}, opset=21),
    ),
    *(
        Case("unsupported-type", "qx", lambda k=k: conv(activation={"kind": k}), rejected=True)
        for k in (T.INT16, T.UINT16, T.UINT4, T.FLOAT8E5M2, T.FLOAT8E4M3FNUZ)
    ),
    Case("unsupported-type", "w", lambda: conv(weight={"kind": T.UINT4}), rejected=True),
    Case(
        "int32-bias",
        "b",
        lambda: conv(bias=int32_bias),
        lambda: conv(bias=float_bias),
        rejected=True,
    ),
    Case("int4-activation", "qx", lambda: conv(activation={"kind": T.INT4})),
    *(
        Case("qoperator-form", "only", lambda op=op, d=d: integer(op, d), rejected=True)
        for op, d in (
            ("QLinearConv", ""),
            ("QLinearMatMul", ""),
            ("ConvInteger", ""),
            ("MatMulInteger", ""),
            ("QLinearAdd", "com.microsoft"),
        )
    ),
    Case("dynamic-quantization", "only", dynamic_quantize, rejected=True),
    Case(
        "custom-operator", "only", lambda: one("MyOp", "my.ops"), lambda: one("Relu"), rejected=True
    ),
    # TensorRT's parser knows a standard operator by its type, in whatever domain it stands.
    Case(
        "custom-operator",
        "only",
        lambda: one("SkipGroupNorm", "com.microsoft"),
        lambda: one("Gelu", "com.microsoft"),
        rejected=True,
    ),
    Case("hardware-format", "qx", lambda: conv(activation=FP8, weight=FP8)),
    Case("hardware-format", "w", lambda: matmul(block=32, **INT4_BLOCKS)),
    Case("dynamic-shape", "x", lambda: conv(shape=("batch", 16, 8, 8))),
    Case(
        "int8-activations",
        "qx",
        conv,
        lambda: clipped(0.05),
        target="onnxruntime",
    ),
    Case("conv-transpose", "conv", lambda: conv("ConvTranspose", weight={"axis": 1})),
    Case("weight-scale-axis", "conv", lambda: conv(weight={"axis": 1})),
    Case("weight-scale-axis", "layer", lambda: matmul(axis=0), lambda: matmul(axis=1)),
    Case("weight-scale-axis", "layer", lambda: matmul(axis=-2), lambda: matmul(axis=-1)),
    Case(
        "weight-scale-axis",
        "layer",
        lambda: matmul(axis=1, transposed=True),
        lambda: matmul(axis=0, transposed=True),
    ),
    Case(
        "weight-scale-axis", "layer", lambda: matmul("Gemm", axis=1), lambda: matmul("Gemm", axis=0)
    ),
    Case(
        "per-channel-activation",
        "qx",
        lambda: conv(activation={"scale": np.full(16, 0.05), "axis": 1}),
    ),
    Case("float-weights", "conv", lambda: conv(weight=None)),
    Case(
        "weight-only-conv",
        "conv",
        lambda: conv(activation=None),
        lambda: matmul(axis=1, quantized=False),
    ),
    Case(
        "op-before-conv",
        "conv",
        lambda: conv(between=RESIZE),
        lambda: conv(between=then_pair(RESIZE)),
    ),
    Case(
        "op-before-conv",
        "conv",
        lambda: conv(between=AVERAGE),
        lambda: conv(between=then_pair(AVERAGE)),
    ),
    Case(
        "op-before-conv",
        "conv",
        lambda: conv(between=inserted("Pad", {"pads": PADS, "fill": -1.0})),
        lambda: conv(between=inserted("Pad", {"pads": PADS, "fill": 0.0})),
    ),
    Case(
        "op-before-conv",
        "conv",
        lambda: conv(between=inserted("Relu")),
        lambda: conv(between=inserted("MaxPool", kernel_shape=[2, 2])),
    ),
    Case("int4-convolution", "conv", lambda: conv(weight={"kind": T.INT4})),
    Case(
        "unfused-weights",
        "layer",
        lambda: matmul(kind=T.INT4, axis=1, quantized=False),
        lambda: matmul(block=32, **INT4_BLOCKS),
    ),
    Case(
        "unfused-weights",
        "layer",
        lambda: matmul(axis=0, block=32, quantized=False),
        lambda: matmul(axis=1, quantized=False),
    ),
    Case(
        "int4-block-size",
        "w",
        lambda: matmul(block=8, **INT4_BLOCKS),
        lambda: matmul(block=64, **INT4_BLOCKS),
    ),
    Case("fp32-island", "island", lambda: islands(True), lambda: islands(False)),
    *(
        Case("partial-attention", "softmax", lambda p=p: attention(p), lambda: attention("qkpv"))
        for p in ("qk", "v", "qkv", "p")
    ),
    Case("partial-attention", "softmax", lambda: attention("qkp"), lambda: attention("")),
    Case("quantized-mask", "qscores", lambda: attention("", "sum"), lambda: attention("qkpv")),
    Case(
        "quantized-mask-operand",
        "qmask.dq",
        lambda: attention("", "operand"),
        lambda: attention("qkpv"),
    ),
    Case(
        "implied-clip",
        "relu6",
        lambda: clipped(6 / 255),
        lambda: clipped(8 / 255),
        target="onnxruntime",
    ),
]


def codes(model: ModelProto, target: Any = "tensorrt") -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in lint(model, target)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.where}")
def test_a_rule_fires_at_the_bad_node_and_is_silent_on_the_good_file(case: Case) -> None:
    assert (case.code, case.where) in codes(case.bad(), case.target)
    assert case.code not in {code for code, _ in codes(case.good(), case.target)}


def test_every_rule_has_a_case() -> None:
    assert {case.code for case in CASES} == {rule.code for rule in RULES}


@pytest.mark.parametrize(
    "good",
    [
        conv,
        lambda: conv(opset=13),
        lambda: conv(bias=float_bias),
        lambda: conv(weight={"axis": None}),
        lambda: matmul(axis=1),
        lambda: attention("qkpv"),
        lambda: islands(False),
    ],
)
def test_a_good_file_has_no_finding(good: Callable[[], ModelProto]) -> None:
    assert lint(good()) == []


def test_the_onnxruntime_form_has_no_finding_for_onnxruntime() -> None:
    form = {"kind": T.UINT8, "zero": 128}
    net = Net()
    first = net.node("Conv", [net.pair("x", "qx", **form), net.weight((16, 16, 1, 1))], "c1")
    second = net.weight((16, 16, 1, 1), "w2")
    model = net.model(net.node("Conv", [net.pair(first, "qh", **form), second], "c2"))
    assert lint(model, "onnxruntime") == []
    assert {f.severity for f in lint(model, "tensorrt")} == {Severity.ERROR}


def test_without_a_target_only_what_holds_everywhere_is_reported() -> None:
    assert lint(conv(activation={"zero": 3}), None) == []
    assert [f.code for f in lint(conv(weight={"scale": DEAD}), None)] == ["nonpositive-scale"]


def test_findings_come_in_graph_order() -> None:
    model = conv(activation={"scale": np.inf}, weight={"axis": 1, "zero": 3}, bias=int32_bias)
    assert [f.where for f in lint(model)] == ["qx", "w", "b", "conv"]


def test_what_stands_in_a_branch_of_an_if_is_linted() -> None:
    body = conv(weight={"scale": DEAD}).graph
    captured = helper.make_graph(
        body.node,
        "branch",
        [],
        [helper.make_tensor_value_info("conv2.out", F32, None)],
        body.initializer,
    )
    inputs = [helper.make_tensor_value_info("x", F32, [1, 16, 8, 8])]
    inputs.append(helper.make_tensor_value_info("which", T.BOOL, []))
    choice = helper.make_node(
        "If", ["which"], ["y"], name="choice", then_branch=captured, else_branch=captured
    )
    outputs = [helper.make_tensor_value_info("y", F32, None)]
    graph = helper.make_graph([choice], "g", inputs, outputs)
    assert [(f.code, f.where) for f in lint(helper.make_model(graph))] == [
        ("nonpositive-scale", "w"),
        ("nonpositive-scale", "w"),
    ]


def test_what_stands_in_a_model_local_function_is_linted() -> None:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="inner"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ]
    function = helper.make_function("local", "fake", ["a", "s", "z"], ["b"], nodes, imports[:1])
    net = Net()
    grid = [net.constant("s", 0.0), net.constant("z", 0, T.INT8)]
    model = net.model(net.node("fake", ["x", *grid], "call", domain="local"), domains=["local"])
    model.functions.append(function)
    assert [f.code for f in lint(model)] == ["nonpositive-scale"]


def test_a_path_is_linted_without_loading_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(
        conv(weight={"scale": DEAD}), path, save_as_external_data=True, location="m.data",
        size_threshold=64,
    )  # fmt: skip
    assert [f.code for f in lint(path)] == ["nonpositive-scale"]
    (tmp_path / "m.data").write_bytes(b"")
    assert {f.code for f in lint(str(path))} == {"unreadable-data"}


def test_linting_leaves_the_model_as_it_was() -> None:
    model = conv()
    before = model.SerializeToString()
    lint(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("content", [None, b"no model", b""])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.onnx"):
        lint(path)


def test_no_damage_to_a_file_makes_lint_raise() -> None:
    chance = random.Random(0)
    for case in CASES:
        model = case.bad()
        for _ in range(12):
            damage(model, chance)
            for target in ("tensorrt", "onnxruntime", None):
                lint(model, target)


def damage(model: ModelProto, chance: random.Random) -> None:
    node = chance.choice(model.graph.node)
    kind = chance.randrange(6)
    if kind == 0 and node.input:
        del node.input[chance.randrange(len(node.input)) :]
    elif kind == 1 and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(["", "x", "nowhere"])
    elif kind == 2 and node.attribute:
        node.attribute[0].ClearField("type")
    elif kind == 3:
        node.op_type = chance.choice(["Constant", "QuantizeLinear", "Clip", "Concat", "Softmax"])
    elif kind == 4 and node.output:
        node.input.append(node.output[0])  # a cycle
    elif model.graph.initializer:
        chosen = chance.choice(model.graph.initializer)
        chosen.data_type = chance.choice([0, 7, 9, 99])


PARSE = """
import sys, json, tensorrt_rtx as trt
from pathlib import Path
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
builder = trt.Builder(logger)
answers = {}
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    network = builder.create_network()
    answers[path.stem] = trt.OnnxParser(network, logger).parse(path.read_bytes())
print(json.dumps(answers))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs the builder: pip install tensorrt-rtx-cu13",
)
def test_tensorrt_parses_and_rejects_what_lint_says_it_does(tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        if case.target == "tensorrt" and case.code != "unreadable-data":
            onnx.save_model(case.bad(), tmp_path / f"{number}.onnx")
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert {
        (case.code, case.where, number)
        for number, case in enumerate(CASES)
        if str(number) in parsed and parsed[str(number)] == case.rejected
    } == set()
