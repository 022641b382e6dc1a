"""Names for what runs: a range for each phase of quantkit and for each module of a model.

``phase`` is the one place that quantkit's steps announce themselves to. Who listens (NVTX for
Nsight Systems, or a meter of memory) is bound to the block that asked for it, so nothing is left.
NVTX ranges cost well under a microsecond where no profiler is attached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import nn

#: Is told the name of a phase, and returns what is entered while the phase lasts.
Listener: TypeAlias = Callable[[str], AbstractContextManager[object]]

#: What a range of quantkit begins with, so that it is found among the ranges of other libraries.
PREFIX: Final = "quantkit: "

# Immutable tuples only: a block adds to what it found, and puts that back.
_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("quantkit_phase_listeners", default=())


class Marker(Protocol):
    """What draws ranges: ``torch.cuda.nvtx``, or one that a test made."""

    def push(self, name: str) -> None:
        """Begin a range inside those that are open."""

    def pop(self) -> None:
        """End the range that was begun last."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Announce a phase, such as ``calibrate``, to all who listen and, where it is there, to NVTX.

    Example:
        >>> from contextlib import nullcontext
        >>> heard = []
        >>> with listening(lambda name: nullcontext(heard.append(name))), phase("calibrate"):
        ...     pass
        >>> heard
        ['calibrate']
    """
    marker = found_marker()
    with ExitStack() as stack:
        if marker is not None:
            stack.enter_context(_range(marker, PREFIX + name))
        for listener in _LISTENERS.get():
            stack.enter_context(listener(name))
        yield


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have ``listener`` told of the phases of this thread (or task) until the block ends."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def available() -> bool:
    """Whether ranges reach NVTX: PyTorch is built for CUDA, or NVIDIA's ``nvtx`` is installed."""
    return found_marker() is not None


def found_marker() -> Marker | None:
    """NVTX by PyTorch or by NVIDIA's package ``nvtx``; ``None`` where neither is here.

    PyTorch is not imported for it: where it has not been, there is nothing of it to name.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda is not None:
        return _Torch()
    return _Package() if _has_package() else None


@contextmanager
def annotate(module: nn.Module, marker: Marker | None = None) -> Iterator[None]:
    """Put a range around the forward of each submodule, named by its path, until the block ends.

    Args:
        module: the model; its own range is named by its class. Its hooks are taken away at the end.
        marker: what draws the ranges; NVTX by default. Without any (`available` is false) there
            are no hooks, and nothing changes.

    Example:
        >>> from torch import nn, zeros
        >>> class Names(list):
        ...     push, pop = list.append, lambda self: None
        >>> names = Names()
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with annotate(net, names):
        ...     _ = net(zeros(1, 2))
        >>> names
        ['Sequential', '0 (Linear)', '1 (ReLU)']
    """
    drawn = marker if marker is not None else found_marker()
    if drawn is None:
        yield
        return
    with ExitStack() as stack:
        for path, part in module.named_modules():
            kind = type(part).__name__
            for hook in _hooked(part, f"{path} ({kind})" if path else kind, drawn):
                stack.callback(hook)
        yield


def _hooked(part: nn.Module, name: str, marker: Marker) -> Iterator[Callable[[], None]]:
    """Put a range around one module's forward, and yield what takes the hooks away."""

    def begin(*_: object) -> None:
        marker.push(name)

    def end(*_: object) -> None:
        marker.pop()

    yield part.register_forward_pre_hook(begin).remove
    # A forward that fails ends its range as well: the ranges around it must not be left open.
    yield part.register_forward_hook(end, always_call=True).remove


@contextmanager
def _range(marker: Marker, name: str) -> Iterator[None]:
    marker.push(name)
    try:
        yield
    finally:
        marker.pop()


def _has_package() -> bool:
    return find_spec("nvtx") is not None


class _Torch:
    """The NVTX that PyTorch for CUDA is built with."""

    def push(self, name: str) -> None:
        import torch

        torch.cuda.nvtx.range_push(name)  # type: ignore[no-untyped-call]

    def pop(self) -> None:
        import torch

        torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]


class _Package:
    """NVIDIA's Python package ``nvtx``."""

    def push(self, name: str) -> None:
        import nvtx  # type: ignore[import-not-found, unused-ignore]

        nvtx.push_range(name)

    def pop(self) -> None:
        import nvtx  # type: ignore[import-not-found, unused-ignore]

        nvtx.pop_range()
