"""Float ONNX files in half: what is converted, what is not and why, and what it computes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_folder import Run, fill, runner
from onnx_models import model_of, saved, small_net, weight
from qdq_models import Net, attention, residual, weight_only
from qdq_models import save as save_net

from quantkit.errors import DataError, ExportError, ModelFileError, QuantkitError
from quantkit.interfaces import Severity
from quantkit.onnx import _half_reading
from quantkit.onnx._half_format import FORMATS, MASK
from quantkit.onnx._half_running import open_file, rounded, run, session
from quantkit.onnx.half import HalfReport, Precision, half_copy, to_half

BOTH: tuple[Precision, ...] = ("float16", "bfloat16")
HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
make = helper.make_node


def convert(
    model: onnx.ModelProto, folder: Path, **options: Any
) -> tuple[HalfReport, onnx.ModelProto]:
    """The report, and the model written, which has to be valid."""
    report = to_half(saved(model, folder / "float.onnx"), folder / "half.onnx", **options)
    written = onnx.load(folder / "half.onnx")
    onnx.checker.check_model(written, full_check=True)
    return report, written


def net(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    shape: Sequence[int | str] = (4, 8),
    out: Sequence[int | str | None] = (4, 8),
    opset: int = 18,
) -> onnx.ModelProto:
    """From ``x`` to ``y``; floats are float32."""
    arrays = {
        name: np.asarray(array, np.float32 if isinstance(array, float | int) else None)
        for name, array in (constants or {}).items()
    }
    return model_of(nodes, {"x": shape}, {"y": out}, arrays, opset=opset)


def reasons(report: HalfReport) -> dict[str, str]:
    return {kept.node: kept.reason for kept in report.kept}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Of every value that the file names a type of."""
    graph = model.graph
    infos = (*graph.input, *graph.output, *graph.value_info)
    return {info.name: info.type.tensor_type.elem_type for info in infos}


def outputs(model: onnx.ModelProto, *arrays: np.ndarray, precision: Precision) -> list[np.ndarray]:
    """As quantkit runs a converted model: in float32, rounded to half."""
    runs = session(rounded(ir.serde.deserialize_model(model), FORMATS[precision]))
    names = [value.name for value in runs.get_inputs()]
    return run(runs, dict(zip(names, arrays, strict=True)))


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32)


# What becomes half


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("opset", [13, 18])
def test_every_float_tensor_inside_becomes_half(
    precision: Precision, opset: int, tmp_path: Path
) -> None:
    report, model = convert(small_net(opset=opset), tmp_path, precision=precision)
    assert (report.kept, report.casts) == ((), 2)
    found = types(model)
    assert (found.pop("image"), found.pop("logits")) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert set(found.values()) == {HALF[precision]}
    assert {array.dtype.name for array in constants(model).values()} == {precision}


def test_borders_become_half_where_asked(tmp_path: Path) -> None:
    report, model = convert(small_net(), tmp_path, keep_io=False)
    assert report.casts == 0
    assert set(types(model).values()) == {TensorProto.FLOAT16}
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["image", "logits"]


@pytest.mark.parametrize("precision", BOTH)
def test_the_file_computes_what_quantkit_compares(precision: Precision, tmp_path: Path) -> None:
    """ONNX's own evaluator rounds each tensor, as the comparison does."""
    nodes = [
        make("MatMul", ["x", "w"], ["a"], "a"),
        make("LayerNormalization", ["a", "g", "b"], ["n"], "n"),
        make("Tanh", ["n"], ["t"], "t"),
        make("Add", ["t", "x"], ["y"], "y"),
    ]
    arrays = {"w": weight(8, 8), "g": 1 + weight(8, seed=1), "b": weight(8, seed=2)}
    _, model = convert(net(nodes, arrays), tmp_path, precision=precision)
    x = random(4, 8)
    (got,) = outputs(model, x, precision=precision)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    step = 2.0**-8 if precision == "bfloat16" else 2.0**-11
    assert np.abs(got - wanted).max() < 8 * step


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_numbers_round_as_in_the_format(values: list[float]) -> None:
    array = np.float32(values)
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        half = FORMATS[name]
        with np.errstate(over="ignore"):
            wanted = array.astype(dtype).astype(np.float32)
        assert np.array_equal(half.round(array), wanted)
        assert half.overflows(array) == bool((np.isinf(wanted) & np.isfinite(array)).any())


