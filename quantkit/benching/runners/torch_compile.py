"""torch.compile: the graph compiled by Inductor just in time."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, no_cuda
from quantkit.benching.runners import _torch
from quantkit.interfaces import ModelFormat


@dataclass(frozen=True, kw_only=True)
class TorchCompile(Runner):
    """``torch.compile`` for the shapes of one batch.

    A float model is compiled with the defaults; a quantized one as ``quantkit.targets.inductor``
    prepares it, with its weights frozen, without which there are no integer kernels.
    """

    @property
    def reads(self) -> ModelFormat:
        """A program of ``torch.export``."""
        return "pt2"

    @property
    def devices(self) -> tuple[Device, ...]:
        """Both."""
        return ("cpu", "cuda")

    def absent(self, device: Device) -> str | None:
        """No compiler, or no GPU."""
        return _torch.no_compiler() if device == "cpu" else no_cuda() or _torch.no_triton()

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """Q/DQ on a GPU, where Inductor has no integer kernels."""
        return _torch.NO_INTEGERS if precision.quantized and device == "cuda" else None

    def load_sdk(self) -> None:
        """PyTorch with its compiler."""
        _torch.import_inductor()

    def open(self, load: Load) -> Opened:
        """The program's module, to be compiled at its first run."""
        import torch

        from quantkit.program.archive import read_archive
        from quantkit.program.reading import is_quantized
        from quantkit.targets.inductor import compiled

        program = _torch.read(load)
        names, keywords = _torch.names_of(program)
        if is_quantized(read_archive(load.file)):
            call = compiled(program, dynamic=False, device=load.device)
        else:
            call = torch.compile(_torch.module_of(program), dynamic=False)
        return _torch.TorchOpened(call, names, keywords, load.device, half=load.half)
