"""The part of the plain `tensorrt` that loads engines, tells their layers, runs and times them.

An engine runs in the CPU's memory: each output is twice the input of the same place.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from enum import IntEnum
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx

LayerInformationFormat = IntEnum("LayerInformationFormat", {"ONELINE": 0, "JSON": 1})
TensorIOMode = IntEnum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
TensorLocation = IntEnum("TensorLocation", {"DEVICE": 0, "HOST": 1})
DataType = IntEnum("DataType", {"FLOAT": 0, "HALF": 1, "INT32": 3, "INT64": 8, "FP8": 6})

_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}


def layers(graph: onnx.GraphProto, *, calibrated: bool) -> list[dict[str, Any]]:
    """The convolutions and products, and the format of what they read."""
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    kinds = ("Conv", "MatMul", "Gemm")
    return [
        {"node": n.name, "int8": calibrated or dequantized >= set(n.input[:2])}
        for n in graph.node
        if n.op_type in kinds
    ]


class ITimingCache:
    """`device` stands for all that must be alike; what is no cache is read as an empty one."""

    def __init__(self, text: bytes, device: str) -> None:
        plain = {"device": device, "kernels": []}
        if text.startswith(b"timing "):
            plain = json.loads(text.removeprefix(b"timing "))
        self.device, self.kernels = plain["device"], set(plain["kernels"])

    def serialize(self) -> bytes:
        plain = {"device": self.device, "kernels": sorted(self.kernels)}
        return b"timing " + json.dumps(plain).encode()

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if self.device == other.device:
            self.kernels |= other.kernels
        return self.device == other.device


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        engine.contexts.append(self)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return max(shape) <= self._engine.largest

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self._engine.tensor(name)
        return (-1,) if tensor.unknown else self.shapes[self._source(name)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle: int) -> bool:
        self._engine.handles.append(handle)
        for tensor in self._engine.tensors:
            if tensor.mode is TensorIOMode.OUTPUT:
                source = self._source(tensor.name)
                shape, kind = self.shapes[source], _NUMPY[tensor.dtype.name]
                size = int(np.prod(shape)) * np.dtype(kind).itemsize
                value = np.frombuffer(ctypes.string_at(self.addresses[source], size), kind) * 2
                ctypes.memmove(self.addresses[tensor.name], value.tobytes(), size)
        return not self._engine.broken

    def _source(self, name: str) -> str:
        place = [t.name for t in self._engine.tensors if t.mode is TensorIOMode.OUTPUT].index(name)
        inputs = [t.name for t in self._engine.tensors if t.mode is TensorIOMode.INPUT]
        return inputs[place]


class _Inspector:
    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        if self._facts["crash"] == "inspect":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._facts["verbosity"] != "DETAILED":
            return json.dumps({"Layers": [layer["node"] for layer in self._facts["layers"]]})
        new = int(self._facts["version"].split(".")[0]) > 10
        return json.dumps({"Layers": [_layer(layer, new=new) for layer in self._facts["layers"]]})


def _layer(layer: dict[str, Any], *, new: bool) -> dict[str, Any]:
    word = "Int8" if layer["int8"] else "Float"
    told = {"Datatype": word, "Format": "(NHWC)"} if new else {"Format/Datatype": word}
    tensor = {"Name": "t", "Dimensions": [1, 8], **told}
    return {
        "Name": f"{layer['node']}_myl0_1",
        "LayerType": "correlation" if new else "CaskConvolution",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": f"[ONNX Layer: {layer['node']}]",
    }


class _Engine:
    """`broken` makes it fail to run; `largest` is the largest size it was built for."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self.contexts: list[_Context] = []
        self.handles: list[int] = []
        self.broken = facts.get("broken", False)
        self.largest = facts.get("largest", 32)
        self.tensors = [
            SimpleNamespace(
                name=name,
                mode=TensorIOMode[mode],
                dtype=DataType[kind],
                location=TensorLocation[location],
                unknown=unknown,
            )
            for name, mode, kind, location, unknown in facts.get("tensors", [])
        ]

    def tensor(self, name: str) -> Any:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        name: str = self.tensors[index].name
        return name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        mode: TensorIOMode = self.tensor(name).mode
        return mode

    def get_tensor_dtype(self, name: str) -> DataType:
        dtype: DataType = self.tensor(name).dtype
        return dtype

    def get_tensor_location(self, name: str) -> TensorLocation:
        location: TensorLocation = self.tensor(name).location
        return location

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self._facts)


class Runtime:
    """`loaded` holds the engines, in order."""

    loaded: ClassVar[list[_Engine]]

    def __init__(self, logger: Any) -> None:
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, engine: bytes) -> _Engine | None:
        assert isinstance(engine, bytes)
        if not engine.startswith(b"engine "):
            return None
        facts = json.loads(engine.split(b"\n", 1)[1])
        if "VERSION_COMPATIBLE" in facts.get("flags", []) and not self.engine_host_code_allowed:
            return None
        self.loaded.append(_Engine(facts))
        return self.loaded[-1]


MEMBERS = [LayerInformationFormat, TensorIOMode, TensorLocation, DataType]


def engine(
    *tensors: tuple[str, str, str], host: str = "", unknown: str = "", **facts: Any
) -> bytes:
    """An engine with these tensors: name, mode and type."""
    listed = [
        (name, mode, kind, "HOST" if name == host else "DEVICE", name == unknown)
        for name, mode, kind in tensors
    ]
    return b"engine 0 None\n" + json.dumps({"tensors": listed, **facts}).encode()