def test_attributes_that_name_a_type_follow(tmp_path: Path) -> None:
    nodes = [
        make("Shape", ["x"], ["s"], "s"),
        make("ConstantOfShape", ["s"], ["ones"], "ones",
             value=numpy_helper.from_array(np.float32([1]))),
        make("EyeLike", ["x"], ["r"], "r", dtype=TensorProto.FLOAT),
        make("Greater", ["x", "zero"], ["c"], "c"),
        make("Cast", ["c"], ["f"], "f", to=TensorProto.FLOAT),
        make("Sum", ["ones", "r", "f"], ["y"], "y"),
    ]  # fmt: skip
    report, model = convert(net(nodes, {"zero": 0}), tmp_path)
    assert report.kept == ()
    (got,) = outputs(model, random(4, 8), precision="float16")
    assert set(got.ravel()) == {1.0, 2.0, 3.0}


def test_what_onnx_wants_in_float32_stays_so(tmp_path: Path) -> None:
    node = make("Resize", ["x", "", "scales"], ["y"], "resize", mode="linear")
    model = net([node], {"scales": np.float32([1, 1, 2, 2])}, shape=(1, 2, 4, 4), out=[None] * 4)
    report, written = convert(model, tmp_path)
    assert report.kept == ()
    assert constants(written)["scales"].dtype == np.float32


