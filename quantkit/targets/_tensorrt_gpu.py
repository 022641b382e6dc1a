"""The GPU of this machine, as PyTorch sees it: TensorRT builds for it, and for no other."""

from __future__ import annotations

from quantkit.errors import TargetError


def this_gpu() -> tuple[int, int] | None:
    """Its compute capability; ``None`` where PyTorch sees no GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def gpu_name() -> str | None:
    """Such as ``NVIDIA A40 (8.6)``; ``None`` where PyTorch sees no GPU."""
    import torch

    here = this_gpu()
    return here and f"{torch.cuda.get_device_name()} ({here[0]}.{here[1]})"


def device() -> int | None:
    """The number of the CUDA device that is used here; ``None`` where PyTorch sees none."""
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else None


def require_built_here(wanted: tuple[int, int] | None) -> None:
    """Refuse to build for another GPU than this machine's, where it has one.

    Raises:
        TargetError: the compute capabilities differ.
    """
    here = this_gpu()
    if here is not None and wanted not in (None, here):
        raise TargetError(
            f"TensorRT builds for the GPU of this machine, of compute capability {_told(here)}, "
            f"and {_told(wanted)} was asked for; build on such a machine, or use the target "
            "tensorrt_rtx"
        )


def require_gpu(name: str) -> None:
    """Refuse to run an engine where there is no GPU.

    Raises:
        TargetError: PyTorch sees none.
    """
    if this_gpu() is None:
        raise TargetError(
            f"cannot run {name}: running an engine needs an NVIDIA GPU, and PyTorch sees none; "
            "the target onnxruntime runs the ONNX file on a CPU"
        )


def _told(capability: tuple[int, int] | None) -> str:
    return "none" if capability is None else f"{capability[0]}.{capability[1]}"
