"""Runs programs of ``torch.export`` by PyTorch."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from quantkit.benching.runner import Device, Load, Opened, ordered

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantkit.benching.runner import Inputs


NO_INTEGERS: Final = "Inductor has no integer kernels on GPUs: it would compute Q/DQ in float"


class TorchOpened(Opened):
    """A module of a program, or what a compiler made of it.

    Args:
        call: takes the program's positional inputs and then those by name.
        names: of the positional inputs.
        keywords: of the inputs by name.
        device: where the inputs go.
        half: compute in float16 as ``torch.autocast`` sees fit.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        names: Sequence[str],
        keywords: Sequence[str],
        device: Device,
        *,
        half: bool = False,
    ) -> None:
        import torch

        self._call = call
        self._names, self._keywords = tuple(names), tuple(keywords)
        self._device = device
        self._args: list[torch.Tensor] = []
        self._kwargs: dict[str, torch.Tensor] = {}
        self._result: Any = None
        # Entered once, since that takes microseconds, and never left: the process runs this alone.
        self._modes = contextlib.ExitStack()
        self._modes.enter_context(torch.inference_mode())
        if half:
            self._modes.enter_context(torch.autocast(device, dtype=torch.float16))

    def place(self, inputs: Inputs) -> None:
        """Copy the inputs to the device."""
        import torch

        arrays = ordered(inputs, (*self._names, *self._keywords))
        tensors = [torch.tensor(array, device=self._device) for array in arrays]
        count = len(self._names)
        self._args = tensors[:count]
        self._kwargs = dict(zip(self._keywords, tensors[count:], strict=True))

    def run(self) -> None:
        """Call the module, and wait for the GPU."""
        import torch

        self._result = self._call(*self._args, **self._kwargs)
        if self._device == "cuda":
            torch.cuda.synchronize()

    def outputs(self) -> list[np.ndarray]:
        """The tensors of the result, in order, 16-bit floats as 32-bit ones."""
        import torch
        from torch.utils import _pytree as pytree

        leaves = [x for x in pytree.tree_leaves(self._result) if isinstance(x, torch.Tensor)]
        return [(x.float() if x.is_floating_point() else x).cpu().numpy() for x in leaves]


def read(load: Load) -> torch.export.ExportedProgram:
    """The program of a file, on the device, and PyTorch set to the number of threads."""
    import torch

    from quantkit.program.reading import read_program

    torch.set_num_threads(load.threads)
    program = read_program(load.file).program
    if load.device == "cuda":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, "cuda")
    return program


def module_of(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """What runs the graph as it stands, without checks of the inputs at each call."""
    module: torch.nn.Module = program.module(check_guards=False)
    return module


def names_of(program: torch.export.ExportedProgram) -> tuple[list[str], list[str]]:
    """The names of the inputs by order, and of those by name."""
    inputs = program.graph_signature.user_inputs
    count = len(program.example_inputs[0]) if program.example_inputs else len(inputs)
    keywords = list(program.example_inputs[1]) if program.example_inputs else []
    return [str(name) for name in inputs[:count]], keywords


def import_export() -> None:
    """Import PyTorch with what it imports where it reads its first program, 80 MB of code."""
    import quantkit.program.reading  # noqa: F401

    with contextlib.suppress(ImportError):  # where it lies may change: then it counts as memory
        import torch._export.serde.serialize  # noqa: F401


def import_inductor() -> None:
    """Import PyTorch with all that compiles."""
    import_export()
    import torch._dynamo
    import torch._inductor.compile_fx  # noqa: F401


def no_compiler() -> str | None:
    """Why Inductor cannot compile for the processor, if so."""
    wanted = os.environ.get("CXX", "g++")
    if shutil.which(wanted) or shutil.which("clang++") or sys.platform == "win32":
        return None
    return f"Inductor needs a C++ compiler, and there is no {wanted}: install g++, or set CXX"


def no_triton() -> str | None:
    """Why Inductor cannot compile for a GPU, if so."""
    if find_spec("triton") is None:
        return "Inductor needs Triton on a GPU, which is not installed: pip install triton"
    return None
