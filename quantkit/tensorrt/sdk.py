"""NVIDIA's ``tensorrt`` package: whether it is here, and what its versions do differently."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.tensorrt.cache import version_number

if TYPE_CHECKING:
    from quantkit.interfaces import EngineCalibrator

#: The last versions with calibrators are 10.16; from 8.5 on networks are as they are used here.
OLDEST: Final = (8, 5)
INSTALL: Final = 'pip install "tensorrt<11"'


@dataclass(frozen=True)
class Sdk:
    """The package, and every difference between its versions that matters here.

    Attributes:
        trt: the module.
        version: such as ``(10, 13, 3)``.
    """

    trt: Any
    version: tuple[int, int, int]

    @property
    def label(self) -> str:
        """Such as ``tensorrt 10.13.3``."""
        return f"tensorrt {'.'.join(map(str, self.version))}"

    @property
    def number(self) -> int:
        """The version as headers of calibration caches hold it: 8601 is 8.6.1, 101303 10.13.3."""
        return version_number(*self.version)

    def calibrator_base(self, kind: EngineCalibrator) -> Any:
        """The class that a calibrator extends: gone since TensorRT 11.

        Raises:
            TargetError: this version has none.
        """
        base = getattr(self.trt, kind.base, None)
        if base is None:
            raise calibrator_gone(kind, self.label)
        return base

    def network_flags(self, *, calibrated: bool) -> int:
        """The flags of ``create_network``.

        Before TensorRT 10 a network counts its batch apart unless told not to. A network with
        Q/DQ is strongly typed where that can be chosen (from 9.1 on; 11 knows no other), so that
        it runs as it is written; a calibrated one cannot be.
        """
        flags = self.trt.NetworkDefinitionCreationFlag
        wanted = []
        if self.version[0] < 10:
            wanted.append(flags.EXPLICIT_BATCH)
        if self.version[0] < 11 and not calibrated and hasattr(flags, "STRONGLY_TYPED"):
            wanted.append(flags.STRONGLY_TYPED)
        return sum(1 << int(flag) for flag in wanted)

    def needs_int8_flag(self, *, calibrated: bool, quantized: bool) -> bool:
        """Whether INT8 must be allowed: always to calibrate, and where types cannot be strong."""
        if calibrated:
            return True
        strong = hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        return quantized and self.version[0] < 11 and not strong


def load_sdk() -> Sdk:
    """Import ``tensorrt``.

    Raises:
        MissingDependencyError: it is not installed, or its libraries are not.
        TargetError: it is older than 8.5.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(_absent(str(error))) from error
    text = getattr(trt, "__version__", None)
    if text is None:  # any folder of that name is a package to Python, a clone of NVIDIA's too
        raise MissingDependencyError(_absent("only a folder of that name was found"))
    numbers = [int(part) for part in re.findall(r"\d+", str(text))[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    if (major, minor) < OLDEST:
        raise TargetError(f"tensorrt {text} is too old: quantkit needs 8.5 or later; {INSTALL}")
    return Sdk(trt, (major, minor, patch))


def calibrator_gone(kind: EngineCalibrator, where: str) -> TargetError:
    """The error of a calibrator in TensorRT 11 or TensorRT-RTX; ``where`` names which."""
    return TargetError(
        f"{where} has no {kind.base}: calibrators are gone since TensorRT 11 (June 2026), and "
        "TensorRT-RTX never had any; put the ranges into the ONNX file as Q/DQ: `quantkit "
        "quantize` finds them, `quantkit migrate` takes them from a calibration cache; or keep "
        f"the calibrator: {INSTALL}"
    )


def _absent(why: str) -> str:
    return (
        f"TensorRT cannot be loaded ({why}): install it with {INSTALL} (calibrators need a "
        "version before 11; Q/DQ files build with any), on a machine with an NVIDIA GPU"
    )
