"""What of an ONNX file TensorRT would take, why not the rest, and what a split costs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import qdq_models
from onnx import TensorProto, helper

from quantkit.cli import main
from quantkit.errors import DataError
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
        Gain(cause="custom-operator", nodes=("mystery",), engines=3),
        Gain(cause="nonzero-zero-point", nodes=("d2_q", "d2"), engines=3),
        Gain(cause="nonconstant-qparams", nodes=("q3", "d3"), engines=3),
    )


def test_what_the_parser_alone_refuses_is_told_with_a_way_out(tmp_path: Path) -> None:
    n = qdq_models.Net(4, 8)
    y = n.node("Det", [n.node("Reshape", ["x", n.put("s", [2, 4, 4])], "square")], "det")
    path = qdq_models.save(n.done(n.node("Relu", [y], "relu")), tmp_path)
    report = inspect(path)
    (finding,) = report.findings
    assert (finding.code, finding.where) == ("unsupported-operator", "det")
    assert finding.fix == "Leave it to ONNX Runtime, or write it out for the one size that is used."
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
        ({"shapes": {"x": (1, 8)}}, "does not fit input x, of dimensions any, 8, 16, 16"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, object], words: str, four: Path
) -> None:
    with pytest.raises(DataError, match=words):
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
