"""``check`` and ``build``: what they find in a good file and in bad ones."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import quantkit as qk
import small_models
from quantkit.checking import judge
from quantkit.errors import DataError, ModelFileError, RecipeError, TargetError
from quantkit.interfaces import LayerCoverage, Severity
from quantkit.onnx.parity import OutputParity, ParityMeter
from quantkit.targets.onnxruntime import OnnxRuntime


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_models.mlp()


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return [small_models.mlp().inputs(16, seed=seed)[0] for seed in range(4)]


@pytest.fixture(scope="module")
def quantized(net: nn.Module, batches: list[Tensor]) -> qk.QuantizedModel:
    return qk.quantize(net, "int8_ptq", calibration=batches)


@pytest.fixture(scope="module")
def file(quantized: qk.QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "net.onnx"
    return qk.export_onnx(quantized, path, form="onnxruntime")


@pytest.fixture(scope="module")
def float_file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float network as ONNX: a recipe that quantizes none of its layers."""
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    recipe = qk.Recipe.model_validate({"name": "none", "scheme": {}})
    inputs = small_models.mlp().example_inputs
    return qk.export_onnx(qk.quantize(net, recipe, example_inputs=inputs), path)


def codes(report: qk.CheckReport) -> list[str]:
    return [finding.code for finding in report.findings]


# Parity


def test_a_file_puts_out_what_the_simulation_does(
    file: Path, quantized: qk.QuantizedModel, batches: list[Tensor]
) -> None:
    report = qk.check(
        file, "onnxruntime", reference=quantized, data=batches, min_sqnr=60.0, min_agreement=1.0
    )
    (output,) = report.outputs
    assert report.ok, str(report)
    assert report.batches == 4
    assert output.sqnr > 60
    assert output.agreement == 1.0


def test_figures_are_those_of_all_batches_at_once(
    file: Path, net: nn.Module, batches: list[Tensor]
) -> None:
    report = qk.check(file, "onnxruntime", reference=net, data=batches)
    (output,) = report.outputs
    name = onnx.load(file).graph.input[0].name
    every = torch.cat(batches)
    with torch.no_grad():
        want = net(every).double().numpy()
    (got,) = OnnxRuntime(exact=True).run(file, [{name: every.numpy()}])[0]
    noise = np.square(got - want).sum()
    assert output.sqnr == pytest.approx(10 * math.log10(np.square(want).sum() / noise), abs=1e-3)
    assert output.largest == pytest.approx(np.abs(got - want).max(), rel=1e-4)
    assert output.agreement == (got.argmax(1) == want.argmax(1)).mean()
    assert 20 < output.sqnr < 60  # it is quantized, and not wrong


def test_every_kind_of_reference_gives_the_same_figures(
    file: Path, float_file: Path, net: nn.Module, batches: list[Tensor]
) -> None:
    program = torch.export.export(net, (batches[0],))
    kinds: list[nn.Module | torch.export.ExportedProgram | Path] = [net, program, float_file]
    found = [qk.check(file, "onnxruntime", reference=r, data=batches).outputs[0] for r in kinds]
    assert [o.sqnr for o in found] == pytest.approx([found[0].sqnr] * 3, abs=0.01)


def test_the_reference_keeps_its_mode(file: Path, batches: list[Tensor]) -> None:
    net = copy.deepcopy(small_models.mlp()).train()
    net.get_submodule("norm").eval()
    qk.check(file, "onnxruntime", reference=net, data=batches[:1])
    assert net.training
    assert not net.get_submodule("norm").training


def test_batches_are_not_kept(file: Path, net: nn.Module, batches: list[Tensor]) -> None:
    alive: list[int] = []

    def stream() -> Iterable[Tensor]:
        import weakref

        seen: list[weakref.ref[Tensor]] = []
        for batch in batches * 3:
            fresh = batch.clone()
            alive.append(sum(ref() is not None for ref in seen))
            seen.append(weakref.ref(fresh))
            yield fresh
            del fresh

    assert qk.check(file, "onnxruntime", reference=net, data=stream()).batches == 12
    assert max(alive) <= 1


def test_too_much_noise_is_an_error(file: Path, net: nn.Module, batches: list[Tensor]) -> None:
    report = qk.check(file, "onnxruntime", reference=net, data=batches, min_sqnr=80.0)
    assert codes(report) == ["low-sqnr"]
    assert not report.ok
    assert "not ok" in str(report)


def test_other_predictions_are_an_error(
    file: Path, quantized: qk.QuantizedModel, batches: list[Tensor]
) -> None:
    other = copy.deepcopy(small_models.mlp())
    with torch.no_grad():
        other.get_submodule("fc3").weight.neg_()  # type: ignore[operator]
    report = qk.check(file, "onnxruntime", reference=other, data=batches, min_agreement=0.9)
    assert codes(report) == ["low-agreement"]
    assert (report.outputs[0].agreement or 0.0) < 0.5


