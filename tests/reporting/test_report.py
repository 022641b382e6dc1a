"""A report tells what the single tools tell, of all layers, and loses nothing on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from two_ways import export_float

from quantkit.analysis.diagnosis import diagnose, float_parameters
from quantkit.benching.report import Method
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import Finding, Severity
from quantkit.recipe import Recipe
from quantkit.reporting import analysed
from quantkit.reporting.joining import joined_findings, joined_layers
from quantkit.reporting.report import Report, report
from quantkit.reporting.section import TITLES, State, attempt
from quantkit.workflow import prepare, quantize

pytestmark = pytest.mark.usefixtures("one_thread")

MEASURED = (
    *("outputs", "accuracy", "latency", "sensitivity", "diagnosis", "advice", "profile"),
    *("layer_parity", "coverage"),
)


def small_data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 32, generator=generator) for _ in range(2)]


def linear_net() -> torch.nn.Module:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    return made.eval()


def test_every_section_is_made_or_says_why_not(small_report: Report) -> None:
    assert [section.name for section in small_report.sections] == list(TITLES)
    assert [(s.name, s.why) for s in small_report.sections if s.state is not State.MADE] == []


def test_the_table_of_layers_joins_what_the_sections_tell(small_report: Report) -> None:
    rows = {row["layer"]: row for row in small_report.layers}
    assert list(rows) == ["stem", "conv", "add", "fc"]
    conv = rows["conv"]
    assert conv["quantized"]
    assert set(conv["runs_in"]) == {"onnxruntime"}
    for key in ("sensitivity", "sqnr", "model_sqnr", "weights_share", "parity", "weight_bytes"):
        assert conv[key] is not None, key
    assert rows["stem"]["time_share"] is not None
    assert not rows["fc"]["quantized"]
    assert rows["fc"]["sqnr"] is None
    assert rows["fc"]["why"]


def test_the_figures_are_those_of_the_tools_themselves() -> None:
    net, data = linear_net(), small_data()
    others = tuple(name for name in MEASURED if name != "diagnosis")
    told = report(net, calibration=data, samples=16, without=others)
    prepared = prepare(net, "int8_ptq", example_inputs=(data[0],))
    found = diagnose(
        quantize(net, calibration=data), data, samples=16, floating=float_parameters(prepared)
    )
    section = told.section("diagnosis")
    assert section is not None
    assert section.data is not None
    assert section.data["sqnr"] == pytest.approx(found.sqnr)
    assert [row["sqnr"] for row in told.layers] == pytest.approx([x.sqnr for x in found.layers])


def test_the_summary_says_how_far_the_deployed_file_is(small_report: Report) -> None:
    section = small_report.section("outputs")
    assert section is not None
    assert section.data is not None
    rows = {(row["model"], row["beside"]): row["sqnr"] for row in section.data["rows"]}
    assert small_report.summary["sqnr"] == rows["deployed", "float"]
    assert rows["deployed", "simulated"] > rows["deployed", "float"] + 20.0
    assert small_report.summary["file_bytes"] < small_report.summary["float_bytes"]


def test_a_target_that_is_not_here_is_named_with_the_reason(small_report: Report) -> None:
    section = small_report.section("coverage")
    assert section is not None
    assert section.data is not None
    targets = {target["target"]: target for target in section.data["targets"]}
    assert targets["onnxruntime"]["why"] == ""
    assert targets["onnxruntime"]["layers"]
    if not targets["tensorrt"]["layers"]:
        assert "install" in targets["tensorrt"]["why"]


def test_targets_that_compile_programs_are_asked_only_by_name() -> None:
    told = report(linear_net(), calibration=small_data(), samples=8,
                  without=[name for name in MEASURED if name != "coverage"])  # fmt: skip
    section = told.section("coverage")
    assert section is not None
    assert section.data is not None
    targets = {target["target"]: target for target in section.data["targets"]}
    assert targets["inductor"]["why"].startswith("Not asked")
    assert "--target inductor" in targets["inductor"]["why"]


def test_a_section_that_fails_says_why_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the disk\nis full")

    monkeypatch.setattr(analysed, "sensitivity", fails)
    others = tuple(name for name in MEASURED if name not in ("sensitivity", "diagnosis"))
    told = report(linear_net(), calibration=small_data(), samples=8, without=others)
    (failed,) = told.failed
    assert (failed.name, failed.why) == ("sensitivity", "RuntimeError: the disk is full")
    made = told.section("diagnosis")
    assert made is not None
    assert made.state is State.MADE
    assert "RuntimeError: the disk is full" in told.to_html()


def test_an_interrupt_is_no_failed_section() -> None:
    def interrupted() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("latency", interrupted)


def test_sections_that_are_not_wanted_are_not_made() -> None:
    told = report(linear_net(), calibration=small_data(), without=MEASURED)
    states = {section.name: section.state for section in told.sections}
    assert {name for name, state in states.items() if state is State.LEFT_OUT} == set(MEASURED)
    assert told.failed == ()


def test_a_section_that_is_not_there_cannot_be_left_out() -> None:
    with pytest.raises(RecipeError, match="no section 'speed' to leave out; there are: outputs"):
        report(linear_net(), calibration=small_data(), without=["speed"])


def test_data_that_can_be_read_once_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"read only once.*pass a list"):
        report(linear_net(), calibration=iter(small_data()))


def test_weights_alone_have_no_histograms_and_say_so() -> None:
    told = report(linear_net(), "int8_weight_only", calibration=small_data(), without=MEASURED)
    section = told.section("histograms")
    assert section is not None
    assert section.state is State.LEFT_OUT
    assert "quantizes no activation" in section.why


def test_an_onnx_file_has_a_report_without_what_needs_pytorch(tmp_path: Path) -> None:
    path = export_float(linear_net(), (small_data()[0],), tmp_path / "net.onnx")
    data = [{"input": batch} for batch in small_data()]
    quick = Method(turns=1, turn_ms=1.0, least_turns=1, seconds=0.1, warm_runs=1, warm_ms=1.0)
    told = report(path, "int8_cpu", calibration=data, targets=["onnxruntime"], samples=8,
                  without=["latency", "profile"], method=quick)  # fmt: skip
    assert told.failed == ()
    states = {section.name: section for section in told.sections}
    for name in ("sensitivity", "diagnosis", "layer_parity"):
        assert states[name].state is State.LEFT_OUT
        assert "give the model that the file was exported from" in states[name].why
    assert "give the model" in states["advice"].why
    assert told.summary["quantized"] == 2
    assert told.summary["sqnr"] > 20.0


def test_the_model_is_as_it_was() -> None:
    net = linear_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report(net, calibration=small_data(), without=MEASURED)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_json_has_all_that_the_page_has(small_report: Report) -> None:
    told = json.loads(small_report.to_json())
    assert told["schema"] == 1
    assert list(told["sections"]) == list(TITLES)
    assert [row["layer"] for row in told["layers"]] == [r["layer"] for r in small_report.layers]
    assert told["findings"] == json.loads(json.dumps(list(small_report.findings)))
    histograms = told["sections"]["histograms"]["data"]["tensors"]
    assert all(len(t["edges"]) == len(t["counts"]) + 1 for t in histograms)


def test_numbers_that_json_has_not_are_null(small_report: Report) -> None:
    odd = replace(small_report, summary={"sqnr": float("inf"), "noise": [float("nan"), 1.0]})
    assert json.loads(odd.to_json())["summary"] == {"sqnr": None, "noise": [None, 1.0]}


def finding(code: str, severity: Severity, where: str = "fc") -> Finding:
    return Finding(severity=severity, code=code, where=where, why="It is.", fix="Do.")


def test_findings_stand_worst_first_and_once_each() -> None:
    one = finding("a", Severity.INFO)
    worst = finding("b", Severity.ERROR)
    found = joined_findings({}, {"plan": [one], "outputs": [worst, one]})
    assert [(f["code"], f["sources"]) for f in found] == [
        ("b", ["outputs"]),
        ("a", ["plan", "outputs"]),
    ]


def test_findings_of_one_rule_at_two_places_are_two() -> None:
    both = [finding("a", Severity.INFO, where) for where in ("conv", "fc")]
    assert len(joined_findings({}, {"plan": both})) == 2


def test_layers_that_were_judged_together_share_the_figure() -> None:
    decisions = [
        {"layer": name, "kind": "matmul", "quantized": True, "why": ""} for name in ("qk", "pv")
    ]
    part = {"layer": "attention", "layers": ["qk", "pv"], "sqnr": 20.0, "weight_bytes": 0}
    rows = joined_layers({"plan": {"decisions": decisions}, "sensitivity": {"parts": [part]}})
    assert [row["sensitivity"] for row in rows] == [20.0, 20.0]


def test_advice_that_helps_is_a_finding_with_its_figure() -> None:
    net = linear_net()
    with torch.no_grad():
        net[0].weight[5] *= 40.0  # one channel is large, and all share a scale
    scheme = {"weights": {"per": "tensor"}, "activations": {"per": "tensor"}}
    recipe = Recipe.model_validate({"name": "mine", "scheme": scheme})
    data = [batch.repeat(2, 1) + 0.01 * torch.randn(16, 32) for batch in small_data() * 2]
    others = tuple(name for name in MEASURED if name != "advice")
    told = report(net, recipe, calibration=data, samples=64, trials=1, without=others)
    assert told.failed == ()
    (found,) = [f for f in told.findings if f["sources"] == ["advice"]]
    assert found["code"] == "per-tensor-weights"
    assert "per: channel" in found["fix"]
    assert "per-tensor-weights" in told.to_html()


def test_a_centered_model_is_diagnosed_before_it_is_shifted() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    batches = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    without = [name for name in MEASURED if name != "diagnosis"]
    found = report(net, "int8_centered", calibration=batches, without=without, targets=())
    section = next(s for s in found.sections if s.name == "diagnosis")
    assert section.state is State.MADE, section
