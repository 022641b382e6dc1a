"""ONNX Runtime, on the CPU or by its CUDA execution provider."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.benching.runner import Device, Load, Opened, Runner
from quantkit.benching.runners import _onnxruntime as runtime
from quantkit.interfaces import ModelFormat


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeRunner(Runner):
    """ONNX Runtime in its default mode."""

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def devices(self) -> tuple[Device, ...]:
        """Both."""
        return ("cpu", "cuda")

    def absent(self, device: Device) -> str | None:
        """It, or its provider, is not installed."""
        if device == "cpu":
            return runtime.no_provider("CPUExecutionProvider", "pip install onnxruntime")
        return runtime.no_provider("CUDAExecutionProvider", "pip install onnxruntime-gpu")

    def load_sdk(self) -> None:
        """ONNX Runtime."""
        runtime.import_onnxruntime()

    def open(self, load: Load) -> Opened:
        """A session."""
        name = "CPUExecutionProvider" if load.device == "cpu" else "CUDAExecutionProvider"
        return runtime.open_session(load, (name, {}))