def test_a_file_whose_weights_are_damaged_is_found_out(
    file: Path, quantized: qk.QuantizedModel, batches: list[Tensor], tmp_path: Path
) -> None:
    model = onnx.load(file)
    weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8
                  and len(t.dims) == 2)  # fmt: skip
    values = numpy_helper.to_array(weight).copy()
    values[0] = 127
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    report = qk.check(
        tmp_path / "damaged.onnx", "onnxruntime", reference=quantized, data=batches, min_sqnr=40.0
    )
    assert codes(report) == ["departs-from-simulation", "low-sqnr"]
    assert report.findings[0].where == "fc1"


def test_an_output_that_is_not_a_number_is_an_error() -> None:
    meter = ParityMeter("y")
    meter.update(np.ones((2, 3)), np.full((2, 3), np.nan), np.ones((2, 3)))
    assert math.isnan(meter.result().sqnr)
    assert [f.code for f in judge(meter.result())] == ["output-not-finite"]


def test_the_infinities_of_a_mask_are_equal() -> None:
    meter = ParityMeter("y")
    masked = np.array([[1.0, -np.inf]])
    meter.update(masked, masked, masked)
    assert meter.result().sqnr == math.inf
    assert meter.result().default_mode == 0.0


def test_sums_that_saturate_are_told() -> None:
    meter = ParityMeter("y")
    exact = np.array([[10.0, 2.0]])
    meter.update(exact, exact, exact - [[1.0, 0.0]])
    (finding,) = judge(meter.result())
    assert finding.code == "default-mode-differs"
    assert finding.severity is Severity.WARNING
    assert "10.0%" in finding.why


def test_an_output_without_scores_has_no_agreement() -> None:
    output = OutputParity(
        name="y", sqnr=50.0, cosine=1.0, largest=0.1, agreement=None, default_mode=0.0
    )
    assert [f.code for f in judge(output, None, 0.9)] == ["no-agreement"]


def test_a_file_far_from_the_quantized_model_it_should_repeat_is_an_error(
    file: Path, quantized: qk.QuantizedModel, batches: list[Tensor]
) -> None:
    assert qk.check(file, "onnxruntime", reference=quantized, data=batches).ok
    other = copy.deepcopy(quantized)
    with torch.no_grad():
        next(p for name, p in other.named_parameters() if name.endswith("fc3.weight")).neg_()
    report = qk.check(file, "onnxruntime", reference=other, data=batches)
    begins, finding = report.findings
    assert (finding.code, finding.severity) == ("deployment-differs", Severity.ERROR)
    assert (begins.code, begins.where) == ("departs-from-simulation", "fc3")
    assert f"SQNR {report.outputs[0].sqnr:.1f} dB" in finding.why
    assert not report.ok
    # A least SQNR of the user's own takes its place, also a lower one.
    assert qk.check(
        file, "onnxruntime", reference=other, data=batches, min_sqnr=-99.0, layer_samples=0
    ).ok


def test_a_float_reference_has_no_floor(file: Path, batches: list[Tensor]) -> None:
    other = copy.deepcopy(small_models.mlp())
    with torch.no_grad():
        other.get_submodule("fc3").weight.neg_()  # type: ignore[operator]
    assert qk.check(file, "onnxruntime", reference=other, data=batches).ok


# Coverage and findings


@pytest.mark.parametrize(("recipe", "told"), [("int8_ptq", True), ("int8_cpu", False)])
def test_a_convolution_network_for_tensorrt_is_told_once_to_use_int8_cpu(
    recipe: str, told: bool, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.SiLU(), nn.Conv2d(32, 32, 3), nn.SiLU()).eval()
    qmodel = qk.quantize(net, recipe, calibration=[torch.randn(4, 3, 12, 12)])
    report = qk.check(qk.export_onnx(qmodel, tmp_path / "net.onnx"), "onnxruntime")
    found = [finding for finding in report.findings if finding.code == "none-in-int8"]
    assert [finding.fix for finding in found] == [
        "Quantize with --recipe int8_cpu for ONNX Runtime."
    ] * told
    assert bool(report.coverage.covered) is not told
    assert report.coverage.planned


def test_layers_left_in_float_tell_the_plans_reason(net: nn.Module, tmp_path: Path) -> None:
    recipe = qk.Recipe.model_validate(
        {
            "name": "mine",
            "scheme": {"weights": {"per": "channel"}, "activations": {}},
            "overrides": [{"module": "fc2", "scheme": None}, {"module": "nosuch", "scheme": None}],
        }
    )
    batches = [small_models.mlp().inputs(8)[0]]
    qmodel = qk.quantize(net, recipe, calibration=batches)
    path = qk.export_onnx(qmodel, tmp_path / "net.onnx", form="onnxruntime")
    report = qk.check(path, "onnxruntime")
    layers = {layer.node: layer for layer in report.layers}
    assert not layers["fc2"].quantized
    assert layers["fc2"].reason == qmodel.plan.decision("fc2").reason
    assert layers["fc1"].reason == ""
    assert "unused-override" in codes(report)
    assert report.recipe == "mine"


