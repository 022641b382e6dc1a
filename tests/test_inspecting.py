"""What of an ONNX file TensorRT would take, why not the rest, and what a split costs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import qdq_models
from onnx import TensorProto, helper

from quantkit.cli import main
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.inspecting import Gain, inspect
from quantkit.onnx import flow
from quantkit.partitioning import Traffic

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)

CAUSES = {"custom-operator": "mystery", "nonzero-zero-point": "d2_q", "nonconstant-qparams": "q3"}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with four troubles, which says of what size its custom operator's output is."""
    model = qdq_models.four_troubles()
    value = helper.make_tensor_value_info("mystery", TensorProto.FLOAT, ["N", 8, 16, 16])
    model.graph.value_info.append(value)
    path = tmp_path_factory.mktemp("inspect") / "four.onnx"
    onnx.save(model, path)
    return path


def test_four_troubles_are_named_at_once_each_with_a_fix(four: Path) -> None:
    report = inspect(four)
    errors = {f.code: f.where for f in report.findings if f.severity == "error"}
    assert errors == CAUSES
    assert {f.where for f in report.findings if f.code == "conv-transpose"} == {"deconv"}
    assert all(finding.fix.endswith(".") for finding in report.findings)
    assert not report.ok


def gain(cause: str, operator: str, *nodes: str, between: tuple[int, int]) -> Gain:
    """What a cause costs that parts two of four engines."""
    return Gain(cause=cause, operator=operator, nodes=nodes, between=(between,), engines=3)


def test_the_split_tells_engines_borders_and_what_to_fix_first(four: Path) -> None:
    report = inspect(four, min_block_sizes=(1, 3, 9), shapes={"x": (2, 8, 16, 16)})
    assert [(s.min_block_size, s.engines, s.inside, s.outside) for s in report.splits] == [
        (1, 4, 10, 5),
        (3, 2, 7, 8),
        (9, 0, 0, 15),
    ]
    assert [engine.operators for engine in report.engines] == [3, 1, 2, 4]
    assert [engine.verified for engine in report.engines] == [True] * 4
    image = 2 * 8 * 16 * 16 * 4
    assert report.engines[0].reads == Traffic(tensors=1, bytes=image, unknown=0)
    # d3 crosses as float; the largest value goes to both nodes of the third pair.
    assert report.splits[0].crossing.unknown == 0
    assert report.gains == (
        gain("custom-operator", "Mystery", "mystery", between=(1, 2)),
        gain("nonzero-zero-point", "QuantizeLinear", "d2_q", "d2", between=(2, 3)),
        gain("nonconstant-qparams", "QuantizeLinear", "q3", "d3", between=(3, 4)),
    )


def test_what_the_parser_alone_refuses_is_told_with_a_way_out(tmp_path: Path) -> None:
    n = qdq_models.Net(4, 8)
    y = n.node("Det", [n.node("Reshape", ["x", n.put("s", [2, 4, 4])], "square")], "det")
    path = qdq_models.save(n.done(n.node("Relu", [y], "relu")), tmp_path)
    report = inspect(path)
    (finding,) = report.findings
    assert (finding.code, finding.where) == ("unsupported-operator", "det")
    assert finding.fix.startswith("Write it out for the one size that is used")
    assert [engine.verified for engine in report.engines] == [True, True]


def test_a_float_file_that_one_engine_takes_is_ok_with_dynamic_inputs(tmp_path: Path) -> None:
    model = qdq_models.conv_relu_conv("N")
    report = inspect(qdq_models.save(model, tmp_path))
    assert report.ok
    assert report.findings == ()
    assert report.sizes == {"x": (8, 8, 16, 16)}
    assert len(report.engines) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "onnxruntime"}, "no parser to ask for target 'onnxruntime'"),
        ({"min_block_sizes": (0,)}, "min_block_size must be 1 or more"),
        ({"shapes": {"y": (1,)}}, "no input 'y' to give a shape; the inputs are x"),
        ({"gpu": "A4O"}, "A4O"),
        ({"shapes": {"x": (1, 8)}}, "does not fit input x, of dimensions any, 8, 16, 16"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, object], words: str, four: Path
) -> None:
    with pytest.raises((DataError, RecipeError), match=words):
        inspect(four, **options)  # type: ignore[arg-type]


def test_what_is_no_onnx_file_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"\xff\xffjunk")
    report = inspect(path)
    assert [finding.code for finding in report.findings] == ["unreadable-model"]
    assert not report.ok


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_command_names_all_four_and_exits_with_1(
    four: Path, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(four), "--shape", "x=8,8,16,16"]) == 1
    out = capsys.readouterr().out
    assert all(f"[{code}] {where}" in out for code, where in CAUSES.items())
    assert "[conv-transpose] deconv" in out
    assert out.count("Fix:") == 4
    assert max(map(len, out.splitlines())) <= int(columns)


