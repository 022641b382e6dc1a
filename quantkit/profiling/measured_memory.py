"""What a run of a module really allocates: by PyTorch's profiler, for the model and each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from quantkit import nvtx

#: How the profiler calls an allocation.
_ALLOCATION: Final = "[memory]"


@dataclass(frozen=True, kw_only=True)
class MeasuredMemory:
    """What one run allocated, in bytes, beside what was there before it: inputs and weights.

    Attributes:
        device: ``cpu`` or ``cuda``.
        peak: the most allocated at once.
        by_module: the most allocated at once while each module ran, by its path.
    """

    device: str
    peak: int
    by_module: Mapping[str, int]


def measure(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> MeasuredMemory:
    """Run a module once, without gradients, and tell what it allocated.

    Unlike the analysis it has the workspaces of kernels in it, as far as they come from PyTorch's
    allocator, and the padding of CUDA's allocator.

    Args:
        model: on the device of its inputs.
        args: positional inputs.
        kwargs: keyword inputs.

    Example:
        >>> net = nn.Sequential(nn.Linear(256, 1024), nn.ReLU())
        >>> measure(net, (torch.zeros(8, 256),)).peak  # both results: 2 · 8 · 1024 · 4 bytes
        65536
    """
    from torch.profiler import ProfilerActivity, profile

    given = [*args, *(kwargs or {}).values()]
    on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in given)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    ranges = _Ranges()
    with torch.no_grad():
        model(*args, **(kwargs or {}))  # libraries allocate for themselves the first time
        with (
            profile(activities=activities, profile_memory=True, acc_events=True) as seen,
            nvtx.annotate(model, ranges),
        ):
            result = model(*args, **(kwargs or {}))
    del result
    events: list[Any] = list(seen.profiler.kineto_results.events())
    device = torch.device("cuda" if on_gpu else "cpu")
    kind = torch._C._autograd.DeviceType.CUDA if on_gpu else torch._C._autograd.DeviceType.CPU
    changes = [
        (event.start_ns(), event.nbytes())
        for event in events
        if event.name() == _ALLOCATION and event.device_type() == kind
    ]
    spans = [
        (event.name().removeprefix(_Ranges.PREFIX), event.start_ns(), event.end_ns())
        for event in events
        if event.name().startswith(_Ranges.PREFIX)
    ]
    return MeasuredMemory(
        device=device.type, peak=_most(changes), by_module=_by_span(changes, spans)
    )


def _most(changes: Sequence[tuple[int, int]]) -> int:
    """The highest running sum.

    Example:
        >>> _most([(1, 8), (3, -8), (2, 4)])
        12
    """
    highest = now = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        highest = max(highest, now)
    return highest


def _by_span(
    changes: Sequence[tuple[int, int]], spans: Sequence[tuple[str, int, int]]
) -> dict[str, int]:
    """The highest running sum within each span; the highest of spans of one name.

    Example:
        >>> _by_span([(1, 8), (4, 4), (5, -12)], [("a", 0, 3), ("b", 3, 6)])
        {'a': 8, 'b': 12}
        >>> _by_span([(1, 8), (9, -8)], [("flatten", 3, 6)])  # it allocates nothing itself
        {'flatten': 8}
    """
    ordered = sorted(changes, key=lambda pair: pair[0])
    found: dict[str, int] = {}
    for name, begin, end in spans:
        now = highest = 0
        for at, change in ordered:
            if at > end:
                break
            if at >= begin:
                highest = max(highest, now)
            now += change
            if at >= begin:
                highest = max(highest, now)
        found[name] = max(found.get(name, 0), highest, now)
    return found


class _Ranges:
    """Draws the ranges of modules in the profiler's own trace."""

    PREFIX: Final = "quantkit module: "

    def __init__(self) -> None:
        self._open: list[Any] = []

    def push(self, name: str) -> None:
        """Begin one; of ``path (Class)`` the path alone."""
        path = name.partition(" (")[0] if " (" in name else ""
        entered = torch.profiler.record_function(self.PREFIX + path)
        entered.__enter__()  # type: ignore[no-untyped-call]
        self._open.append(entered)

    def pop(self) -> None:
        """End the last one."""
        self._open.pop().__exit__(None, None, None)
