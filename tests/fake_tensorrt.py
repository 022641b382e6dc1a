"""A `tensorrt` of plain Python, for the flow of a build: the calls it makes, not what it computes.

Its builder calls a calibrator as NVIDIA's does: the cache first, then batches until there is none,
and an exception in a call is the end of the data. Its "engine" is the text of what it was given.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from torch import Tensor

from quantkit.tensorrt.buffers import DeviceBuffers

_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32}


class HostBuffers(DeviceBuffers):
    """Memory of the CPU in place of the GPU's."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.closed = False

    def put(self, name: str, values: Tensor) -> int:
        buffer = self.kept.setdefault(name, torch.empty_like(values))
        assert buffer.shape == values.shape, "a buffer is allocated once"
        buffer.copy_(values)
        return buffer.data_ptr()

    def close(self) -> None:
        self.closed = True


def read_back(address: int, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """What lies at an address, copied, as a GPU would read it."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(ctypes.string_at(address, size), kind).reshape(shape)


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self) -> None:
        pass


class BuilderFlag(IntEnum):
    INT8 = 4


class _Calibrator:
    def __init__(self) -> None:
        self.ready = True


class IInt8EntropyCalibrator2(_Calibrator):
    algorithm = "EntropyCalibration2"


class IInt8MinMaxCalibrator(_Calibrator):
    algorithm = "MinMaxCalibration"


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class _Config:
    def __init__(self) -> None:
        self.flags: set[int] = set()
        self.profiles: list[_Profile] = []
        self.calibration_profile: _Profile | None = None
        self.int8_calibrator: Any = None

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_calibration_profile(self, profile: _Profile) -> bool:
        self.calibration_profile = profile
        return True


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.tensors: list[Any] = []

    @property
    def num_inputs(self) -> int:
        return len(self.tensors)

    def get_input(self, index: int) -> Any:
        return self.tensors[index]


class _Error:
    def __init__(self, node: str, operator: str, why: str) -> None:
        self._values = node, operator, why

    def node_name(self) -> str:
        return self._values[0]

    def node_operator(self) -> str:
        return self._values[1]

    def desc(self) -> str:
        return self._values[2]

    def func(self) -> str:
        return "parse"


class OnnxParser:
    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self._errors: list[_Error] = []

    def parse_from_file(self, path: str) -> bool:
        for node in (graph := onnx.load(path).graph).node:
            if node.domain not in ("", "ai.onnx"):
                self._errors.append(_Error(node.name, node.op_type, "Plugin not found"))
        for value in graph.input:
            kind = value.type.tensor_type
            shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
            dtype = SimpleNamespace(name=onnx.TensorProto.DataType.Name(kind.elem_type))
            self._network.tensors.append(SimpleNamespace(name=value.name, shape=shape, dtype=dtype))
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _Error:
        return self._errors[index]


class Builder:
    """`seen` collects what each build was given; `broken` makes it return nothing."""

    seen: ClassVar[list[SimpleNamespace]] = []
    broken = False
    header = "TRT-101303"

    def __init__(self, logger: ILogger) -> None:
        self._logger: Any = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        report = SimpleNamespace(network=network, config=config, batches=[], cache=None)
        self.seen.append(report)
        if config.int8_calibrator is not None:
            self._calibrate(network, config, report)
        if self.broken:
            self._logger.log(ILogger.ERROR, "No kernel was found.")
            return None
        return f"engine {len(report.batches)} {report.cache!r}".encode()

    def _calibrate(self, network: _Network, config: _Config, report: SimpleNamespace) -> None:
        calibrator = config.int8_calibrator
        assert calibrator.ready, "its base was not initialized"
        assert BuilderFlag.INT8 in config.flags
        cache = calibrator.read_calibration_cache()
        wanted = f"{self.header}-{calibrator.algorithm}\n".encode()
        if cache is not None and bytes(cache).startswith(wanted):
            report.cache = bytes(cache)
            calibrator.write_calibration_cache(memoryview(report.cache))
            return
        names = [tensor.name for tensor in network.tensors]
        while True:
            try:
                addresses = calibrator.get_batch(names)
            except BaseException:
                addresses = None
            if not addresses:
                break
            report.batches.append(
                {
                    tensor.name: read_back(address, self._shape(tensor, config), self._kind(tensor))
                    for tensor, address in zip(network.tensors, addresses, strict=True)
                }
            )
        amax = max((abs(b[names[0]]).max() for b in report.batches), default=0)
        scale = np.float32(amax / 127).tobytes()[::-1].hex()
        report.cache = wanted + f"{names[0]}: {scale}\n".encode()
        calibrator.write_calibration_cache(memoryview(report.cache))

    @staticmethod
    def _shape(tensor: Any, config: _Config) -> tuple[int, ...]:
        if min(tensor.shape) >= 0:
            return tuple(tensor.shape)
        assert config.calibration_profile is not None, "dynamic, and no calibration profile"
        low, best, high = config.calibration_profile.shapes[tensor.name]
        assert low == best == high
        return tuple(best)

    @staticmethod
    def _kind(tensor: Any) -> type[np.generic]:
        return _NUMPY[tensor.dtype.name]


def module(version: str = "10.13.3.9") -> ModuleType:
    """A module to stand in ``sys.modules`` as ``tensorrt``; without calibrators from 11 on."""
    trt = ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    builder = type("Builder", (Builder,), {"seen": [], "broken": False})
    members = [ILogger, OnnxParser, builder]
    major = int(version.split(".")[0])
    flags = {"EXPLICIT_BATCH": 0} if major < 11 else {}
    flags |= {"STRONGLY_TYPED": 1} if major > 8 else {}
    members.append(IntEnum("NetworkDefinitionCreationFlag", flags))
    if major < 11:
        members += [BuilderFlag, IInt8EntropyCalibrator2, IInt8MinMaxCalibrator]
    for member in members:
        setattr(trt, member.__name__, member)
    return trt
