"""Engines: kernels as steps, layers' times as the SDK's profiler tells them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt_runtime as runtime
import pytest
import torch

from quantkit.errors import DataError, ModelFileError, TargetError
from quantkit.profiling import engines
from quantkit.profiling.engine_steps import engine_steps, layers_of
from quantkit.profiling.findings import findings
from quantkit.profiling.profile import profile
from quantkit.profiling.steps import StepKind
from quantkit.targets._engine_layers import Kernel, TensorInfo
from quantkit.targets._tensorrt_layers import parse_information


def tensor(name: str, *sizes: int, kind: str = "int8") -> TensorInfo:
    return TensorInfo(name=name, dimensions=tuple(map(str, sizes)), format=kind)


def conv(name: str, read: TensorInfo, made: str, *, kind: str = "int8", groups: int = 1) -> Kernel:
    width = int(read.dimensions[1])
    return Kernel(
        name=f"{name}_myl0_1", layer_type="correlation", inputs=(read,),
        constants=(tensor("w", 24, width // groups, 3, 3, kind=kind),),
        outputs=(tensor(made, 1, 24, 8, 8, kind=kind),), nodes=("x/QuantizeLinear", name),
    )  # fmt: skip


OPS = {
    "x/QuantizeLinear": "QuantizeLinear", "a": "Conv", "b": "Conv", "c": "Conv", "add": "Add",
    "dq": "DequantizeLinear",
}  # fmt: skip


def test_a_kernel_is_of_the_layer_whose_product_it_computes() -> None:
    add = Kernel(
        name="__myl_Add", layer_type="kgen", inputs=(tensor("y", 1, 24, 8, 8),), constants=(),
        outputs=(tensor("z", 1, 24, 8, 8),), nodes=("dq", "add"),
    )  # fmt: skip
    moved = Kernel(
        name="Reformatting CopyNode for Input Tensor 0 to a", layer_type="Reformat",
        inputs=(), constants=(), outputs=(), nodes=(),
    )  # fmt: skip
    steps = engine_steps([moved, conv("a", tensor("x", 1, 32, 8, 8), "y"), add], OPS)
    assert [step.kind for step in steps] == [StepKind.REFORMAT, StepKind.PRODUCT, StepKind.JOIN]
    assert [step.layer for step in steps] == ["", "a", "add"]
    assert steps[1].channels == (32, 24)
    assert [layer.seconds for layer in layers_of(steps)] == [None, None]


def test_the_channels_of_a_depthwise_convolution_are_those_of_one_group() -> None:
    (step,) = engine_steps([conv("a", tensor("x", 1, 24, 8, 8), "y", groups=24)], OPS)
    assert step.channels == (1, 1)


def test_an_engine_that_cannot_run_still_tells_its_float_island_and_odd_channels() -> None:
    kernels = [
        conv("a", tensor("x", 1, 32, 8, 8), "y"),
        conv("b", tensor("y", 1, 24, 8, 8, kind="float32"), "z", kind="float32"),
        conv("c", tensor("z", 1, 24, 8, 8), "out"),
    ]
    found = findings("cuda", (), None, engine_steps(kernels, OPS))
    assert [(f.code, f.where) for f in found] == [
        ("float-island", "b"), ("odd-channels", "a"), ("odd-channels", "c"),
    ]  # fmt: skip
    kernels[1] = conv("b", tensor("y", 1, 24, 8, 8), "z")
    fixed = findings("cuda", (), None, engine_steps(kernels, OPS))
    assert "float-island" not in [f.code for f in fixed]


def test_what_the_inspector_tells_becomes_layers_with_shares_of_the_profilers_times() -> None:
    text = (
        '{"Layers": [{"Name": "a + relu", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x",'
        ' "Dimensions": [1, 32, 8, 8], "Format/Datatype": "Row major Int8 format"}], "Outputs":'
        ' [{"Name": "y", "Dimensions": [1, 8, 8, 8], "Format/Datatype": "Half"}], "TacticName":'
        ' "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32"},'
        ' {"Name": "b", "LayerType": "CaskConvolution", "Inputs": [{"Name": "y", "Dimensions":'
        ' [1, 8, 8, 8], "Format/Datatype": "Half"}], "Outputs": []}]}'
    )
    steps = engine_steps(parse_information(text), OPS, {"a + relu": 0.003, "b": 0.001})
    layers = layers_of(steps)
    assert [(x.name, x.precision, x.share) for x in layers] == [
        ("a", "int8", 0.75),
        ("b", "float16", 0.25),
    ]


class Runner:
    """As an EngineRunner: contexts that it makes tell their profiler each layer of each run."""

    def __init__(self) -> None:
        self.profiler: Any = None
        self.context: Any = None
        self.runs = 0

    def __call__(self, batch: Any) -> None:
        self.context = self.context or SimpleNamespace(profiler=self.profiler)
        self.runs += 1
        if self.context.profiler is not None:
            for name, ms in (("a", 2.0 * self.runs), ("b", 1.0)):
                self.context.profiler.report_layer_time(name, ms)

    def close(self) -> None:
        self.context = None


class IProfiler:
    """The SDK's base."""


