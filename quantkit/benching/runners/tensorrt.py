"""TensorRT: an engine for the shapes of one batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, no_cuda, refusal
from quantkit.benching.runners import _engines
from quantkit.errors import QuantkitError
from quantkit.interfaces import ExportForm, ModelFormat


@dataclass(frozen=True, kw_only=True)
class TensorRTRunner(Runner):
    """The engine that ``quantkit build --target tensorrt`` writes, of files typed as they run."""

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
        """It is not installed, or PyTorch cannot use the GPU."""
        from quantkit.tensorrt.sdk import load_sdk

        try:
            load_sdk()
        except QuantkitError as error:
            return str(error)
        return no_cuda()

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """What it cannot build."""
        from quantkit.targets.tensorrt import TensorRT

        return refusal(TensorRT(), precision)

    def load_sdk(self) -> None:
        """PyTorch and TensorRT."""
        from quantkit.targets import _engine_run  # noqa: F401
        from quantkit.tensorrt.sdk import load_sdk

        load_sdk()

    def build(self, load: Load) -> Path:
        """An engine for one batch size."""
        from quantkit.targets.tensorrt import TensorRT

        engine = load.folder / _engines.file_name(load.shapes)
        TensorRT(shapes=_engines.exactly(load.shapes), progress=False).build(load.file, engine)
        return engine

    def open(self, load: Load) -> Opened:
        """The engine, which was built here."""
        from quantkit.targets.tensorrt import TensorRT

        return _engines.EngineOpened(TensorRT(trust_engine=True).runner(load.file))
