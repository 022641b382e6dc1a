"""What the builder says, as findings: the way out fits what it names."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from quantkit.targets._engine_process import Outcome
from quantkit.targets._rtx_findings import from_outcome
from quantkit.targets._rtx_graph import GraphReader


def model() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xy"]
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    return helper.make_model(helper.make_graph([node], "net", value[:1], value[1:]))


def refused(error: str) -> tuple[str, str]:
    """Where the one finding is, and its fix."""
    outcome = Outcome(
        built=False, refusals=(), errors=(error,), layers="", ended=None, stderr="", seconds=0.0
    )
    (finding,) = from_outcome(outcome, GraphReader(model()), "net.onnx", 60.0)
    assert finding.code == "builder-refused"
    return finding.where, finding.fix


def test_a_refusal_that_names_a_part_says_to_leave_that_part_in_float() -> None:
    where, fix = refused("Could not find any implementation for node 'product'.")
    assert where == "product"
    assert fix == "Leave product in float, or change the shapes it is built for."


def test_a_refusal_that_names_no_part_says_how_to_find_it() -> None:
    where, fix = refused("Engine could not be created.")
    assert where == "net.onnx"
    assert fix.startswith("Build the float model: if it is refused as well")
    assert "names" not in fix
