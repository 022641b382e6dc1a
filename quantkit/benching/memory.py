"""How much memory a process has, and has had."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory of one worker, in bytes.

    Attributes:
        before: resident when the runtime was imported and no model was loaded.
        peak: the most resident since then.
        settled: resident after the last run.
        gpu_allocated: the most that PyTorch allocated on the GPU; ``None`` without it.
        gpu_used: how much more of the GPU's memory was in use after the first runs than before the
            model was loaded: all that the process takes there, its CUDA context as well; ``None``
            where NVML does not tell.
    """

    before: int
    peak: int
    settled: int
    gpu_allocated: int | None = None
    gpu_used: int | None = None

    @property
    def model(self) -> int:
        """What loading and running the model took at most, beside the runtime: on the GPU, if any.

        Example:
            >>> Memory(before=100, peak=150, settled=120).model
            50
        """
        for on_gpu in (self.gpu_used, self.gpu_allocated):
            if on_gpu is not None:
                return on_gpu
        return self.peak - self.before


class Meter:
    """Measures this process from its making on, which is right before a model is loaded.

    Args:
        gpu: whether the model will run on the first CUDA device.
    """

    def __init__(self, *, gpu: bool) -> None:
        gc.collect()
        forget_peak()
        self._gpu = gpu
        self._before = resident()
        self._gpu_before = gpu_used() if gpu else None
        self._gpu_used: int | None = None

    def loaded(self) -> None:
        """Take note of the GPU, whose memory counts for all processes, before another loads."""
        now = gpu_used() if self._gpu else None
        if now is not None and self._gpu_before is not None:
            self._gpu_used = max(0, now - self._gpu_before)

    def read(self) -> Memory:
        """What was used so far."""
        torch = sys.modules.get("torch") if self._gpu else None
        allocated = None
        if torch is not None and torch.cuda.is_initialized():
            allocated = int(torch.cuda.max_memory_allocated())
        settled = resident()
        return Memory(
            before=self._before,
            peak=max(peak_resident(), settled, self._before),
            settled=settled,
            gpu_allocated=allocated,
            gpu_used=self._gpu_used,
        )


def gpu_used() -> int | None:
    """The bytes in use on the first CUDA device, by all processes; ``None`` without NVML."""
    # NVML counts all devices, CUDA those that this variable leaves.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        import pynvml

        pynvml.nvmlInit()
        handle: Any = (
            pynvml.nvmlDeviceGetHandleByIndex(int(first))
            if first.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(first)
        )
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except Exception:  # pynvml is absent, or finds no driver: its errors have no common base
        return None


def resident() -> int:
    """The bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def forget_peak() -> bool:
    """On Linux the peak can be set back to what is resident; elsewhere it is of the whole life.

    Returns:
        whether it was set back.
    """
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
        return True
    return False


def peak_resident() -> int:
    """The most resident, in bytes, in this process's life or since `forget_peak`."""
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