def test_functions_are_inlined(tmp_path: Path) -> None:
    model = net([make("Twice", ["x"], ["y"], "twice", domain="own")])
    body = [make("Add", ["v", "v"], ["w"])]
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "Twice", ["v"], ["w"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    _, written = convert(model, tmp_path)
    assert operators(written) == ["Cast", "Add", "Cast"]


@pytest.mark.parametrize("precision", BOTH)
def test_graphs_inside_of_nodes_become_half(precision: Precision, tmp_path: Path) -> None:
    """A Loop whose carried tensor, captured weight and scanned output are floats, and an If."""
    float_info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            make("MatMul", ["v", "w"], ["m"], "m"),
            make("Tanh", ["m"], ["next"], "t"),
            make("Identity", ["next"], ["scanned"], "s"),
            make("Identity", ["go"], ["go_on"], "g"),
        ],
        "body",
        [
            float_info("i", TensorProto.INT64, []),
            float_info("go", TensorProto.BOOL, []),
            float_info("v", TensorProto.FLOAT, [4, 8]),
        ],
        [
            float_info("go_on", TensorProto.BOOL, []),
            float_info("next", TensorProto.FLOAT, [4, 8]),
            float_info("scanned", TensorProto.FLOAT, [4, 8]),
        ],
    )
    branches = [
        helper.make_graph(
            [make(op, ["last"], [f"{op}_y"], op)], op,
            [], [float_info(f"{op}_y", TensorProto.FLOAT, [4, 8])],
        )
        for op in ("LogSoftmax", "Relu")
    ]  # fmt: skip
    nodes = [
        make("Loop", ["trips", "", "x"], ["last", "all"], "loop", body=body),
        make("ReduceMax", ["all"], ["largest"], "largest", keepdims=0),
        make("Greater", ["largest", "zero"], ["positive"], "positive"),
        make("If", ["positive"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    arrays = {"trips": np.int64(3), "w": weight(8, 8), "zero": 0}
    report, written = convert(net(nodes, arrays), tmp_path, precision=precision)
    assert list(reasons(report)) == ["LogSoftmax"]
    x = random(4, 8)
    (got,) = outputs(written, x, precision=precision)
    (wanted,) = run(open_file(tmp_path / "float.onnx"), {"x": x})
    assert np.abs(got - wanted).max() < 0.05


def test_batch_norm_is_a_product_and_a_sum(tmp_path: Path) -> None:
    """With a variance that float16 rounds to 0."""
    nodes = [
        make("Relu", ["x"], ["r"], "r"),
        make("BatchNormalization", ["r", "g", "b", "m", "v"], ["y"], "bn", epsilon=1e-9),
    ]
    arrays = {"g": np.full(8, 1e-4, np.float32), "b": weight(8), "m": weight(8, seed=1),
              "v": np.full(8, 1e-8, np.float32)}  # fmt: skip
    report, written = convert(net(nodes, arrays), tmp_path, data=[random(4, 8)])
    assert operators(written) == ["Cast", "Relu", "Mul", "Add", "Cast"]
    assert report.parity[0].sqnr > 60


# Q/DQ


@pytest.mark.parametrize("precision", BOTH)
def test_grids_and_integers_stay_bit_for_bit(precision: Precision, tmp_path: Path) -> None:
    before = attention()
    report, written = convert(before, tmp_path, precision=precision)
    first, second = constants(before), constants(written)
    for name, array in first.items():
        if name.endswith(("_q", "_s")):
            assert np.array_equal(array, second[name])
            assert array.dtype == second[name].dtype
    assert report.opset == 23
    for node in written.graph.node:
        if node.op_type == "DequantizeLinear":
            assert len(node.input) == 2  # the parser of TensorRT 10 takes no zero-point here
            assert node.attribute[-1].i == HALF[precision]
        if node.op_type == "QuantizeLinear":
            assert second[node.input[2]].dtype == np.int8


def test_an_input_that_is_quantized_at_once_needs_no_cast(tmp_path: Path) -> None:
    report, written = convert(residual(), tmp_path)
    assert report.casts == 1
    assert [n.op_type for n in written.graph.node if "x" in n.input] == ["QuantizeLinear"]


def test_what_is_dequantized_for_a_kept_node_is_float32(tmp_path: Path) -> None:
    report, written = convert(residual(), tmp_path, keep=["conv3"])
    assert reasons(report) == {"conv3": "it matches keep 'conv3'"}
    assert report.casts == 0
    made = {n.output[0]: n for n in written.graph.node}
    conv = next(n for n in written.graph.node if n.name == "conv3")
    assert all(not len(made[name].attribute) or made[name].op_type == "DequantizeLinear"
               for name in conv.input)  # fmt: skip
    assert types(written)["conv3"] == TensorProto.FLOAT


def test_a_quantized_product_that_stays_is_no_finding(tmp_path: Path) -> None:
    report, _ = convert(residual(), tmp_path, keep=["conv3"], data=[random(1, 8, 16, 16)])
    assert [finding.code for finding in report.findings] in ([], ["compared-with-itself"])


def test_plan_recipe_and_layers_survive(tmp_path: Path) -> None:
    model = weight_only()
    model.metadata_props.add(key="quantkit.recipe", value="int8_ptq")
    model.graph.node[-1].metadata_props.add(key="quantkit.layer", value="encoder.fc")
    _, written = convert(model, tmp_path)
    told = {prop.key: prop.value for prop in written.metadata_props}
    assert told == {"quantkit.recipe": "int8_ptq", "quantkit.precision": "float16"}
    (node,) = [n for n in written.graph.node if n.op_type == "MatMul"]
    assert [prop.value for prop in node.metadata_props] == ["encoder.fc"]


# What stays in float32


def normalization(epsilon: float = 1e-12, *, root: bool = False) -> onnx.ModelProto:
    """LayerNorm, or RMSNorm by a reciprocal root, as old exporters write them."""
    start = [make("MatMul", ["x", "w"], ["a"], "product")]
    if not root:
        start += [
            make("ReduceMean", ["a"], ["mean"], "mean", axes=[-1]),
            make("Sub", ["a", "mean"], ["d"], "center"),
        ]
    source = "a" if root else "d"
    nodes = [
        *start,
        make("Pow", [source, "two"], ["square"], "square"),
        make("ReduceMean", ["square"], ["variance"], "variance", axes=[-1]),
        make("Add", ["variance", "epsilon"], ["sum"], "epsilon"),
        make("Sqrt", ["sum"], ["root"], "root"),
    ]
    if root:
        nodes += [make("Reciprocal", ["root"], ["inverse"], "inverse"),
                  make("Mul", ["a", "inverse"], ["n"], "divide")]  # fmt: skip
    else:
        nodes.append(make("Div", ["d", "root"], ["n"], "divide"))
    nodes.append(make("Mul", ["n", "g"], ["y"], "scale"))
    arrays = {"w": weight(8, 8), "g": 1 + weight(8), "two": 2, "epsilon": epsilon}
    return net(nodes, arrays, opset=13)


@pytest.mark.parametrize("root", [False, True])
def test_a_normalization_in_parts_stays_whole_in_float32(root: bool, tmp_path: Path) -> None:
    report, written = convert(normalization(root=root), tmp_path)
    parts = {"square", "variance", "epsilon", "root", "divide"}
    parts |= {"inverse"} if root else {"mean", "center"}
    assert set(reasons(report)) == parts
    assert len({kept.reason for kept in report.kept}) == 1
    assert report.casts == 4  # the model's borders, one up and one down
    x = random(4, 8, scale=300.0)  # whose squares leave the range of float16
    (got,) = outputs(written, x, precision="float16")
    (wanted,) = ReferenceEvaluator(onnx.load(tmp_path / "float.onnx")).run(None, {"x": x})
    assert np.abs(got - wanted).max() < 0.01


def test_layer_normalization_becomes_half_and_keeps_its_epsilon(tmp_path: Path) -> None:
    node = make("LayerNormalization", ["x", "g"], ["y"], "norm", epsilon=1e-12)
    report, written = convert(net([node], {"g": 1 + weight(8)}), tmp_path)
    assert report.kept == ()
    assert {a.name: a.f for a in written.graph.node[1].attribute}["epsilon"] == np.float32(1e-12)


def test_an_epsilon_that_half_rounds_away_stays_with_its_division(tmp_path: Path) -> None:
    nodes = [
        make("ReduceSum", ["x", "axes"], ["s"], "sum"),
        make("Clip", ["s", "tiny"], ["c"], "clip"),
        make("Expand", ["c", "shape"], ["e"], "expand"),
        make("Div", ["x", "e"], ["y"], "divide"),
    ]
    arrays = {"axes": np.int64([1]), "tiny": 1e-12, "shape": np.int64([4, 8])}
    report, _ = convert(net(nodes, arrays), tmp_path)
    assert set(reasons(report)) == {"clip", "expand", "divide"}
    assert reasons(report)["clip"] == "its constant 1e-12 would be 0 in float16"
    report, _ = convert(net(nodes, arrays), tmp_path, precision="bfloat16")
    assert report.kept == ()


def test_a_tiny_number_that_nothing_divides_by_is_no_epsilon(tmp_path: Path) -> None:
    nodes = [make("Add", ["x", "tiny"], ["a"], "add"), make("Relu", ["a"], ["y"], "relu")]
    report, _ = convert(net(nodes, {"tiny": 1e-12}), tmp_path)
    assert report.kept == ()
    assert report.zeroed == 1


@pytest.mark.parametrize(
    ("operator", "words"),
    [("LogSoftmax", "is infinite"), ("ReduceSumSquare", "sums squares"), ("CumSum", "one by one")],
)
def test_unsafe_operators_stay_with_a_reason(operator: str, words: str, tmp_path: Path) -> None:
    inputs = ["x", "axis"] if operator == "CumSum" else ["x"]
    out = [1, 1] if operator == "ReduceSumSquare" else [4, 8]
    node = make(operator, inputs, ["y"], "unsafe")
    extra = {"axis": np.int64(1)} if operator == "CumSum" else {}
    report, _ = convert(net([node], extra, out=out), tmp_path)
    assert words in reasons(report)["unsafe"]
    assert report.casts == 0


def test_positions_and_angles_stay(tmp_path: Path) -> None:
    """Rotary embedding: integers times frequencies, whose sine and cosine meet the activations."""
    nodes = [
        make("Shape", ["x"], ["n"], "n", start=1, end=2),
        make("Squeeze", ["n"], ["length"], "length"),
        make("Range", ["zero", "length", "one"], ["positions"], "positions"),
        make("Cast", ["positions"], ["p"], "cast", to=TensorProto.FLOAT),
        make("Mul", ["p", "frequency"], ["angle"], "angle"),
        make("Cos", ["angle"], ["c"], "cos"),
        make("Mul", ["x", "c"], ["y"], "rotate"),
    ]
    arrays = {"zero": np.int64(0), "one": np.int64(1), "frequency": 0.1}
    report, written = convert(net(nodes, arrays, shape=(2, "T"), out=(2, "T")), tmp_path)
    assert set(reasons(report)) == {"cast", "angle", "cos"}
    x = np.ones((2, 5000), np.float32)
    (got,) = outputs(written, x, precision="float16")
    assert np.abs(got - np.cos(np.arange(5000) * 0.1)).max() < 1e-3


def test_operators_of_others_stay(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["r"], "relu"),
        make("Mystery", ["r"], ["m"], "mystery", domain="own"),
        make("Relu", ["m"], ["y"], "after"),
    ]
    model = net(nodes)
    model.opset_import.append(helper.make_opsetid("own", 1))
    report = to_half(saved(model, tmp_path / "float.onnx"), tmp_path / "half.onnx")
    assert reasons(report) == {
        "mystery": "what types own.Mystery takes is not known",
        "after": "the type of m is not known",
    }


def test_there_is_one_cast_for_each_tensor_and_direction(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["r"], "relu"),
        *(make("Exp", ["r"], [f"e{i}"], f"exp{i}") for i in range(3)),
        *(make("Neg", ["e0"], [f"n{i}"], f"neg{i}") for i in range(2)),
        make("Sum", ["e0", "e1", "e2", "n0", "n1"], ["y"], "sum"),
    ]
    report, written = convert(net(nodes), tmp_path, keep=["exp*"])
    casts = [(n.input[0], n.attribute[0].i) for n in written.graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts)) == report.casts == 6  # x, r up, e0 e1 e2 down, y