def test_layer_times_are_medians_and_leave_the_runner_without_a_profiler() -> None:
    runner = Runner()
    runner({})  # its context has no profiler: another must be made
    found = engines.layer_times(runner, SimpleNamespace(IProfiler=IProfiler), {}, 3)  # type: ignore[arg-type]
    assert found == {"a": pytest.approx(0.008), "b": pytest.approx(0.001)}
    assert runner.profiler is None
    assert runner.context is None


def test_the_contexts_of_a_runner_get_its_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantkit.targets._engine_run import EngineRunner

    class Lane:
        device = torch.device("cpu")
        handle = 0

        def __getattr__(self, name: str) -> Any:
            from contextlib import nullcontext

            return (lambda: nullcontext()) if name == "entered" else (lambda *_: None)

    trt = SimpleNamespace(
        Logger=SimpleNamespace(ERROR=1), Runtime=runtime.Runtime, TensorIOMode=runtime.TensorIOMode,
        TensorLocation=runtime.TensorLocation,
    )  # fmt: skip
    trt.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    monkeypatch.setattr(runtime.Runtime, "loaded", [], raising=False)
    engine = runtime.engine(("x", "INPUT", "FLOAT"), ("y", "OUTPUT", "FLOAT"), host="", unknown="")
    runner = EngineRunner(trt, engine, "some.engine", lane=Lane())  # type: ignore[arg-type]
    mark = object()
    runner.profiler = mark
    runner({"x": torch.ones(2, 2)})
    (loaded,) = runtime.Runtime.loaded
    assert [context.profiler for context in loaded.contexts] == [mark]  # type: ignore[attr-defined]


def test_tensorrt_without_a_gpu_is_refused_with_the_way_out(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(TargetError, match="use the target tensorrt_rtx"):
        engines.record(tmp_path / "m.onnx", "tensorrt", {}, runs=1)


def test_an_engine_file_needs_a_gpu_and_the_error_says_what_does_not(tmp_path: Path) -> None:
    from quantkit import hardware

    if hardware.detect_gpus().devices:
        pytest.skip("there is a GPU: the engine would be opened")
    (tmp_path / "net.engine").write_bytes(b"engine")
    with pytest.raises(TargetError, match=r"net\.engine: an engine runs on the GPU.*tensorrt_rtx"):
        profile(tmp_path / "net.engine", example_inputs=(torch.zeros(1, 3),))


@pytest.mark.parametrize(
    ("name", "target", "inputs", "error", "words"),
    [
        ("lost.engine", None, (torch.zeros(1),), ModelFileError, "no such file"),
        ("net.plan", "onnxruntime", (torch.zeros(1),), TargetError, "an engine is TensorRT's"),
        ("net.plan", None, (), DataError, "give data"),
    ],
)
def test_what_no_engine_file_can_do_is_refused(
    name: str, target: str | None, inputs: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    (tmp_path / "net.plan").write_bytes(b"engine")
    with pytest.raises(error, match=words):
        profile(tmp_path / name, target=target, example_inputs=inputs)
