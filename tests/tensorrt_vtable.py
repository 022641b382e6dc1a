"""Drives our calibrators as TensorRT does: in C++, through their virtual functions.

A program of `real_tensorrt`: run with a scenario, it prints what came of it as JSON.
"""

from __future__ import annotations

import base64
import ctypes
import io
import json
import sys
from collections.abc import Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int32, c_size_t, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fake_tensorrt import HostBuffers
from torch import Tensor

from quantkit import plugins
from quantkit.interfaces import EngineCalibrator
from quantkit.targets._tensorrt_calibration import Calibrating, Calibration
from quantkit.tensorrt.calibrator import make_calibrator
from quantkit.tensorrt.remote import Answer, RemoteFeed
from quantkit.tensorrt.sdk import load_sdk

#: A cache longer than any buffer that a copy too many or too few might hide in.
CACHE = b"TRT-101303-EntropyCalibration2\n" + b"".join(b"t%d: 3c010a14\n" % i for i in range(999))


class Calibrator:
    """``nvinfer1::IInt8Calibrator`` at the address that the builder would be given."""

    def __init__(self, python: Any) -> None:
        self._python = python  # alive while it is called
        # pybind11 keeps the C++ object's address behind the head of the Python object.
        self._this = c_void_p.from_address(id(python) + 16).value
        assert self._this is not None
        self._table = c_void_p.from_address(self._this).value

    def _call(self, slot: int, result: Any, kinds: Sequence[Any], *values: Any) -> Any:
        assert self._table is not None
        function = c_void_p.from_address(self._table + 8 * slot).value
        return CFUNCTYPE(result, c_void_p, *kinds)(function)(self._this, *values)  # type: ignore[arg-type]

    def batch_size(self) -> int:
        return int(self._call(4, c_int32, []))

    def batch(self, names: Sequence[str]) -> list[int] | None:
        """The addresses, as written into the builder's array; guards around it stay as they are."""
        guard = 0xDEAD
        bindings = (c_void_p * (len(names) + 2))(guard, *[0] * len(names), guard)
        inner = ctypes.cast(ctypes.addressof(bindings) + 8, POINTER(c_void_p))
        listed = (c_char_p * len(names))(*[name.encode() for name in names])
        kinds = [POINTER(c_void_p), POINTER(c_char_p), c_int32]
        more = self._call(5, c_bool, kinds, inner, listed, len(names))
        assert bindings[0] == bindings[len(names) + 1] == guard
        return [address or 0 for address in bindings[1 : len(names) + 1]] if more else None

    def read_cache(self) -> bytes | None:
        length = c_size_t(0)
        address = self._call(6, c_void_p, [POINTER(c_size_t)], ctypes.byref(length))
        return None if address is None else ctypes.string_at(address, length.value)

    def write_cache(self, text: bytes) -> None:
        buffer = ctypes.create_string_buffer(text, len(text))
        self._call(7, None, [c_void_p, c_size_t], ctypes.addressof(buffer), len(text))
        ctypes.memset(buffer, 0xFF, len(text))  # the builder's memory is gone after the call

    def algorithm(self) -> int:
        return int(self._call(8, c_int32, []))


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image: a": torch.randn(2, 3, 4, generator=generator),
            "index": torch.randint(0, 1 << 40, (2,), generator=generator),
        }
        for _ in range(3)
    ]


INPUTS = [["image: a", [2, 3, 4], "FLOAT"], ["index", [2], "INT64"]]


def make(
    kind: str, data: Any, served: bytes | None = None, written: list[Any] | None = None
) -> tuple[RemoteFeed, Calibrator]:
    """Both ends of a calibration, joined by bytes as two processes are."""
    chosen = plugins.find("calibrators", kind, EngineCalibrator)()
    kept: Any = SimpleNamespace(
        save=lambda text, count, **facts: None if written is None else written.append((text, count))
    )
    calibration = Calibration(kind=chosen, data=data, cache=kept, served=served, buffers="torch")
    ends = Calibrating(calibration, {}, "tensorrt")

    def ask(what: str, **values: object) -> Answer:
        event = json.loads(json.dumps({"what": what, **values}))
        return Answer.read(io.BytesIO(ends.answer(event).bytes()))

    told = ask("inputs", inputs=INPUTS).values
    feed = RemoteFeed(
        ask,
        batch_size=told["batch_size"],
        served=None if told["served"] is None else base64.b64decode(told["served"]),
        buffers=HostBuffers,
    )
    return feed, Calibrator(make_calibrator(load_sdk().calibrator_base(chosen), feed))


def serve() -> object:
    feed, calibrator = make("tensorrt_entropy2", batches())
    sizes = {"index": 2 * 8, "image: a": 24 * 4}
    got = []
    while (addresses := calibrator.batch(list(sizes))) is not None:
        pairs = zip(addresses, sizes.values(), strict=True)
        got.append([ctypes.string_at(address, size).hex() for address, size in pairs])
    assert feed.error is None
    return {"batch_size": calibrator.batch_size(), "got": got, "after": calibrator.batch(["index"])}


def error() -> object:
    def failing() -> Iterator[dict[str, Tensor]]:
        yield batches()[0]
        raise OSError("the disk is gone")

    written: list[Any] = []
    feed, calibrator = make("tensorrt_entropy2", failing(), written=written)
    served = [calibrator.batch(["index"]) is not None for _ in range(3)]
    calibrator.write_cache(CACHE)
    return {"served": served, "raised": str(feed.error), "written": len(written)}


def cache() -> object:
    written: list[Any] = []
    _, calibrator = make("tensorrt_entropy2", batches(), written=written)
    none = calibrator.read_cache()
    while calibrator.batch(["index"]):
        pass
    calibrator.write_cache(CACHE)
    _, with_cache = make("tensorrt_entropy2", None, served=CACHE)
    return {
        "none": none,
        "written": [(text.decode(), count) for text, count in written],
        "read": (with_cache.read_cache() or b"").decode(),
    }


def algorithms() -> object:
    import tensorrt

    kinds = ("tensorrt_entropy2", "tensorrt_minmax")
    told = [make(kind, None, served=CACHE)[1].algorithm() for kind in kinds]
    return [tensorrt.CalibrationAlgoType(number).name for number in told]


def build(folder: str) -> object:
    from quantkit.calibrators.tensorrt_entropy2 import TensorRTEntropy2
    from quantkit.errors import TargetError
    from quantkit.targets.tensorrt import TensorRT

    path = Path(folder) / "model.onnx"
    target = TensorRT(calibrator=TensorRTEntropy2(), data=[torch.zeros(1, 8, 16, 16)])
    try:
        target.build(path, path.with_suffix(".engine"))
    except TargetError as refused:
        return str(refused)
    return ""


def everything() -> object:
    """All that needs no files, in one process: NVIDIA's module and PyTorch take long to load."""
    return {one.__name__: one() for one in (serve, error, cache, algorithms)}


if __name__ == "__main__":
    _, scenario, *arguments = sys.argv
    print(json.dumps(globals()[scenario](*arguments)))
