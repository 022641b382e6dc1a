"""What this machine has: GPUs by NVML or PyTorch, runtimes by their packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import types

import pynvml
import pytest
import torch
from fake_pynvml import Card, FakeNvml

from quantkit.errors import MissingDependencyError
from quantkit.hardware import Device, Gpu, Gpus, detect, detect_gpus, machine


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml(Card("NVIDIA A40", (8, 6)), Card(b"Tesla T4", (7, 5), 16 << 30))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)


def versions(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """These packages are installed, and no others."""

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[key]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_fake_has_the_functions_of_the_real_package() -> None:
    names = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(names) == 9
    assert all(callable(getattr(pynvml, name)) for name in names)


def test_gpus_are_told_by_name_capability_and_memory(nvml: FakeNvml) -> None:
    assert detect_gpus() == Gpus(
        devices=(
            Device(gpu=Gpu("NVIDIA A40", (8, 6)), memory_bytes=48 << 30),
            Device(gpu=Gpu("Tesla T4", (7, 5)), memory_bytes=16 << 30),
        ),
        driver="580.65.06",
        cuda="13.2",
    )
    assert nvml.open == 0


def test_what_a_driver_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml(Card("Orin (nvgpu)", (8, 7), None), old=True))
    found = detect_gpus()
    assert found.devices == (Device(gpu=Gpu("Orin (nvgpu)", (8, 7)), memory_bytes=None),)
    assert (found.driver, found.cuda) == ("580.65.06", None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NVMLError_DriverNotLoaded", "does not answer: Driver Not Loaded"),
        ("NVMLError_NoPermission", "does not answer: Insufficient Permissions"),
        ("NVMLError_LibRmVersionMismatch", "does not answer: "),
    ],
)
def test_a_driver_that_does_not_answer_is_told_in_its_words(
    error: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeNvml(error=error))
    monkeypatch.setattr(machine, "_by_torch", lambda why: pytest.fail("PyTorch knows no more"))
    found = detect_gpus()
    assert found.devices == ()
    assert words in found.why_none


def test_a_driver_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml())
    assert detect_gpus().why_none == "NVIDIA's driver sees no GPU"


def test_the_library_is_closed_when_a_gpu_is_lost(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise pynvml.NVMLError_GpuIsLost()  # type: ignore[attr-defined]

    monkeypatch.setattr(nvml, "nvmlDeviceGetName", lost)
    assert "GPU is lost" in detect_gpus().why_none
    assert nvml.open == 0


@pytest.mark.parametrize("fake", [None, FakeNvml(error="NVMLError_LibraryNotFound")])
def test_without_the_library_pytorch_is_asked(
    fake: FakeNvml | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake)
    versions(monkeypatch, torch="2.13.0")
    properties = types.SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = detect_gpus()
    assert found.devices == (Device(gpu=Gpu("NVIDIA L4", (8, 9)), memory_bytes=24 << 30),)
    assert (found.driver, found.cuda, found.why_none) == (None, "13.0", "")


@pytest.mark.parametrize(
    ("fake", "package", "words"),
    [
        (None, "2.13.0", "nvidia-ml-py is not installed .*, and PyTorch sees none"),
        (FakeNvml(error="NVMLError_LibraryNotFound"), "2.13.0+cpu", "for processors alone"),
        (FakeNvml(error="NVMLError_LibraryNotFound"), None, "it has no NVML library$"),
    ],
)
def test_no_gpu_is_told_with_the_reason(
    fake: FakeNvml | None, package: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake)
    versions(monkeypatch, **({} if package is None else {"torch": package}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = detect_gpus()
    assert found.devices == ()
    assert re.search(words, found.why_none)


def test_runtimes_are_told_by_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(
        monkeypatch, torch="2.13.0", onnxruntime="1.32.0", onnxruntime_gpu="1.31.0",
        tensorrt_cu13="11.4.0",
    )  # fmt: skip
    assert machine.installed() == {
        "torch": "torch 2.13.0",
        "onnxruntime": "onnxruntime-gpu 1.31.0",
        "tensorrt": "tensorrt-cu13 11.4.0",
        "tensorrt_rtx": None,
        "torch_tensorrt": None,
        "torchao": None,
    }


def test_a_processor_that_cannot_be_told_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        raise MissingDependencyError("install py-cpuinfo")

    monkeypatch.setattr(machine, "detect_cpu", unknown)
    assert detect().cpu is None


def test_detection_imports_no_runtime() -> None:
    code = (
        "import sys; from quantkit.hardware import detect; found = detect();"
        "slow = ('torch', 'tensorrt', 'tensorrt_rtx', 'torch_tensorrt', 'onnxruntime', 'onnx');"
        "print('+cpu' not in str(found.runtimes) or [m for m in slow if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "True")
