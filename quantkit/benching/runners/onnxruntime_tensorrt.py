"""ONNX Runtime by its TensorRT execution provider."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.benching.runner import Device, Load, Opened, Runner
from quantkit.benching.runners import _onnxruntime as runtime
from quantkit.interfaces import ExportForm, ModelFormat


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeTensorRT(Runner):
    """TensorRT inside ONNX Runtime, CUDA for what it refuses; Q/DQ in INT8, the rest in FP32."""

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """As TensorRT takes it."""
        return "tensorrt"

    @property
    def devices(self) -> tuple[Device, ...]:
        """A GPU."""
        return ("cuda",)

    def absent(self, device: Device) -> str | None:
        """The provider is not installed."""
        return runtime.no_provider("TensorrtExecutionProvider", "pip install onnxruntime-gpu")

    def load_sdk(self) -> None:
        """ONNX Runtime."""
        runtime.import_onnxruntime()

    def open(self, load: Load) -> Opened:
        """A session that builds an engine."""
        options = {"trt_int8_enable": True}
        return runtime.open_session(
            load, ("TensorrtExecutionProvider", options), ("CUDAExecutionProvider", {})
        )
