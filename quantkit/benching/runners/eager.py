"""PyTorch, one operator after the other."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, no_cuda
from quantkit.benching.runners import _torch
from quantkit.interfaces import ModelFormat


@dataclass(frozen=True, kw_only=True)
class Eager(Runner):
    """The graph of ``torch.export`` called as it stands: what the model costs untouched."""

    @property
    def reads(self) -> ModelFormat:
        """A program of ``torch.export``."""
        return "pt2"

    @property
    def devices(self) -> tuple[Device, ...]:
        """Both."""
        return ("cpu", "cuda")

    def absent(self, device: Device) -> str | None:
        """PyTorch is always here; a GPU may not be."""
        return no_cuda() if device == "cuda" else None

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """A quantized model, whose integers PyTorch would compute in float."""
        if precision.quantized:
            return "PyTorch eager computes Q/DQ in float, which says nothing of its speed in INT8"
        return None

    def load_sdk(self) -> None:
        """PyTorch."""
        _torch.import_export()

    def open(self, load: Load) -> Opened:
        """The program's module."""
        program = _torch.read(load)
        names, keywords = _torch.names_of(program)
        module = _torch.module_of(program)
        return _torch.TorchOpened(module, names, keywords, load.device, half=load.half)
