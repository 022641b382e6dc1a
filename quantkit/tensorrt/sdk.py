"""NVIDIA's ``tensorrt`` package: whether it is here, and what its versions do differently."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.tensorrt.cache import version_number
from quantkit.tensorrt.settings import DETAILED, BuildOptions, Settings

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

    def settings(self, options: BuildOptions, *, calibrated: bool, quantized: bool) -> Settings:
        """What a build sets, by the names that this version has.

        Before TensorRT 10 a network counts its batch apart unless told not to. A network with
        Q/DQ is strongly typed where that can be chosen (from 9.1 on; 11 knows no other), so that
        it runs as it is written; a calibrated one cannot be. INT8 must be allowed to calibrate,
        and where types cannot be strong; 11 has no such flag.

        Raises:
            TargetError: this version does not have what is asked for.
        """
        major, flags = self.version[0], self.trt.NetworkDefinitionCreationFlag
        strong = major < 11 and hasattr(flags, "STRONGLY_TYPED")
        network = ["EXPLICIT_BATCH"] if major < 10 else []
        network += ["STRONGLY_TYPED"] if strong and not calibrated else []
        builder = []
        if calibrated or (quantized and major < 11 and not strong):
            builder.append("INT8")
        if options.version_compatible:
            self._require("version_compatible", "BuilderFlag", "VERSION_COMPATIBLE")
            builder.append("VERSION_COMPATIBLE")
        numbers: dict[str, int] = {}
        if options.optimization_level is not None:
            level = "builder_optimization_level"
            self._require("optimization_level", "IBuilderConfig", level)
            numbers[level] = options.optimization_level
        choices = dict(DETAILED)
        if options.hardware_compatible is not None:
            kind, member = "HardwareCompatibilityLevel", options.hardware_compatible.upper()
            self._require("hardware_compatible", kind, member)
            choices["hardware_compatibility_level"] = (kind, member)
        return Settings(
            network_flags=tuple(network),
            builder_flags=tuple(builder),
            pools={} if options.workspace is None else {"WORKSPACE": options.workspace},
            numbers=numbers,
            choices=choices,
        )

    def _require(self, option: str, kind: str, member: str) -> None:
        if not hasattr(getattr(self.trt, kind, None), member):
            raise TargetError(
                f"{self.label} has no {kind}.{member}, which {option} needs; leave {option} out, "
                "or install a later version of tensorrt"
            )


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