def test_an_output_that_is_read_in_float32_as_well_has_one_cast(tmp_path: Path) -> None:
    nodes = [make("Relu", ["x"], ["y"], "relu"), make("Exp", ["y"], ["e"], "exp")]
    model = net(nodes)
    model.graph.output.append(helper.make_tensor_value_info("e", TensorProto.FLOAT, [4, 8]))
    report, written = convert(model, tmp_path, keep=["exp"])
    assert report.casts == 2
    assert operators(written) == ["Cast", "Relu", "Cast", "Exp"]


def test_casts_that_say_nothing_any_more_go(tmp_path: Path) -> None:
    nodes = [
        make("Relu", ["x"], ["r"], "relu"),
        make("Cast", ["r"], ["h"], "down", to=TensorProto.FLOAT16),
        make("Tanh", ["h"], ["t"], "tanh"),
        make("Cast", ["t"], ["f"], "up", to=TensorProto.FLOAT),
        make("Neg", ["f"], ["y"], "neg"),
    ]
    _, written = convert(net(nodes), tmp_path)
    assert operators(written) == ["Cast", "Relu", "Tanh", "Neg", "Cast"]


def test_what_moves_values_between_kept_nodes_stays_with_them(tmp_path: Path) -> None:
    nodes = [
        make("Exp", ["x"], ["e"], "exp0"),
        make("Transpose", ["e"], ["t"], "turn", perm=[1, 0]),
        make("Exp", ["t"], ["y"], "exp1"),
    ]
    report, _ = convert(net(nodes, out=[8, 4]), tmp_path, keep=["exp*"])
    assert "between nodes that stay" in reasons(report)["turn"]
    assert report.casts == 0


