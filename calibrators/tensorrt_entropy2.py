"""TensorRT's entropy calibrator, for engines that TensorRT 8.5 to 10 calibrates itself."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.interfaces import EngineCalibrator


@dataclass(frozen=True, kw_only=True)
class TensorRTEntropy2(EngineCalibrator):
    """``IInt8EntropyCalibrator2``: one range a tensor, by TensorRT's own search on the GPU.

    TensorRT 11 and TensorRT-RTX have no such class; there, and in a recipe, the calibrator is
    ``entropy``, and the ranges stand in the ONNX file as Q/DQ.

    Example:
        >>> TensorRTEntropy2().algorithm
        'EntropyCalibration2'
    """

    @property
    def algorithm(self) -> str:
        """As calibration caches name it."""
        return "EntropyCalibration2"

    @property
    def base(self) -> str:
        """The class of ``tensorrt`` that is extended."""
        return "IInt8EntropyCalibrator2"
