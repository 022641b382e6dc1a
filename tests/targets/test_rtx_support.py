"""Asking a parser for parts of a model: what ends it is found. The parser here is a function."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from quantkit.onnx.tensor_types import typed
from quantkit.targets._engine_process import Outcome, Refusal
from quantkit.targets._rtx_support import Question, examine
from quantkit.targets._rtx_ways import told_better

LENGTH = 9


def chain() -> onnx.ModelProto:
    """Nine nodes in a row, ``n0`` to ``n8``."""
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], f"n{i}") for i in range(LENGTH)]
    x, y = (helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, [2]) for i in (0, LENGTH))
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y]))


def question() -> Question:
    model = chain()
    return Question(model=model, label="chain.onnx", values=typed(model))


def answer(built: bool, ended: str | None = None, *refusals: Refusal) -> Outcome:
    return Outcome(
        built=built, refusals=refusals, errors=(), layers="", ended=ended, stderr="", seconds=1.0
    )


def refusal(node: str) -> Refusal:
    return Refusal(node=node, operator="Relu", function="f", why="false")


def parser_that(breaks: Callable[[set[str]], Outcome | None]) -> Callable[..., Outcome]:
    """Takes all for which ``breaks`` gives nothing; knows no operator that it was not told of."""

    def ask(model: onnx.ModelProto) -> Outcome:
        names = {node.name for node in model.graph.node}
        mark = next((name for name in names if name.startswith("quantkit.")), None)
        if mark is not None:
            return answer(False, None, refusal(mark))
        return breaks(names) or answer(True)

    return ask


@pytest.mark.parametrize("bad", [{"n0"}, {"n4"}, {"n8"}, {"n2", "n3", "n7"}])
def test_a_node_that_crashes_the_parser_is_found(bad: set[str]) -> None:
    ask = parser_that(lambda names: answer(False, "SIGSEGV") if names & bad else None)
    found = examine(question(), ask)
    assert set(found.refused) == bad
    assert {finding.code for finding in found.refused.values()} == {"parser-crash"}
    assert "SIGSEGV" in next(iter(found.refused.values())).why


def test_a_refusal_that_names_no_node_is_found_with_the_parser_s_words() -> None:
    said = Refusal(node="", operator="", function="f", why="Assertion failed: a > b: It is odd.")
    ask = parser_that(lambda names: answer(False, None, said) if "n5" in names else None)
    found = examine(question(), ask)
    assert {name: finding.why for name, finding in found.refused.items()} == {"n5": "It is odd."}


def test_what_is_refused_one_by_one_is_found_one_by_one() -> None:
    bad = ["n1", "n2", "n6"]

    def first(names: set[str]) -> Outcome | None:
        here = [name for name in bad if name in names]
        return answer(False, None, refusal(here[0])) if here else None

    found = examine(question(), parser_that(first))
    assert sorted(found.refused) == bad
    engines = [names for names, verified in found.verified.items() if verified]
    assert sorted(engines) == [("n0",), ("n3", "n4", "n5"), ("n7", "n8")]


def test_a_parser_that_does_not_answer_is_told_once() -> None:
    found = examine(question(), parser_that(lambda names: answer(False, "timeout")))
    assert [note.code for note in found.notes] == ["parser-timeout"]
    assert found.refused == {}
    assert list(found.verified.values()) == [None]


@pytest.mark.parametrize(
    ("operator", "domain", "fix"),
    [
        ("Unique", "", "its size depends on data."),
        ("FusedConv", "com.microsoft", "or leave it to ONNX Runtime between two engines."),
        ("TreeEnsemble", "ai.onnx.ml", "it is classic learning."),
        ("Mystery", "own", "write a plugin for it, or leave it to ONNX Runtime between"),
    ],
)
def test_every_operator_has_a_way_out(operator: str, domain: str, fix: str) -> None:
    node = helper.make_node(operator, ["t0"], ["t1"], "n0", domain=domain)
    model = helper.make_model(
        helper.make_graph([node], "g", *([value] for value in chain().graph.input[:1]), [])
    )
    ask = parser_that(lambda names: answer(False, None, refusal("n0")))
    found = examine(Question(model=model, label="one.onnx", values=typed(model)), ask)
    assert fix in found.refused["n0"].fix


def test_an_operator_of_onnx_is_not_called_a_custom_one() -> None:
    from quantkit.interfaces import Finding, Severity

    said = Finding(
        severity=Severity.ERROR, code="custom-operator", where="n", why="Plugin not found.", fix="-"
    )
    told = told_better(said, helper.make_node("DFT", ["x"], ["y"], "n"))
    assert (told.code, told.fix) == (
        "unsupported-operator",
        "Write it as a MatMul with the matrix of the transform, which is constant.",
    )