def test_findings_begin_with_the_worst(file: Path, net: nn.Module, tmp_path: Path) -> None:
    qmodel = qk.quantize(net, "int8_asymmetric", calibration=[small_models.mlp().inputs(8)[0]])
    path = qk.export_onnx(qmodel, tmp_path / "net.onnx")
    pytest.importorskip("tensorrt_rtx")
    report = qk.check(path, "tensorrt_rtx")
    order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
    ranks = [order.index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)
    assert not report.ok
    assert "nonzero-zero-point" in codes(report)
    assert len({(f.code, f.where) for f in report.findings}) == len(report.findings)


def test_tensorrt_runs_in_int8_what_the_file_quantizes(
    quantized: qk.QuantizedModel, batches: list[Tensor], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = qk.export_onnx(quantized, tmp_path / "net.onnx")
    report = qk.check(path, reference=quantized, data=batches, min_sqnr=60.0)
    assert report.ok, str(report)
    assert report.target == "tensorrt_rtx (SM86)"
    assert [layer.precision for layer in report.layers] == ["int8"] * 3


def test_weight_only_layers_count_as_quantized(net: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    qmodel = qk.quantize(net, "int8_weight_only", example_inputs=small_models.mlp().example_inputs)
    report = qk.check(qk.export_onnx(qmodel, tmp_path / "net.onnx"))
    assert (report.coverage.planned, report.coverage.covered) == (3, 3)


def test_a_file_that_onnx_runtime_does_not_load_is_a_finding(
    file: Path, net: nn.Module, batches: list[Tensor], tmp_path: Path
) -> None:
    model = onnx.load(file)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    report = qk.check(tmp_path / "odd.onnx", "onnxruntime", reference=net, data=batches)
    assert "parity-not-run" in codes(report)
    assert not report.ok


def test_the_report_is_json_without_infinities(
    file: Path, quantized: qk.QuantizedModel, batches: list[Tensor]
) -> None:
    report = qk.check(file, "onnxruntime", reference=file, data=batches)
    assert report.outputs[0].sqnr == math.inf
    told = json.loads(report.to_json(), parse_constant=lambda text: pytest.fail(text))
    assert told["ok"] is True
    assert told["outputs"][0]["sqnr"] is None
    assert [layer["node"] for layer in told["layers"]] == [x.node for x in report.layers]
    assert isinstance(report.layers[0], LayerCoverage)


# What is refused


def test_thresholds_without_a_comparison_are_refused(file: Path) -> None:
    with pytest.raises(DataError, match="give reference and data"):
        qk.check(file, "onnxruntime", min_sqnr=30.0)


def test_a_reference_without_data_is_refused(file: Path, net: nn.Module) -> None:
    with pytest.raises(DataError, match="data is missing"):
        qk.check(file, "onnxruntime", reference=net)


def test_percents_for_shares_are_refused(file: Path, net: nn.Module, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match=r"write 0\.99"):
        qk.check(file, "onnxruntime", reference=net, data=batches, min_agreement=99.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batch"),
        ([torch.full((2, 32), math.nan)], "NaN"),
        ([torch.zeros(2, 31)], r"reference model fails on x float32 \(2, 31\)"),
        ([torch.zeros(2, 32).half()], r"reference model fails on x float16 \(2, 32\)"),
        ([{"y": torch.zeros(2, 32)}], "reference model fails"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    data: list[object], message: str, file: Path, net: nn.Module
) -> None:
    with pytest.raises(DataError, match=message):
        qk.check(file, "onnxruntime", reference=net, data=data)


def test_data_with_other_names_than_the_files_are_refused(
    file: Path, batches: list[Tensor]
) -> None:
    class Renamed(nn.Module):
        def forward(self, other: Tensor) -> Tensor:
            return other

    with pytest.raises(DataError, match="the file takes x; name them alike"):
        qk.check(file, "onnxruntime", reference=Renamed(), data=[{"other": batches[0]}])


def test_another_models_reference_is_refused(file: Path, batches: list[Tensor]) -> None:
    with pytest.raises(DataError, match=r"the reference has shape \(16, 32\)"):
        qk.check(file, "onnxruntime", reference=nn.Identity(), data=batches)
    with pytest.raises(DataError, match="puts out 2 tensors, the file 1"):
        qk.check(file, "onnxruntime", reference=Twice(), data=batches)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"(?i)no such file"):
        qk.check(tmp_path / "absent.onnx", "onnxruntime")


def test_an_unknown_target_is_refused(file: Path) -> None:
    with pytest.raises(RecipeError, match="no target 'tensorrt_rxt'"):
        qk.check(file, "tensorrt_rxt")


# build


def test_build_writes_what_the_target_runs(file: Path, tmp_path: Path) -> None:
    built = qk.build(file, tmp_path / "net.ort.onnx", "onnxruntime")
    assert built.planned == built.covered == 3
    assert (tmp_path / "net.ort.onnx").stat().st_size > 0


def test_build_leaves_a_good_file_where_the_new_one_is_refused(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(file)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    good = tmp_path / "net.engine"
    good.write_bytes(b"the good file")
    with pytest.raises(TargetError, match="cannot build"):
        qk.build(tmp_path / "odd.onnx", good)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".onnx"] == ["net.engine"]
    assert good.read_bytes() == b"the good file"
