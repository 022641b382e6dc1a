"""The part of the plain `tensorrt` that builds: parser, config, timing cache, calibration."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_tensorrt_runtime as runtime
import numpy as np
import onnx

from quantkit.tensorrt.buffers import DeviceBuffers

_NUMPY = {"FLOAT": np.float32, "INT64": np.int64, "INT32": np.int32}


class HostBuffers(DeviceBuffers):
    """Memory of the CPU in place of the GPU's."""

    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray] = {}
        self.closed = False

    def put(self, name: str, values: np.ndarray) -> int:
        buffer = self.kept.setdefault(name, np.empty_like(values))
        assert buffer.shape == values.shape, "a buffer is allocated once"
        buffer[...] = values
        return buffer.ctypes.data

    def close(self) -> None:
        self.closed = True


#: Who was to allocate, in a child process.
buffers_asked: list[str] = []


def open_buffers(kind: str) -> HostBuffers:
    """In place of those of a GPU, in a child process."""
    buffers_asked.append(kind)
    return HostBuffers()


def read_back(address: int, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """What lies at an address, copied, as a GPU would read it."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(ctypes.string_at(address, size), kind).reshape(shape)


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"

    def __init__(self) -> None:
        pass


class Logger(ILogger):
    def __init__(self, severity: str) -> None:
        self.severity = severity


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


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


class IBuilderConfig:
    def __init__(self, device: str) -> None:
        self.flags: set[int] = set()
        self.pools: dict[str, int] = {}
        self.profiles: list[_Profile] = []
        self.calibration_profile: _Profile | None = None
        self.int8_calibrator: Any = None
        self.progress_monitor: Any = None
        self._device = device
        self._timing: runtime.ITimingCache | None = None

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool: IntEnum, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_calibration_profile(self, profile: _Profile) -> bool:
        self.calibration_profile = profile
        return True

    def create_timing_cache(self, text: bytes) -> runtime.ITimingCache:
        return runtime.ITimingCache(text, self._device)

    def set_timing_cache(self, cache: runtime.ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._timing = cache if cache.device == self._device else None
        return self._timing is not None

    def get_timing_cache(self) -> runtime.ITimingCache | None:
        return self._timing


class _Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.tensors: list[Any] = []
        self.graph = onnx.GraphProto()

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
        return self._read(onnx.load(path))

    def parse(self, model: bytes, path: str) -> bool:
        assert Path(path).is_file(), "the path says where external data lies"
        return self._read(onnx.load_from_string(model))

    def _read(self, model: onnx.ModelProto) -> bool:
        self._network.graph = graph = model.graph
        for node in graph.node:
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
    """What it was given is in the engine; `broken` makes it return nothing."""

    broken = False
    header = "TRT-101303"
    version = ""
    device = "this GPU"
    crash = ""  #: what ends the process: `build`, or `inspect`
    null = False  #: there is no GPU

    def __init__(self, logger: ILogger) -> None:
        if self.null:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger: Any = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self.device)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: IBuilderConfig) -> bytes | None:
        report = SimpleNamespace(network=network, config=config, batches=[], cache=None)
        if self.crash == "build":
            os.kill(os.getpid(), signal.SIGSEGV)
        if config.int8_calibrator is not None:
            self._calibrate(network, config, report)
        if self.broken:
            self._logger.log(ILogger.ERROR, "No kernel was found.")
            return None
        timing = config.get_timing_cache()
        known = sorted(timing.kernels) if timing else None
        if timing:
            timing.kernels |= {node.name for node in network.graph.node}
        facts = {
            "version": self.version,
            "network_flags": network.flags,
            "flags": sorted(flag.name for flag in config.flags),  # type: ignore[attr-defined]
            "pools": config.pools,
            "level": getattr(config, "builder_optimization_level", None),
            "verbosity": config.profiling_verbosity.name,  # type: ignore[attr-defined]
            "hardware": getattr(
                getattr(config, "hardware_compatibility_level", None), "name", None
            ),
            "profiles": [profile.shapes for profile in config.profiles],
            "known": known,
            "batches": [
                {name: [array.shape, array.tobytes().hex()] for name, array in batch.items()}
                for batch in report.batches
            ],
            "cache": None if report.cache is None else report.cache.decode(),
            "calibration_profile": getattr(config.calibration_profile, "shapes", None),
            "buffers": buffers_asked,
            "crash": self.crash,
            "layers": runtime.layers(network.graph, calibrated=config.int8_calibrator is not None),
        }
        return f"engine {len(report.batches)} {report.cache!r}\n{json.dumps(facts)}".encode()

    def _calibrate(self, network: _Network, config: IBuilderConfig, report: Any) -> None:
        calibrator = config.int8_calibrator
        assert calibrator.ready, "its base was not initialized"
        assert any(flag.name == "INT8" for flag in config.flags)  # type: ignore[attr-defined]
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
    def _shape(tensor: Any, config: IBuilderConfig) -> tuple[int, ...]:
        if min(tensor.shape) >= 0:
            return tuple(tensor.shape)
        assert config.calibration_profile is not None, "dynamic, and no calibration profile"
        low, best, high = config.calibration_profile.shapes[tensor.name]
        assert low == best == high
        return tuple(best)

    @staticmethod
    def _kind(tensor: Any) -> type[np.generic]:
        return _NUMPY[tensor.dtype.name]
