"""Torch-TensorRT: a program with engines in it, compiled ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, refusal
from quantkit.benching.runners import _engines, _torch
from quantkit.interfaces import ExportForm, ModelFormat


@dataclass(frozen=True, kw_only=True)
class TorchTensorRTRunner(Runner):
    """The program that ``quantkit build --target torch_tensorrt`` writes."""

    @property
    def reads(self) -> ModelFormat:
        """A program of ``torch.export``."""
        return "pt2"

    @property
    def form(self) -> ExportForm:
        """As TensorRT takes it."""
        return "tensorrt"

    @property
    def builds(self) -> bool:
        """A program with engines."""
        return True

    @property
    def devices(self) -> tuple[Device, ...]:
        """A GPU."""
        return ("cuda",)

    def absent(self, device: Device) -> str | None:
        """It is not installed, or does not go with this PyTorch."""
        from quantkit.targets._torch_tensorrt_sdk import absence

        error = absence()
        return None if error is None else str(error)

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """What it cannot build; and float16."""
        from quantkit.targets.torch_tensorrt import TorchTensorRT

        if precision.half:
            return "it compiles a program in its own types, and it is one of float32"
        return refusal(TorchTensorRT(), precision)

    def load_sdk(self) -> None:
        """PyTorch and Torch-TensorRT."""
        from quantkit.targets._torch_tensorrt_sdk import load

        _torch.import_export()
        load()

    def build(self, load: Load) -> Path:
        """A program for one batch size, as far as it may vary."""
        from quantkit.targets.torch_tensorrt import TorchTensorRT

        program = (load.folder / _engines.file_name(load.shapes)).with_suffix(".pt2")
        TorchTensorRT(shapes=_engines.exactly(load.shapes)).build(load.file, program)
        return program

    def open(self, load: Load) -> Opened:
        """The program, which was built here."""
        from quantkit.targets._torch_tensorrt_files import load_compiled

        program = load_compiled(load.file, trusted=True)
        names, keywords = _torch.names_of(program)
        return _torch.TorchOpened(_torch.module_of(program), names, keywords, load.device)
