"""What a GPU lacks of a recipe or a file, before any work and before an SDK is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import qdq_models as nets
from onnx import TensorProto

from quantkit import hardware
from quantkit.building import build
from quantkit.errors import ModelFileError, TargetError
from quantkit.hardware import Device, Format, Gpu, Gpus, Runtime, refusals
from quantkit.onnx.formats import formats_of
from quantkit.spec import QuantSpec, Scheme
from quantkit.targets import tensorrt_rtx
from quantkit.targets.tensorrt_rtx import TensorRTRTX

INT8 = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec())
FP8 = Scheme(
    weights=QuantSpec(dtype="fp8_e4m3"), activations=QuantSpec(dtype="fp8_e4m3")
)  # fmt: skip


def told(scheme: Scheme, gpu: str, runtime: Runtime) -> list[str]:
    found = refusals([scheme], Gpu.of(gpu), runtime)
    return [f"{f.severity} {f.code} {f.where}" for f in found]


def test_a_format_that_the_chip_lacks_is_an_error_of_both_sides() -> None:
    assert told(FP8, "A40", Runtime.TENSORRT_11) == [
        "error fp8-hardware weights",
        "error fp8-hardware activations",
    ]
    assert told(FP8, "L4", Runtime.TENSORRT_11) == []


def test_the_finding_names_the_gpu_what_it_needs_and_what_to_use() -> None:
    first = refusals([FP8], Gpu.of("A40"), Runtime.TENSORRT_11)[0]
    assert first.why == (
        "GPUs of compute capability 8.6 (A40) have no fp8: it needs 8.9 (Ada) or later."
    )
    assert first.fix == "Set dtype to int8, or use the recipe int8_ptq."


@pytest.mark.parametrize(
    ("gpu", "runtime", "expected"),
    [
        ("T4", Runtime.TENSORRT_11, []),
        ("T4", Runtime.TENSORRT_RTX, ["warning int8-in-part weights"]),
        ("A40", Runtime.ONNXRUNTIME_CUDA, ["warning int8-emulated weights",
                                           "warning int8-emulated activations"]),
        ("H100", Runtime.TENSORRT_RTX, ["error int8-hardware weights",
                                        "error int8-hardware activations"]),
        ("13.0", Runtime.TENSORRT_11, []),
    ],
)  # fmt: skip
def test_int8_is_judged_by_the_runtime(gpu: str, runtime: Runtime, expected: list[str]) -> None:
    assert told(INT8, gpu, runtime) == expected


def test_a_runtime_that_does_not_build_for_a_gpu_names_one_that_does() -> None:
    first = refusals([INT8], Gpu.of("H100"), Runtime.TENSORRT_RTX)[0]
    assert "builds for 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1" in first.why
    assert first.fix == "Use TensorRT (the target tensorrt)."


def test_the_installed_tensorrt_decides_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    versions = {"tensorrt": "10.4.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])
    assert hardware.runtime_of("tensorrt") is Runtime.TENSORRT_10
    versions["tensorrt"] = "11.4.0"
    assert hardware.runtime_of("tensorrt") is Runtime.TENSORRT_11


# Files


def save(model: onnx.ModelProto, folder: Path) -> Path:
    return nets.save(model, folder)


@pytest.mark.parametrize(
    ("net", "formats"),
    [
        (nets.float_net, {}),
        (nets.conv_relu_conv, {Format.INT8: "dx_q"}),
        (nets.int4_groups_with_int8_activations, {Format.INT8: "dx_q", Format.INT4: "w"}),
        (nets.fp8, {Format.FP8: "dx_q"}),
    ],
)
def test_the_formats_of_a_file_are_found_with_a_node_each(
    net: Callable[[], onnx.ModelProto], formats: dict[Format, str], tmp_path: Path
) -> None:
    assert formats_of(save(net(), tmp_path)) == formats


def test_products_in_sixteen_bits_and_scales_of_blocks_are_told_apart(tmp_path: Path) -> None:
    net = nets.Net(16, 64)
    scales = [net.put("s8", nets.RNG.random((4, 128)).astype(nets.FP8)), net.floats((), "whole")]
    scale = net.node("DequantizeLinear", scales, "scale")
    values = nets.RNG.choice([0.5, 1.0, -2.0], 64 * 128)
    net.stored.append(
        onnx.helper.make_tensor("w_q", TensorProto.FLOAT4E2M1, [64, 128], values)
    )  # fmt: skip
    w = net.node("DequantizeLinear", ["w_q", scale], "w", axis=0, block_size=16)
    half = [net.node("Cast", [t], f"{t}16", to=TensorProto.BFLOAT16) for t in ("x", w)]
    product = net.node("MatMul", half, "product")
    model = net.done(net.node("Cast", [product], "y", to=TensorProto.FLOAT))
    assert formats_of(save(model, tmp_path)) == {Format.NVFP4: "w", Format.BF16: "product"}


def test_a_file_that_is_none_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.onnx"):
        formats_of(tmp_path / "absent.onnx")


class StartedError(Exception):
    """The SDK was asked for."""


@pytest.fixture
def no_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise StartedError

    monkeypatch.setattr(tensorrt_rtx.TensorRTRTX, "_require_sdk", staticmethod(lambda: start(0)))


@pytest.mark.usefixtures("no_sdk")
def test_a_build_for_a_gpu_that_lacks_a_format_ends_before_the_sdk_is_started(
    tmp_path: Path,
) -> None:
    model, output = save(nets.fp8(), tmp_path), tmp_path / "net.engine"
    output.write_bytes(b"the good engine")
    with pytest.raises(TargetError) as caught:
        build(model, output, TensorRTRTX(compute_capability="8.6"))
    assert str(caught.value) == (
        "tensorrt_rtx cannot build model.onnx: dx_q: GPUs of compute capability 8.6 have no fp8: "
        "it needs 8.9 (Ada) or later. Fix: Quantize with the recipe int8_ptq, or build for a GPU "
        "that has the format."
    )
    assert output.read_bytes() == b"the good engine"
    with pytest.raises(StartedError):
        build(model, output, TensorRTRTX(compute_capability="8.9"))


def test_without_a_named_gpu_a_build_is_judged_by_the_gpu_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.targets.tensorrt import TensorRT

    here = Gpus(devices=(Device(gpu=Gpu("NVIDIA A40", (8, 6)), memory_bytes=None),))
    monkeypatch.setattr(hardware, "detect_gpus", lambda: here)
    with pytest.raises(TargetError, match=r"8\.6 \(NVIDIA A40\) have no fp8"):
        build(save(nets.fp8(), tmp_path), tmp_path / "net.engine", TensorRT())
