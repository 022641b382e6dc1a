"""Torch-TensorRT itself: whether it can be imported here, and if not, why and what to do."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import metadata
from typing import Any

import torch

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.graph.exporting import first_line
from quantkit.targets._torch_tensorrt_options import ENGINE_CACHE

#: The two packages of the module, and what each builds with (their requirements, 2.13).
_BUILDERS = {
    "torch-tensorrt": "tensorrt 11.0 (`pip install tensorrt==11.0.*`)",
    "torch-tensorrt-rtx": "tensorrt_rtx before 1.6 (`pip install 'tensorrt-rtx-cu13<1.6'`)",
}
#: Where programs are compiled and run.
DEVICE = "cuda"
_CPU_BUILD = (
    "Torch-TensorRT does not import with a CPU build of PyTorch, as {version} is: install a CUDA "
    "build of the same version (pytorch.org gives the command), then `pip install "
    "torch-tensorrt=={minor}.*`"
)


def absence() -> MissingDependencyError | TargetError | None:
    """Why Torch-TensorRT cannot be used here, as an error to raise; ``None`` where it can.

    Nothing is imported: with the wrong PyTorch that ends in a library that is not found.
    """
    minor = _minor(torch.__version__)
    if torch.version.cuda is None:
        return MissingDependencyError(_CPU_BUILD.format(version=torch.__version__, minor=minor))
    if importlib.util.find_spec("torch_tensorrt") is None:
        return MissingDependencyError(
            f"Torch-TensorRT is not installed: run `pip install torch-tensorrt=={minor}.*`, which "
            "brings the TensorRT that it needs"
        )
    package, version = _package()
    if version and _minor(version) != minor:
        return MissingDependencyError(
            f"{package} {version} is for PyTorch {_minor(version)}, and this is "
            f"{torch.__version__}; run `pip install {package}=={minor}.*`"
        )
    if not torch.cuda.is_available():
        return TargetError(
            "Torch-TensorRT needs an NVIDIA GPU, and PyTorch sees none: it cannot even be imported "
            "without; TensorRT-RTX builds on any machine (--target tensorrt_rtx)"
        )
    return None


def load() -> Any:
    """The module, with quantkit's operator known to it.

    Raises:
        MissingDependencyError: it is not installed, or does not go with what is.
        TargetError: there is no GPU, or it cannot keep quantized weights.
    """
    if (absent := absence()) is not None:
        raise absent
    from quantkit.targets._torch_tensorrt_converter import register

    try:
        with redirect_stdout(io.StringIO()):  # it prints what it also raises
            import torch_tensorrt
    except Exception as error:  # it raises Exception itself where a library is missing
        package, version = _package()
        raise MissingDependencyError(
            f"{package} {version} does not import ({first_line(error)}): it needs "
            f"{_BUILDERS.get(package, _BUILDERS['torch-tensorrt'])} and a CUDA build of PyTorch "
            f"{_minor(version)}"
        ) from error
    register()
    return torch_tensorrt


def check_settings(sdk: Any, settings: Mapping[str, Any]) -> None:
    """Refuse what the installed version would drop without a word.

    Raises:
        TargetError: names the option.
    """
    known = {field.name for field in dataclasses.fields(sdk.dynamo.CompilationSettings)}
    for name in settings:
        if name not in known | ENGINE_CACHE:
            raise TargetError(
                f"torch_tensorrt {sdk.__version__} has no option {name!r} and would ignore it; "
                "leave it out, or install a version that has it"
            )


def _package() -> tuple[str, str]:
    """The name and version of the package that the module came in."""
    for name in _BUILDERS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "torch-tensorrt", ""


def _minor(version: str) -> str:
    """Such as ``2.13`` of ``2.13.0+cpu``."""
    return ".".join(re.split(r"[.+]", version)[:2])
