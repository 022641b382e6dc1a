"""What this machine has: processor, GPUs, driver, and which runtimes are installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from quantkit.errors import MissingDependencyError
from quantkit.hardware.chips import Capability
from quantkit.hardware.cpus import Cpu, detect_cpu
from quantkit.hardware.gpus import Gpu

T = TypeVar("T")

#: The packages of each runtime, any of which will do; the fullest first.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "torch_tensorrt": ("torch-tensorrt", "torch-tensorrt-rtx"),
    "torchao": ("torchao",),
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU of this machine.

    Attributes:
        gpu: its name, as the driver gives it, and compute capability.
        memory_bytes: how much it has; ``None`` where the driver does not tell (Jetson shares the
            processor's).
    """

    gpu: Gpu
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs that were found, or why none was.

    Attributes:
        devices: in the driver's order.
        driver: version of NVIDIA's driver.
        cuda: the newest CUDA that the driver runs; with PyTorch alone, that of its package.
        why_none: where there is none, the reason; else empty.
    """

    devices: tuple[Device, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    why_none: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has.

    Attributes:
        cpu: ``None`` where it cannot be told.
        gpus: those of NVIDIA.
        runtimes: package and version of each runtime that is installed, such as
            ``{"torch": "torch 2.13.0"}``; ``None`` of one that is not.
    """

    cpu: Cpu | None
    gpus: Gpus
    runtimes: Mapping[str, str | None] = field(default_factory=dict)


def detect() -> Machine:
    """What this machine has; works with no GPU, no driver, and no runtime.

    Example:
        >>> detect().runtimes["torch"]
        'torch ...'
    """
    try:
        cpu = detect_cpu()
    except MissingDependencyError:
        cpu = None
    return Machine(cpu=cpu, gpus=detect_gpus(), runtimes=installed())


def installed() -> dict[str, str | None]:
    """Package and version of each runtime, without importing it."""
    return {name: _version(packages) for name, packages in _PACKAGES.items()}


def _version(packages: tuple[str, ...]) -> str | None:
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def detect_gpus() -> Gpus:
    """NVIDIA's GPUs by its management library (NVML), else by PyTorch."""
    try:
        import pynvml
    except ImportError:
        return _by_torch("nvidia-ml-py is not installed (`pip install nvidia-ml-py`)")
    try:
        with _nvml(pynvml):
            return _by_nvml(pynvml)
    except pynvml.NVMLError_LibraryNotFound:
        return _by_torch("NVIDIA's driver is not installed: it has no NVML library")
    except pynvml.NVMLError as error:
        return Gpus(why_none=f"NVIDIA's driver does not answer: {error}")


@contextmanager
def _nvml(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _by_nvml(nvml: Any) -> Gpus:
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    driver = _told(nvml, nvml.nvmlSystemGetDriverVersion)
    cuda = _told(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    return Gpus(
        devices=tuple(_device(nvml, handle) for handle in handles),
        driver=None if driver is None else _text(driver),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",  # 13020 is 13.2
        why_none="" if handles else "NVIDIA's driver sees no GPU",
    )


def _told(nvml: Any, ask: Callable[..., T], *arguments: Any) -> T | None:
    """What the driver answers; not every driver answers everything."""
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None


def _device(nvml: Any, handle: Any) -> Device:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return Device(
        gpu=Gpu(_text(nvml.nvmlDeviceGetName(handle)), (major, minor)),
        memory_bytes=None if memory is None else int(memory.total),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before version 11.5


def _by_torch(why_no_nvml: str) -> Gpus:
    """By PyTorch, which is slow to import; not at all where its package is one for processors."""
    version = _version(_PACKAGES["torch"])
    if version is None:
        return Gpus(why_none=why_no_nvml)
    if version.endswith("+cpu"):
        return Gpus(why_none=f"{why_no_nvml}, and this PyTorch is one for processors alone")
    import torch

    if not torch.cuda.is_available():
        return Gpus(why_none=f"{why_no_nvml}, and PyTorch sees none")
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability: Capability = (found.major, found.minor)
        devices.append(Device(gpu=Gpu(found.name, capability), memory_bytes=found.total_memory))
    return Gpus(devices=tuple(devices), cuda=torch.version.cuda)
