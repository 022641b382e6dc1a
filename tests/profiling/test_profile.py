"""``profile`` on small real models: PyTorch, ONNX Runtime, TensorRT-RTX without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from quantkit import quantize
from quantkit.benching.runners._torch import no_compiler
from quantkit.errors import DataError, TargetError
from quantkit.graph.abstract import Graph, Kind, Op, Value
from quantkit.onnx.export import export_onnx
from quantkit.profiling.composing import Counted, composed
from quantkit.profiling.engine_steps import layers_of
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.profile import profile, read_recording
from quantkit.profiling.report import ProfileReport
from quantkit.profiling.roofline import Roof
from quantkit.profiling.steps import Step, StepKind
from quantkit.profiling.work import Size
from quantkit.program.writing import export_pt2


class Net(nn.Module):
    """Two convolutions, an add and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        out: torch.Tensor = self.last(x.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INT8 for a processor and for TensorRT."""
    folder = tmp_path_factory.mktemp("profile")
    torch.manual_seed(0)
    net = Net().eval()
    for recipe, form in (("int8_cpu", "onnxruntime"), ("int8_ptq", "tensorrt")):
        made = quantize(net, recipe, calibration=[images], example_inputs=(images,))
        export_onnx(made, folder / f"{form}.onnx", form=form)  # type: ignore[arg-type]
    return folder


def test_a_model_of_pytorch_is_told_by_the_layers_of_its_graph(images: torch.Tensor) -> None:
    before = torch.get_num_threads()
    report = profile(Net().eval(), example_inputs=(images,), runs=3)
    names = [layer.name for layer in report.layers]
    assert names == ["first", "relu", "second", "add", "relu_1", "mean", "last"]
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert report.batch == 2
    assert report.totals is not None
    assert report.totals.runs == 3
    assert report.totals.wall_s is not None
    assert 0.0 < report.totals.busy_share <= 1.0
    assert sum(kernel.share for kernel in report.kernels) == pytest.approx(1.0)
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_onnx_runtime_is_told_by_the_layers_of_the_file(images: torch.Tensor, files: Path) -> None:
    trace = files / "trace.json"
    report = profile(files / "onnxruntime.onnx", batch=2, runs=3, trace=trace)
    layers = {layer.name: layer for layer in report.layers}
    for name in ("first", "second", "last"):
        assert layers[name].precision == "int8", name
    assert layers["first"].op == "QLinearConv"
    kinds = {step.layer: step.kind for step in report.steps}
    assert kinds["second"] is StepKind.PRODUCT
    assert next(s for s in report.steps if s.layer == "second").channels == (16, 16)
    assert {f.code for f in report.findings} & {"float-island", "runs-in-float"} == set()
    again = read_recording(trace)
    assert {"first_token_1", "first"} & {k.layer for k in again.kernels}


def test_a_file_in_the_form_of_another_runtime_is_told_to_run_in_float(files: Path) -> None:
    report = profile(files / "tensorrt.onnx", runs=3)
    (found,) = [f for f in report.findings if f.code == "runs-in-float"]
    assert "first" in found.where
    assert "--recipe int8_cpu" in found.fix


def test_a_float_file_of_blocked_convolutions_keeps_its_layers(images: torch.Tensor) -> None:
    report = profile(Net().eval(), target="onnxruntime", example_inputs=(images,), runs=3)
    convolutions = [layer for layer in report.layers if layer.op == "Conv"]
    assert len(convolutions) == 2
    assert [s.channels for s in report.steps if s.op == "Conv"] == [(3, 16), (16, 16)]


def test_a_product_that_takes_in_an_activation_keeps_its_layer() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    example = (torch.zeros(2, 32),)
    report = profile(net.eval(), target="onnxruntime", example_inputs=example, runs=3)
    layers = [(layer.name, layer.op) for layer in report.layers]
    assert layers == [("node_linear", "FusedGemm"), ("node_linear_1", "Gemm")]


@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
def test_a_trace_is_left_whole_and_compressed_where_its_name_says_so(
    target: str, tmp_path: Path
) -> None:
    net, trace = torch.nn.Linear(8, 8).eval(), tmp_path / "trace.json.gz"
    profile(net, target=target, example_inputs=(torch.zeros(2, 8),), runs=2, trace=trace)
    assert trace.read_bytes()[:2] == b"\x1f\x8b"
    assert read_recording(trace).kernels
    assert list(tmp_path.iterdir()) == [trace]


def test_each_layer_lies_under_the_roof_with_its_own_time(files: Path) -> None:
    roof = Roof(
        name="a", peaks={Dtype.FP32: 1e12, Dtype.INT8: 4e12}, bandwidth=1e11, source="table"
    )
    report = profile(files / "onnxruntime.onnx", runs=3, roof=roof, memory=True)
    assert report.roofline is not None
    points = {point.name: point for point in report.roofline.points}
    times = {layer.name: layer.seconds for layer in report.layers}
    assert points["second"].dtype is Dtype.INT8
    assert points["second"].seconds == times["second"]
    assert report.memory is not None
    told = json.loads(report.to_json())
    assert told["roofline"]["roof"]["name"] == "a"
    assert told["memory"]["plans"][0]["variant"] == "float"


def test_a_layer_with_few_bits_in_its_weights_alone_multiplies_in_float() -> None:
    op = Op(name="fc", kind=Kind.LINEAR, inputs=("x", "w"), output="y", weight_axis=0)
    values = {name: Value(name=name, constant=name == "w") for name in "xwy"}
    model = Counted(
        graph=Graph((op,), values, ("y",)), batch=2,
        sizes={"x": Size((2, 8)), "w": Size((4, 8)), "y": Size((2, 4))},
    )  # fmt: skip
    step = Step(name="k", layer="fc", op="gemm", kind=StepKind.PRODUCT, precision="int8 weights")
    report = ProfileReport(
        subject="a", runtime="b", device="c", batch=2, kernels=(), layers=layers_of([step]),
        totals=None, steps=(step,),
    )  # fmt: skip
    roof = Roof(
        name="a", peaks={Dtype.FP32: 1e12, Dtype.INT8: 4e12}, bandwidth=1e11, source="table"
    )
    found = composed(report, model, roof=roof, with_memory=False).roofline
    assert found is not None
    (point,) = found.points
    assert point.dtype is Dtype.FP32
    assert point.bytes == 4 * (16 + 8) + 32


def test_what_an_engine_cannot_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="profile the ONNX file"):
        profile(tmp_path / "net.engine", memory=True)


def test_an_engine_without_a_gpu_is_listed_without_times(files: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: it would run")
    report = profile(files / "tensorrt.onnx", target="tensorrt_rtx")
    assert report.totals is None
    assert report.kernels == ()
    assert {layer.seconds for layer in report.layers} == {None}
    precisions = {layer.name: layer.precision for layer in report.layers}
    assert precisions["first"] == precisions["second"] == "int8"
    assert report.notes[0].startswith("There is no GPU here")
    assert json.loads(report.to_json())["totals"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "no_such"}, "there are: eager, inductor"),
        ({"target": "eager"}, r"reads \.pt2 files"),
        ({"device": "cuda"}, "when work was queued"),
        ({"runs": 0}, "1 run or more"),
        ({"batch": -1}, "a batch has 1 sample or more"),
    ],
)
def test_what_cannot_be_is_refused_on_one_line(
    files: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises((TargetError, DataError), match=message) as caught:
        profile(files / "onnxruntime.onnx", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_inductor_is_told_by_its_kernels_and_says_that_it_cannot_tell_layers(
    images: torch.Tensor, tmp_path: Path
) -> None:
    if no_compiler() is not None:
        pytest.skip("there is no C++ compiler")
    made = quantize(Net().eval(), "int8_cpu", calibration=[images], example_inputs=(images,))
    program = tmp_path / "net.pt2"
    export_pt2(made, program)
    report = profile(program, runs=3)
    kernels = {kernel.name: kernel for kernel in report.kernels}
    assert kernels["onednn::qconv_pointwise"].dtype == "int8"
    assert any("cpp_fused" in name for name in kernels)
    assert report.layers == ()
    assert "do not tell which" in report.notes[0]