def test_the_command_prints_json(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(four), "--min-block-size", "2", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert [split["engines"] for split in report["splits"]] == [3]


def dilated(name: str, x: str, y: str) -> onnx.NodeProto:
    """Of this the parser does not like an attribute."""
    return helper.make_node("MaxPool", [x], [y], name, kernel_shape=[3, 3], dilations=[2, 2])


def summed(name: str, x: str, y: str) -> onnx.NodeProto:
    """Of this the parser does not like that its axes are an input, which it sees on import."""
    return helper.make_node("ReduceSum", [x, "axes"], [y], name, keepdims=1)


def saved(folder: Path, nodes: list[onnx.NodeProto], **known: list[int]) -> Path:
    """A file of nodes from ``x`` to ``y``; ``known``: the sizes of tensors inside."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [1, 4, 16, 16]), value("axes", TensorProto.INT64, [1])]
    inner = [value(name, TensorProto.FLOAT, dims) for name, dims in known.items()]
    output = [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, output, value_info=inner)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def relu(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], f"relu_{y}")


def test_every_node_is_named_that_the_parser_refuses_on_import(tmp_path: Path) -> None:
    """It stops at the first of them, and then imports nothing behind it."""
    nodes = [
        summed("sum1", "x", "a"), relu("a", "b"), summed("sum2", "b", "c"), relu("c", "d"),
        dilated("pool", "d", "e"), summed("sum3", "e", "f"), relu("f", "y"),
    ]  # fmt: skip
    sizes = {name: [1, 4, 16, 16] for name in ("a", "c", "f")}
    report = inspect(saved(tmp_path, nodes, **sizes))
    assert {f.where for f in report.findings} == {"sum1", "sum2", "pool", "sum3"}
    assert {f.fix.split(":")[0] for f in report.findings if f.where != "pool"} == {
        "Store that input in the file as an initializer"
    }
    assert [(e.operators, e.verified) for e in report.engines] == [(1, True)] * 3
    assert [(g.operator, g.engines) for g in report.gains] == [("ReduceSum", 2), ("MaxPool", 3)]


def test_behind_unknown_sizes_operators_are_checked_and_sizes_can_be_given(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], "mystery", domain="own"),
        summed("sum", "a", "b"), dilated("pool", "b", "c"), relu("c", "y"),
    ]  # fmt: skip
    path = saved(tmp_path, nodes)
    report = inspect(path)
    assert {(f.code, f.where) for f in report.findings} == {
        ("custom-operator", "mystery"),
        ("unsupported-operator", "pool"),
        ("unknown-sizes", "a"),
        ("unknown-sizes", "c"),
    }
    assert None in [engine.verified for engine in report.engines]
    told = inspect(path, shapes={"a": (1, 4, 16, 16), "b": (1, 4, 16, 16)})
    assert {f.where for f in told.findings} == {"mystery", "sum", "pool"}
    assert [engine.verified for engine in told.engines] == [True]


def test_what_is_refused_in_a_body_refuses_the_node_that_has_it(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    bodies = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["x"], ["y"])], name, [], [value])
        for name, op in (("then", "Relu"), ("else", "Unique"))
    }
    axis = [helper.make_node("Cast", ["axes"], ["c"], "cast", to=TensorProto.BOOL)]
    path = saved(tmp_path, [*axis, helper.make_node("If", ["c"], ["y"], "if", **bodies)])
    report = inspect(path)
    (finding,) = report.findings
    assert finding.where == "if"
    assert finding.why == "In its body, Unique_y: The parser does not take Unique."
    assert [(s.inside, s.outside) for s in report.splits[:1]] == [(1, 1)]


@pytest.mark.parametrize(
    ("net", "code", "weight"),
    [
        (qdq_models.uint8_weight, "uint8-weights", "w"),
        (qdq_models.int32_bias, "int32-bias", "bias"),
    ],
)
def test_a_layer_stays_outside_with_the_qdq_of_its_weight(
    net: Callable[[], onnx.ModelProto], code: str, weight: str, tmp_path: Path
) -> None:
    report = inspect(qdq_models.save(net(), tmp_path))
    assert {f.code: f.where for f in report.findings} == {code: weight}
    assert [(e.operators, e.verified) for e in report.engines] == [(2, True)]
    assert [(g.cause, g.nodes, g.engines) for g in report.gains] == [(code, ("conv",), 1)]


def test_tensors_of_types_that_no_engine_has_are_told(tmp_path: Path) -> None:
    n = qdq_models.Net(3, 4)
    n.node("Identity", ["x"], "same")
    model = n.done("same")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    report = inspect(qdq_models.save(model, tmp_path))
    assert [(f.code, f.where) for f in report.findings] == [("tensor-type", "same")]
    assert "'x', of type string" in report.findings[0].why
    assert not report.ok


def test_the_parser_is_asked_for_operators_that_onnx_does_not_know(tmp_path: Path) -> None:
    """It has importers for some of ONNX Runtime's."""
    node = helper.make_node(
        "SkipSimplifiedLayerNormalization", ["x", "x", "g"], ["y"], "norm", domain="com.microsoft"
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1, 4, 8])],
        [value("y", TensorProto.FLOAT, [1, 4, 8])],
        [helper.make_tensor("g", TensorProto.FLOAT, [8], [1.0] * 8)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert inspect(qdq_models.save(model, tmp_path)).ok


def test_a_gpu_refuses_the_formats_that_it_lacks(tmp_path: Path) -> None:
    path = qdq_models.save(qdq_models.fp8(), tmp_path)
    report = inspect(path, gpu="A40")
    assert {f.where for f in report.findings if f.severity == "error"} == {"dx_q", "w"}
    assert {f.code for f in report.findings if f.severity == "error"} == {"fp8-hardware"}
    assert report.splits[0].engines == 0
    assert inspect(path, gpu="L4").ok


def test_nodes_in_any_order_are_taken(tmp_path: Path) -> None:
    model = qdq_models.conv_relu_conv()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert inspect(qdq_models.save(model, tmp_path)).ok


@pytest.mark.parametrize(
    ("reads", "words"), [("y", "node add waits for its own output"), ("z", "which nothing makes")]
)
def test_nodes_that_cannot_run_are_an_error_of_the_file(
    reads: str, words: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, [helper.make_node("Add", ["x", reads], ["y"], "add")])
    with pytest.raises(ModelFileError, match=words):
        inspect(path)


def test_weights_outside_the_file_are_not_read_but_must_be_there(tmp_path: Path) -> None:
    size, path = 8192, tmp_path / "model.onnx"
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size, size])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(4 * size * size))):
        tensor.external_data.add(key=key, value=value)
    n = qdq_models.Net(1, size)
    n.stored.append(tensor)
    onnx.save(n.done(n.node("MatMul", ["x", "w"], "product")), path)
    with pytest.raises(ModelFileError, match=r"w are to be in w\.bin, which is missing"):
        inspect(path)
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * size * size)  # 256 MB of zeros that no disk holds
    assert inspect(path).ok


