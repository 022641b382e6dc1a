"""Inductor ahead of time: a package of native code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.benching.runner import Device, Load, Opened, Precision, Runner, no_cuda
from quantkit.benching.runners import _torch
from quantkit.interfaces import ModelFormat


@dataclass(frozen=True, kw_only=True)
class InductorRunner(Runner):
    """The package that ``quantkit build --target inductor`` writes, for any batch size."""

    @property
    def reads(self) -> ModelFormat:
        """A program of ``torch.export``."""
        return "pt2"

    @property
    def builds(self) -> bool:
        """A package."""
        return True

    @property
    def devices(self) -> tuple[Device, ...]:
        """Both."""
        return ("cpu", "cuda")

    def absent(self, device: Device) -> str | None:
        """No compiler, or no GPU."""
        return _torch.no_compiler() or (no_cuda() if device == "cuda" else None)

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """Q/DQ on a GPU, where Inductor has no integer kernels; and float16."""
        if precision.half:
            return "packages compute in the types of the program, and it is one of float32"
        return _torch.NO_INTEGERS if precision.quantized and device == "cuda" else None

    def load_sdk(self) -> None:
        """PyTorch with what loads packages."""
        _torch.import_export()

        import quantkit.targets._inductor_packages  # noqa: F401

    def build(self, load: Load) -> Path:
        """The package, once for all batch sizes."""
        import torch

        from quantkit.targets.inductor import Inductor

        torch.set_num_threads(load.threads)
        package = load.folder / "package.pt2"
        if not package.exists():
            Inductor(device=load.device, threads=load.threads).build(load.file, package)
        return package

    def open(self, load: Load) -> Opened:
        """The package, which was built here."""
        import torch

        from quantkit.targets._inductor_packages import load as load_package

        torch.set_num_threads(load.threads)
        package = load_package(load.file.read_bytes(), load.file.name, load.device)
        names = [tensor.name for tensor in package.signature.inputs]
        call = lambda *tensors: package.run(list(tensors))  # noqa: E731
        return _torch.TorchOpened(call, names, (), load.device)