def test_what_a_kept_node_holds_stays_with_it(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph([make(op, ["x"], [f"{op}_y"], op)], op, [],
                          [info(f"{op}_y", TensorProto.FLOAT, [4, 8])])
        for op in ("Tanh", "Relu")
    ]  # fmt: skip
    nodes = [
        make("ReduceMax", ["x"], ["largest"], "largest", keepdims=0),
        make("Greater", ["largest", "zero"], ["c"], "c"),
        make("If", ["c"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    report, _ = convert(net(nodes, {"zero": 0}), tmp_path, keep=["if"])
    assert set(reasons(report)) == {"if", "Tanh", "Relu"}
    assert reasons(report)["Tanh"] == "it is inside of if"


@pytest.mark.parametrize("whole", [False, True])
def test_integers_are_compared_as_such_and_weights_alone_rounded(
    whole: bool, tmp_path: Path
) -> None:
    """A product of two grids multiplies codes; beside a float one, the weight becomes half."""
    quantized = Net(4, 8)
    x = quantized.qdq("x", "dx", scale=1 / 3) if whole else "x"
    codes = quantized.put("w_q", 101 * np.eye(8, dtype=np.int8))
    grid = [quantized.put("w_s", np.float32(1 / 7)), quantized.put("w_z", np.int8(0))]
    w = quantized.node("DequantizeLinear", [codes, *grid], "w")
    product = quantized.node("MatMul", [x, w], "product")
    _, written = convert(quantized.done(quantized.node("Add", [product, x], "y")), tmp_path)
    true = 101 * np.eye(8, dtype=np.float32) * np.float32(1 / 7)
    given = np.float32(np.arange(32).reshape(4, 8))
    left = np.clip(np.rint(given * 3), -128, 127) * np.float32(1 / 3) if whole else given
    half = FORMATS["float16"].round
    wanted = half(half(left @ (true if whole else half(true))) + half(left))
    (got,) = outputs(written, given, precision="float16")
    assert np.array_equal(got, wanted)


# Constants


def masked(value: float) -> onnx.ModelProto:
    """Scores with a mask of a constant in place of minus infinity."""
    nodes = [
        make("Greater", ["x", "zero"], ["seen"], "seen"),
        make("Where", ["seen", "zero", "hidden"], ["mask"], "mask"),
        make("Add", ["x", "mask"], ["scores"], "add"),
        make("Softmax", ["scores"], ["y"], "softmax"),
    ]
    return net(nodes, {"zero": 0, "hidden": value})


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("value", [float(np.finfo(np.float32).min), -1e4])
def test_a_mask_comes_into_range(value: float, precision: Precision, tmp_path: Path) -> None:
    report, written = convert(masked(value), tmp_path, precision=precision)
    assert report.kept == ()
    assert report.clamped == (value < -1e5)
    assert -MASK in {round(float(a), -2) for a in constants(written).values()}
    x = np.concatenate([random(3, 8), -np.ones((1, 8), np.float32)])  # a row masked whole
    (got,) = outputs(written, x, precision=precision)
    (wanted,) = ReferenceEvaluator(onnx.load(tmp_path / "float.onnx")).run(None, {"x": x})
    assert np.abs(got - wanted).max() < 0.02


def test_minus_infinity_stays_since_half_has_it(tmp_path: Path) -> None:
    x = np.abs(random(4, 8)) * np.where(np.arange(8) < 2, -1, 1).astype(np.float32)
    report, written = convert(masked(-math.inf), tmp_path, data=[x])
    assert (report.clamped, report.kept) == (0, ())
    assert -math.inf in constants(written)["hidden"]
    assert report.parity[0].sqnr > 50


def test_an_open_bound_becomes_the_largest_number(tmp_path: Path) -> None:
    node = make("Clip", ["x", "low", "high"], ["y"], "clip")
    report, written = convert(net([node], {"low": 0, "high": 3.4e38}), tmp_path)
    assert (report.clamped, report.kept) == (1, ())
    assert np.float16(65504) in constants(written).values()


def test_a_large_number_that_is_no_mask_keeps_its_node(tmp_path: Path) -> None:
    nodes = [make("Mul", ["x", "big"], ["m"], "big"), make("Tanh", ["m"], ["y"], "tanh")]
    report, _ = convert(net(nodes, {"big": 1e6}), tmp_path)
    assert reasons(report) == {"big": "its constant big holds 1e+06, beyond the 65504 of float16"}
    assert convert(net(nodes, {"big": 1e6}), tmp_path, precision="bfloat16")[0].kept == ()


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1e7, "its constant w holds"), (1e-7, "of its weight w float16 keeps")],
)
def test_weights_that_half_does_not_hold_keep_their_product(
    factor: float, words: str, tmp_path: Path
) -> None:
    nodes = [make("MatMul", ["x", "w"], ["m"], "fc"), make("Mul", ["m", "s"], ["y"], "scale")]
    arrays = {"w": weight(8, 8) * np.float32(factor), "s": 0.5}
    report, written = convert(net(nodes, arrays), tmp_path)
    assert words in reasons(report)["fc"]
    (finding,) = [f for f in report.findings if f.severity is Severity.WARNING]
    assert (finding.code, finding.where) == ("float32-layer", "fc")
    # Without it TensorRT would run the product in half: see test_half_engine.
    assert operators(written) == ["MatMul", "Max", "Cast", "Mul", "Cast"]


