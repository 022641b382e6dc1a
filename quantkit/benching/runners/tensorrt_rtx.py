"""TensorRT-RTX: an engine for the shapes of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, no_cuda, refusal
from quantkit.benching.runners import _engines
from quantkit.interfaces import ExportForm, ModelFormat


@dataclass(frozen=True, kw_only=True)
class TensorRTRTXRunner(Runner):
    """The engine that ``quantkit build --target tensorrt_rtx`` writes, for this machine's GPU."""

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """As TensorRT takes it."""
        return "tensorrt"

    @property
    def builds(self) -> bool:
        """An engine."""
        return True

    @property
    def half(self) -> bool:
        """Beside INT8, float32 would be slow islands."""
        return True

    @property
    def devices(self) -> tuple[Device, ...]:
        """A GPU."""
        return ("cuda",)

    def absent(self, device: Device) -> str | None:
        """It is not installed, or builds for other GPUs alone."""
        from quantkit.targets.tensorrt_rtx import CAPABILITIES, INSTALL

        if find_spec("tensorrt_rtx") is None:
            return f"TensorRT-RTX is not installed: {INSTALL}"
        reason = no_cuda()
        if reason is not None:
            return reason
        if (here := _capability()) not in CAPABILITIES:
            return f"it builds for {', '.join(CAPABILITIES)}, and this GPU is {here}"
        return None

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """What it cannot build."""
        from quantkit.targets.tensorrt_rtx import TensorRTRTX

        return refusal(TensorRTRTX(compute_capability=_capability()), precision)

    def load_sdk(self) -> None:
        """PyTorch and TensorRT-RTX."""
        import tensorrt_rtx  # noqa: F401

        from quantkit.targets import _engine_run  # noqa: F401

    def build(self, load: Load) -> Path:
        """An engine for one batch size."""
        from quantkit.targets.tensorrt_rtx import TensorRTRTX

        engine = load.folder / _engines.file_name(load.shapes)
        shapes = _engines.exactly(load.shapes)
        TensorRTRTX(compute_capability=_capability(), shapes=shapes, progress=False).build(
            load.file, engine
        )
        return engine

    def open(self, load: Load) -> Opened:
        """The engine, which was built here."""
        import tensorrt_rtx

        from quantkit.targets._engine_run import EngineRunner

        runner = EngineRunner(tensorrt_rtx, load.file.read_bytes(), load.file.name)
        return _engines.EngineOpened(runner)


def _capability() -> str:
    """Of this machine's GPU, such as ``8.6``."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"
