"""What the GPU that is here really multiplies fast: one large product in each format."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Rows, columns and depth of the product: 2 * 8192 ** 3 operations, some milliseconds.
SIZE = 8192


def probe(size: int = SIZE, repeats: int = 10) -> list[dict[str, Any]]:
    """For each format: tera-operations a second on random data, or why there is none."""
    return [_row(name, make, size, repeats) for name, make in _FORMATS.items()]


def _row(name: str, make: Callable[[int], Callable[[], Tensor]], size: int, repeats: int) -> Any:
    try:
        run = make(size)
        for _ in range(3):
            run()
        seconds = statistics.median(_timed(run) for _ in range(repeats))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return {"format": name, "tera_ops": None, "why": str(error).splitlines()[0]}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.empty_cache()
    return {"format": name, "tera_ops": 2 * size**3 / seconds / 1e12, "why": None}


def _timed(run: Callable[[], Tensor]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _random(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, size, device="cuda").to(dtype)


def _float(dtype: torch.dtype) -> Callable[[int], Callable[[], Tensor]]:
    def make(size: int) -> Callable[[], Tensor]:
        a, b = _random(size, dtype), _random(size, dtype)
        return lambda: a @ b

    return make


def _tf32(size: int) -> Callable[[], Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = True
    return _float(torch.float32)(size)


def _int8(size: int) -> Callable[[], Tensor]:
    a, b = (
        torch.randint(-128, 128, (size, size), dtype=torch.int8, device="cuda") for _ in range(2)
    )
    return lambda: torch._int_mm(a, b.t())


def _fp8(size: int) -> Callable[[], Tensor]:
    a, b = (_random(size, torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)


def _sparse(size: int) -> Callable[[], Tensor]:
    a = _random(size, torch.float16)
    mask = torch.tensor([1, 1, 0, 0], device="cuda").tile(size, size // 4).bool()
    sparse = torch.sparse.to_sparse_semi_structured(a.masked_fill(~mask, 0))
    b = _random(size, torch.float16)
    return lambda: torch.mm(sparse, b)


_FORMATS: dict[str, Callable[[int], Callable[[], Tensor]]] = {
    "fp32": _float(torch.float32),
    "tf32": _tf32,
    "fp16": _float(torch.float16),
    "bf16": _float(torch.bfloat16),
    "int8": _int8,
    "fp8_e4m3": _fp8,
    "sparse_2_4": _sparse,
}