def test_large_weights_of_all_sizes_are_taken_without_their_values(tmp_path: Path) -> None:
    n = qdq_models.Net(4, 64)
    y = n.node("MatMul", [n.qdq("x", "d1"), n.weight((64, 128), "w1", axis=1)], "int8")
    y = n.node("MatMul", [y, n.floats((128, 96), "w2")], "float")
    y = n.node("Gemm", [y, n.floats((96, 32), "w3"), n.floats((32,), "b")], "gemm")
    assert inspect(qdq_models.save(n.done(y), tmp_path)).ok


def test_outputs_that_nothing_reads_need_no_type(tmp_path: Path) -> None:
    """As the mask of Dropout, which old exporters name, and of which old rules tell no type."""
    node = helper.make_node("Dropout", ["x"], ["a", "mask"], "drop", ratio=0.5)
    path = saved(tmp_path, [node, relu("a", "y")])
    model = onnx.load(path)
    model.opset_import[0].version = 6
    onnx.save(model, path)
    assert inspect(path).ok


def test_names_of_any_kind_can_be_given_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = qdq_models.conv_relu_conv("N")
    model.graph.input[0].name = "input.1=/a"
    for node in model.graph.node:
        node.input[:] = ["input.1=/a" if name == "x" else name for name in node.input]
    path = qdq_models.save(model, tmp_path)
    assert main(["inspect", str(path), "--shape", "input.1=/a=2,8,16,16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sizes"] == {"input.1=/a": [2, 8, 16, 16]}
    assert main(["inspect", str(path), "--shape", "2,8,16,16"]) == 2


def test_a_subgraph_reads_what_its_nodes_read_from_outside() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "then", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    assert set(flow.read_by(node)) == {"c", "x", "w"}


def test_what_depends_on_constants_alone_is_no_step() -> None:
    graph = qdq_models.conv_relu_conv().graph
    names = [step.name for step in flow.flow(graph, ())]
    assert not {"w1", "w2"} & set(names)
    assert all("w" not in name for step in flow.flow(graph, ()) for name in step.inputs)
