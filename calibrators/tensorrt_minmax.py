"""TensorRT's min-max calibrator, for engines that TensorRT 8.5 to 10 calibrates itself."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.interfaces import EngineCalibrator


@dataclass(frozen=True, kw_only=True)
class TensorRTMinMax(EngineCalibrator):
    """``IInt8MinMaxCalibrator``: the largest magnitude of each tensor over all batches.

    NVIDIA suggests it for language models; detectors may lose less with it than with entropy.
    TensorRT 11 and TensorRT-RTX have no such class; there, and in a recipe, the calibrator is
    ``minmax``, and the ranges stand in the ONNX file as Q/DQ.

    Example:
        >>> TensorRTMinMax().base
        'IInt8MinMaxCalibrator'
    """

    @property
    def algorithm(self) -> str:
        """As calibration caches name it."""
        return "MinMaxCalibration"

    @property
    def base(self) -> str:
        """The class of ``tensorrt`` that is extended."""
        return "IInt8MinMaxCalibrator"
