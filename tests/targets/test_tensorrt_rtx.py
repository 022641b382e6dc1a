"""TensorRT-RTX: what its real builder makes of small Q/DQ networks, on any machine."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
import qdq_models as nets
from qdq_models import save

from quantkit.errors import ModelFileError
from quantkit.interfaces import Inspection, LayerCoverage, Severity
from quantkit.targets._shapes import default_profile
from quantkit.targets.tensorrt_rtx import TensorRTRTX

needs_sdk = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Inspection]:
    """Inspects a network, once for all tests."""
    folder = tmp_path_factory.mktemp("rtx")

    @cache
    def inspect(net: Callable[[], onnx.ModelProto], capability: str = "8.6") -> Inspection:
        return TensorRTRTX(compute_capability=capability).inspect(save(net(), folder))

    return inspect


def by_name(inspection: Inspection) -> dict[str, LayerCoverage]:
    return {layer.node: layer for layer in inspection.layers}


# What runs in low precision


@needs_sdk
@pytest.mark.parametrize(
    "net",
    [
        nets.conv_relu_conv,
        nets.conv_relu_conv_any_batch,
        nets.residual,
        nets.matmul,
        nets.attention,
        nets.behind_maxpool,
    ],
)
def test_quantized_layers_run_in_int8(
    inspected: Callable[..., Inspection], net: Callable[[], onnx.ModelProto]
) -> None:
    report = inspected(net)

    assert report.findings == ()
    assert {layer.precision for layer in report.layers} == {"int8"}
    assert report.covered == report.planned == len(report.layers)
    assert report.target == "tensorrt_rtx (SM86)"
    assert report.seconds > 0


@needs_sdk
def test_layers_come_in_graph_order_with_the_kernel_that_covers_them(
    inspected: Callable[..., Inspection],
) -> None:
    report = inspected(nets.attention)

    names = [layer.node for layer in report.layers]
    assert names == ["project_q", "project_k", "project_v", "qk", "pv", "out"]
    layers = by_name(report)
    assert layers["qk"].kernel == layers["pv"].kernel  # fused attention
    assert "mha" in layers["qk"].kernel
    assert layers["out"].kernel.startswith("out")


@needs_sdk
def test_a_float_model_has_no_coverage_and_keeps_the_stated_reason(
    inspected: Callable[..., Inspection],
) -> None:
    report = inspected(nets.float_net)

    assert report.ok
    assert report.planned == 0
    layers = by_name(report)
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert layers["conv1"].reason == "fewer than 16 channels"
    assert layers["conv2"].reason == "not quantized in the file"


@needs_sdk
@pytest.mark.parametrize(
    ("net", "expected"), [(nets.weight_only, "int8 weights"), (nets.int4_groups, "int4 weights")]
)
def test_weight_only_products_dequantize_inside_the_kernel(
    inspected: Callable[..., Inspection], net: Callable[[], onnx.ModelProto], expected: str
) -> None:
    report = inspected(net)

    assert report.findings == ()
    (layer,) = report.layers
    assert (layer.quantized, layer.precision, layer.reason) == (True, expected, "")
    assert report.covered == 1


@needs_sdk
@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nets.transposed_conv, "ConvTranspose in float only"),
        (nets.float_weight, "its weight is float"),
        (nets.wrong_axis, "along axis 1"),
        (nets.channel_activations, "scale per channel of an activation"),
        (nets.weight_only_conv, "only its weight is quantized"),
        (nets.int4_per_channel, "int4 weights with a scale per channel"),
        (nets.behind_resize, "Resize between stands between"),
        (nets.behind_average_pool, "AveragePool between stands between"),
        (nets.uneven_concat, "Concat join joins tensors"),
    ],
)
def test_layers_that_quietly_run_in_float_are_told_with_a_reason(
    inspected: Callable[..., Inspection], net: Callable[[], onnx.ModelProto], reason: str
) -> None:
    report = inspected(net)

    (layer,) = report.layers
    assert layer.quantized
    assert layer.precision == "float32"
    assert reason in layer.reason
    assert (report.planned, report.covered) == (1, 0)
    (finding,) = report.findings
    assert (finding.severity, finding.code) == (Severity.WARNING, "runs-in-float")
    assert finding.where == layer.node
    assert reason in finding.why
    assert report.ok


@needs_sdk
def test_convolutions_fall_to_float_on_turing(inspected: Callable[..., Inspection]) -> None:
    report = inspected(nets.conv_relu_conv, "SM75")

    assert report.covered == 0
    assert "SM75" in report.layers[0].reason


# What is refused


@needs_sdk
@pytest.mark.parametrize(
    ("net", "code", "where", "why"),
    [
        (nets.zero_scale, "nonpositive-scale", "dx_q", "must all be positive"),
        (nets.uint8_weight, "unsupported-integer", "w", "UINT8"),
        (nets.uint8_activation, "uint8-zero-point", "dx_q", "imports the grid as int8"),
        (nets.int32_bias, "quantized-bias", "bias", "Int32"),
        (nets.custom_operator, "custom-operator", "mystery", "Plugin not found"),
        (nets.computed_scale, "computed-scale", "conv", "SIGSEGV"),
        (
            nets.int4_groups_with_int8_activations,
            "group-weights-with-activations",
            "matmul",
            "group",
        ),
    ],
)
def test_what_the_builder_refuses_is_an_error_at_its_node(
    inspected: Callable[..., Inspection],
    net: Callable[[], onnx.ModelProto],
    code: str,
    where: str,
    why: str,
) -> None:
    report = inspected(net)

    assert not report.ok
    (finding,) = report.findings
    assert (finding.severity, finding.code, finding.where) == (Severity.ERROR, code, where)
    assert why in finding.why
    assert "\n" not in str(finding)
    assert finding.fix.endswith(".")


@needs_sdk
def test_every_node_with_a_zero_point_is_reported_at_once(
    inspected: Callable[..., Inspection],
) -> None:
    report = inspected(nets.shifted_zero)

    assert {f.code for f in report.findings} == {"nonzero-zero-point"}
    assert [f.where for f in report.findings] == ["d1_q", "d2_q"]
    assert report.findings[0].why == "Non-zero zero point is not supported."
    assert {layer.precision for layer in report.layers} == {"none"}


@needs_sdk
def test_every_unknown_operator_is_reported_at_once(tmp_path: Path) -> None:
    model = nets.custom_operator()
    again = model.graph.node.add()
    again.CopyFrom(model.graph.node[0])
    again.name, again.output[0] = "riddle", "riddle"

    report = TensorRTRTX().inspect(save(model, tmp_path))

    assert {f.where for f in report.findings} == {"mystery", "riddle"}


@needs_sdk
def test_ampere_refuses_fp8_in_the_builders_own_words_and_ada_runs_it(
    inspected: Callable[..., Inspection],
) -> None:
    (finding,) = inspected(nets.fp8, "8.6").findings
    assert finding.code == "hardware-format"
    assert "sm86" in finding.why
    assert "HW-specific datatypes: fp8_e4m3" in finding.why

    ada = inspected(nets.fp8, "8.9")
    assert ada.ok
    assert ada.layers[0].precision == "fp8"


@needs_sdk
def test_a_build_that_takes_too_long_is_stopped_and_told(tmp_path: Path) -> None:
    report = TensorRTRTX(timeout_s=0.001).inspect(save(nets.residual(), tmp_path))

    (finding,) = report.findings
    assert finding.code == "builder-timeout"
    assert "0.001 s" in finding.why


@needs_sdk
def test_a_file_that_is_no_model_is_a_finding_and_a_missing_one_an_error(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff not a model")
    (finding,) = TensorRTRTX().inspect(garbage).findings
    assert finding.code == "unreadable-model"

    with pytest.raises(ModelFileError, match=r"no ONNX file .*absent\.onnx"):
        TensorRTRTX().inspect(tmp_path / "absent.onnx")


# Files of many kinds


@needs_sdk
def test_nameless_and_equally_named_nodes_are_told_apart(tmp_path: Path) -> None:
    model = nets.conv_relu_conv()
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Conv" else ""

    report = TensorRTRTX().inspect(save(model, tmp_path))

    assert [layer.precision for layer in report.layers] == ["int8", "int8"]
    assert len({layer.node for layer in report.layers}) == 2
    assert len({layer.kernel for layer in report.layers}) == 2


@needs_sdk
@pytest.mark.parametrize("named", [True, False])
def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path, named: bool) -> None:
    model = nets.conv_relu_conv()
    if not named:
        model.graph.node[0].name = ""
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=64)
    assert (tmp_path / "weights").is_file()

    assert TensorRTRTX().inspect(path).covered == 2


@needs_sdk
def test_shapes_set_the_profile_and_a_wrong_name_is_a_finding(tmp_path: Path) -> None:
    path = save(nets.conv_relu_conv("batch"), tmp_path)
    sizes = ((1, 8, 16, 16), (2, 8, 16, 16), (4, 8, 16, 16))
    assert TensorRTRTX(shapes={"x": sizes}).inspect(path).covered == 2

    (finding,) = TensorRTRTX(shapes={"y": sizes}).inspect(path).findings
    assert finding.code == "missing-profile"
    assert "shapes names y, but the inputs of the model are x" in finding.why


def test_default_sizes_follow_the_rank_of_the_input() -> None:
    assert default_profile([-1, -1]) == ((1, 1), (8, 128), (32, 512))
    assert default_profile([-1, 3, -1, -1])[1] == (8, 3, 224, 224)
    assert default_profile([4, 5]) == ((4, 5),) * 3