# Ranges that data show


def growing(factor: float) -> onnx.ModelProto:
    nodes = [
        make("MatMul", ["x", "w"], ["m"], "fc"),
        make("Mul", ["m", "f"], ["big"], "grow"),
        make("Reshape", ["big", "shape"], ["flat"], "flat"),
        make("Div", ["flat", "f"], ["d"], "shrink"),
        make("Tanh", ["d"], ["y"], "tanh"),
    ]
    arrays = {"w": weight(8, 8), "f": factor, "shape": np.int64([32])}
    return net(nodes, arrays, out=[32])


def test_a_tensor_that_leaves_the_range_keeps_what_makes_and_reads_it(tmp_path: Path) -> None:
    data = [random(4, 8, seed=seed) for seed in range(3)]
    report, _ = convert(growing(5e4), tmp_path, data=data)
    assert set(reasons(report)) == {"grow", "flat", "shrink"}
    assert reasons(report)["grow"].startswith("big reaches ")
    assert report.parity[0].sqnr > 60
    assert report.samples == 12
    assert convert(growing(1e3), tmp_path, data=data)[0].kept == ()


def test_without_data_ranges_are_not_known_and_that_is_told(tmp_path: Path) -> None:
    report, _ = convert(growing(5e4), tmp_path)
    assert report.kept == ()
    assert report.parity == ()
    assert [finding.code for finding in report.findings] == ["ranges-not-seen"]


