"""Roofs of devices: measured here by matrix products and a copy, or from data sheets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch

from quantkit.errors import TargetError
from quantkit.hardware.cpus import detect_cpu
from quantkit.hardware.formats import Format
from quantkit.hardware.peaks import require_peak
from quantkit.profiling.kinds import Dtype
from quantkit.profiling.roofline import Roof

_DTYPES: Final[dict[Format, Dtype]] = {
    Format.FP32: Dtype.FP32,
    Format.TF32: Dtype.TF32,
    Format.FP16: Dtype.FP16,
    Format.BF16: Dtype.BF16,
    Format.INT8: Dtype.INT8,
    Format.FP8: Dtype.FP8_E4M3,
    Format.NVFP4: Dtype.FP4,
}
#: Rows and columns of the matrices: large enough that a product is bound by compute.
_SIDE: Final = {"cpu": 1024, "cuda": 8192}
#: Bytes that are copied: more than the caches of any processor or GPU hold.
_COPIED: Final = 256 * 2**20
_RUNS: Final = 20
#: Seconds for one figure; at least three runs, where those take longer.
_LIMIT: Final = 0.8


def roof_from_table(name: str) -> Roof:
    """The roof of a GPU by its data sheet.

    Args:
        name: of a product, or as the driver calls it.

    Raises:
        TargetError: the table has none.

    Example:
        >>> roof = roof_from_table("T4")
        >>> roof.peak(Dtype.INT8) / roof.peak(Dtype.FP16), roof.ridge(Dtype.INT8)
        (2.0, 406.25)
    """
    peak = require_peak(name)
    return Roof(
        name=peak.name,
        peaks={_DTYPES[format]: 1e12 * tera for format, tera in peak.tera.items()},
        bandwidth=1e9 * peak.bandwidth,
        source="table",
        notes=(str(peak.source),),
    )


def measure_roof(device: str = "cpu", *, threads: int | None = None) -> Roof:
    """The roof of this machine's processor or GPU: the best of short runs, in about three seconds.

    Peaks are those of square matrix products: on a processor by PyTorch, with its number of
    threads, and int8 by ONNX Runtime, which has the kernels that a quantized model runs on there;
    on a GPU by cuBLAS through PyTorch. The bandwidth is that of a copy larger than the caches, each
    byte counted once where it is read and once where it is written. Other work on the machine
    makes a roof too low, and layers then lie above it.

    Args:
        device: ``cpu`` or ``cuda``, with an index if need be.
        threads: of the processor: those of the runs that are placed under the roof; by default as
            many as PyTorch has.

    Raises:
        TargetError: there is no such device.
    """
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise TargetError(f"{device}: PyTorch sees no GPU; measure the processor: cpu")
    if place.type not in _SIDE:
        raise TargetError(f"{device}: only cpu and cuda are measured; choose one of them")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        peaks = _cpu_peaks() if place.type == "cpu" else _cuda_peaks(place)
        return Roof(
            name=_name(place), peaks=peaks, bandwidth=_bandwidth(place), source="measured",
            notes=_notes(place),
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _cpu_peaks() -> dict[Dtype, float]:
    side = _SIDE["cpu"]
    operations = 2.0 * side**3
    peaks = {
        Dtype.FP32: operations / _product(torch.float32, torch.device("cpu"), side),
        Dtype.BF16: operations / _product(torch.bfloat16, torch.device("cpu"), side),
    }
    return peaks | {Dtype.INT8: operations / _integers_on_cpu(side)}


def _integers_on_cpu(side: int) -> float:
    """Seconds of a product of unsigned and signed bytes in ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    left = helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])
    made = helper.make_tensor_value_info("c", TensorProto.INT32, [side, side])
    draw = np.random.default_rng(0)
    # Seven bits, as quantkit rounds weights where 16-bit sums of products would saturate.
    weight = draw.integers(-64, 64, (side, side), dtype=np.int8)
    stored = helper.make_tensor("b", TensorProto.INT8, [side, side], weight.tobytes(), raw=True)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [left], [made], [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows = draw.integers(0, 256, (side, side), dtype=np.uint8)
    return _seconds(lambda: session.run(None, {"a": rows}), _nothing)


def _cuda_peaks(place: torch.device) -> dict[Dtype, float]:
    side = _SIDE["cuda"]
    operations = 2.0 * side**3
    before = torch.backends.cuda.matmul.allow_tf32
    peaks: dict[Dtype, float] = {}
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        peaks[Dtype.FP32] = operations / _product(torch.float32, place, side)
        if torch.cuda.get_device_capability(place) >= (8, 0):
            torch.backends.cuda.matmul.allow_tf32 = True
            peaks[Dtype.TF32] = operations / _product(torch.float32, place, side)
            peaks[Dtype.BF16] = operations / _product(torch.bfloat16, place, side)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    peaks[Dtype.FP16] = operations / _product(torch.float16, place, side)
    if torch.cuda.get_device_capability(place) >= (7, 5):
        peaks[Dtype.INT8] = operations / _bytes_on_cuda(place, side, torch.int8)
    if torch.cuda.get_device_capability(place) >= (8, 9):
        peaks[Dtype.FP8_E4M3] = operations / _bytes_on_cuda(place, side, torch.float8_e4m3fn)
    return peaks


def _product(dtype: torch.dtype, place: torch.device, side: int) -> float:
    """Seconds of a square product."""
    # Of the device's own generator: what the caller draws afterwards stays the same.
    draw = torch.Generator(place).manual_seed(0)
    left, right = (torch.rand(side, side, generator=draw, device=place).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=place)
    return _seconds(lambda: torch.mm(left, right, out=out), _waiting(place))


def _bytes_on_cuda(place: torch.device, side: int, dtype: torch.dtype) -> float:
    """Seconds of a square product of bytes: integers, or floats of 8 bits."""
    draw = torch.Generator(place).manual_seed(0)
    whole = torch.randint(-64, 64, (2, side, side), generator=draw, device=place)
    left, right = whole[0].to(dtype), whole[1].to(dtype).t()
    if dtype is torch.int8:
        return _seconds(lambda: torch._int_mm(left, right), _waiting(place))
    one = torch.ones((), device=place)
    return _seconds(
        lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16), _waiting(place)
    )


def _bandwidth(place: torch.device) -> float:
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    return 2.0 * _COPIED / _seconds(lambda: target.copy_(source), _waiting(place))


def _seconds(run: Callable[[], Any], wait: Callable[[], None]) -> float:
    """The least of several runs: a roof is what can be had, and other work only takes from it."""
    run()
    wait()
    times: list[float] = []
    while len(times) < _RUNS and (len(times) < 3 or sum(times) < _LIMIT):
        begin = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - begin)
    return min(times)


def _waiting(place: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(place)) if place.type == "cuda" else _nothing


def _nothing() -> None:
    pass


def _name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else detect_cpu().name


def _notes(place: torch.device) -> tuple[str, ...]:
    how = f"products of {_SIDE[place.type]} x {_SIDE[place.type]}, a copy of {_COPIED >> 20} MiB"
    if place.type == "cuda":
        return (how,)
    return (f"{torch.get_num_threads()} threads", how)