def test_a_tensor_too_small_for_half_stays(tmp_path: Path) -> None:
    report, _ = convert(growing(1e-4), tmp_path, data=[random(4, 8, scale=1e-2)])
    assert "stays below" in reasons(report)["grow"]


def test_an_output_that_overflows_is_an_error(tmp_path: Path) -> None:
    """Inside of an If no range is seen, so that the comparison has to tell."""
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [make("Mul", ["x", "f"], [f"{n}_big"], f"{n}_mul"),
             make("Mul", [f"{n}_big", "f"], [f"{n}_huge"], f"{n}_again"),
             make("Mul", [f"{n}_huge", "small"], [f"{n}_y"], f"{n}_back")],
            n, [], [info(f"{n}_y", TensorProto.FLOAT, [4, 8])],
        )
        for n in ("first", "second")
    ]  # fmt: skip
    nodes = [
        make("ReduceMax", ["x"], ["largest"], "largest", keepdims=0),
        make("Greater", ["largest", "small"], ["c"], "c"),
        make("If", ["c"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
    ]
    report, _ = convert(net(nodes, {"f": 3e3, "small": 1e-4}), tmp_path, data=[random(4, 8)])
    assert math.isnan(report.parity[0].sqnr)
    assert report.findings[0].code == "output-not-finite"
    assert report.findings[0].severity is Severity.ERROR


def test_a_product_with_large_sums_is_framed_for_float32_sums(tmp_path: Path) -> None:
    """Its result is small: large numbers cancel on the way."""
    half = np.full((4, 8), 50, np.float32)
    arrays = {"w": np.concatenate([half, -half]), "v": weight(8, 8)}
    nodes = [make("MatMul", ["x", "w"], ["m"], "sums"), make("MatMul", ["m", "v"], ["y"], "fc")]
    x = np.full((4, 8), 600, np.float32) + random(4, 8)
    report, written = convert(net(nodes, arrays), tmp_path, data=[x])
    assert list(reasons(report)) == ["sums"]
    assert "sums in float32" in reasons(report)["sums"]
    assert "Max" not in operators(written)
    assert not any(f.code == "float32-layer" for f in report.findings)


def test_the_float_file_may_be_the_reference_of_a_quantized_one(tmp_path: Path) -> None:
    quantized = Net(4, 8)
    x = quantized.qdq("x", "dx")
    model = quantized.done(quantized.node("MatMul", [x, quantized.weight((8, 8), "w", 1)], "y"))
    stored = constants(model)
    true = stored["w_q"].astype(np.float32) * stored["w_s"]
    plain = saved(net([make("MatMul", ["x", "w"], ["y"], "y")], {"w": true}), tmp_path / "f.onnx")
    path = save_net(model, tmp_path)
    report = to_half(path, tmp_path / "half.onnx", data=[random(4, 8)], reference=plain)
    (before,), (after,) = report.before, report.parity
    assert 25 < before.sqnr < 60
    assert abs(before.sqnr - after.sqnr) < 1


def test_a_reference_that_does_not_fit_is_told(tmp_path: Path) -> None:
    other = saved(net([make("Transpose", ["x"], ["y"], "t")], out=(8, 4)), tmp_path / "o.onnx")
    report, _ = convert(net([make("Relu", ["x"], ["y"], "r")]), tmp_path,
                        data=[random(4, 8)], reference=other)  # fmt: skip
    (finding,) = report.findings
    assert (finding.code, report.parity) == ("parity-not-measured", ())
    assert "give the float file that it was made of" in finding.why


# Files


def test_weights_beside_the_file_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_half_reading, "LARGEST_FILE", 0)
    source = tmp_path / "big.onnx"
    onnx.save(small_net(), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    to_half(source, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx.data").is_file()
    written = onnx.load(tmp_path / "half.onnx")
    assert constants(written)["stem.conv.weight"].dtype == np.float16
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match="its weights outside the file cannot be read"):
        to_half(source, tmp_path / "half.onnx")


def test_a_file_may_be_replaced_by_its_conversion(tmp_path: Path) -> None:
    path = saved(small_net(), tmp_path / "net.onnx")
    report = to_half(path, path)
    assert to_half(path, tmp_path / "again.onnx").converted == 0
    assert report.output == path


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "fp8"}, ExportError, "no precision 'fp8'; there are: float16, bfloat16"),
        (
            {"data": [{"y": random(2, 16, 8, 8)}]},
            DataError,
            "the file takes image; name them alike",
        ),
        ({"data": [random(2, 3)]}, DataError, r"on image \(2, 3\)"),
        ({"data": []}, DataError, "no batch"),
    ],
)
def test_what_does_not_fit_is_refused_and_no_file_is_lost(
    options: dict[str, Any], error: type[QuantkitError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "half.onnx").write_text("the good file")
    with pytest.raises(error, match=words):
        to_half(saved(small_net(), tmp_path / "f.onnx"), tmp_path / "half.onnx", **options)
    assert (tmp_path / "half.onnx").read_text() == "the good file"


def test_bad_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    for name, words in (("absent", "cannot be read"), ("junk", "not an ONNX file")):
        with pytest.raises(ModelFileError, match=words):
            to_half(tmp_path / f"{name}.onnx", tmp_path / "half.onnx")
    path = saved(small_net(), tmp_path / "f.onnx")
    with pytest.raises(ExportError, match="choose a folder that exists"):
        to_half(path, tmp_path / "absent" / "half.onnx")


def test_a_copy_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = saved(small_net(), tmp_path / "net.onnx")
    assert half_copy(path, tmp_path, "bfloat16") == tmp_path / "net.bfloat16.onnx"


# The command


@pytest.fixture
def run_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    fill(tmp_path)
    saved(normalization(), tmp_path / "norm.onnx")
    return runner(tmp_path, monkeypatch, capsys)


def test_the_command_tells_what_became_of_the_file(run_line: Run, tmp_path: Path) -> None:
    code, out, err = run_line("half float.onnx -o half.onnx --data calib.yaml --keep nothing")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "9 of 9 float nodes in float16"
    assert "Beside float.onnx, over 32 samples" in out
    assert "warning[unused-keep] keep 'nothing'" in out
    assert lines[-1] == "Next: quantkit build half.onnx -o half.engine"
    assert onnx.load(tmp_path / "half.onnx").graph.node


def test_reasons_are_grouped_or_listed(run_line: Run) -> None:
    _, out, _ = run_line("half norm.onnx -o half.onnx")
    assert re.search(r"^7 +(\w+, ){5}\w+ +part of a normalization: ", out, re.MULTILINE)
    _, out, _ = run_line("half norm.onnx -o half.onnx --nodes")
    assert "variance  ReduceMean  part of a normalization" in out


def test_the_json_tells_all(run_line: Run, tmp_path: Path) -> None:
    code, out, _ = run_line("half norm.onnx -o half.onnx --precision bfloat16 --json")
    told = json.loads(out)
    assert code == 0
    assert (told["precision"], told["output"], len(told["kept"])) == ("bfloat16", "half.onnx", 7)
    assert told["bytes"] == (tmp_path / "half.onnx").stat().st_size
    assert told["findings"][0]["code"] == "ranges-not-seen"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ("absent.onnx -o h.onnx", 6, "no such file"),
        ("junk.onnx -o h.onnx", 6, "not an ONNX file"),
        ("float.onnx -o h.onnx --precision fp16", 2, "'fp16' is not one of 'float16', 'bfloat16'"),
        ("float.onnx -o h.onnx --reference float.onnx", 2, "--reference needs --data as well"),
        ("float.onnx -o h.onnx --data renamed.yaml", 4, "has no input 'x'"),
        ("float.onnx -o absent/h.onnx", 7, "choose a folder that exists"),
    ],
)
def test_the_command_refuses_with_one_line(
    arguments: str, exit_code: int, words: str, run_line: Run, tmp_path: Path
) -> None:
    code, out, err = run_line(f"half {arguments}")
    assert (code, out, err.count("\n")) == (exit_code, "", 1)
    assert words in err
    assert not (tmp_path / "h.onnx").exists()
