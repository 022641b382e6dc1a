"""A ``pynvml`` with the functions and errors of the real one, and GPUs of our choice."""

# ruff: noqa: N802 (the names are NVIDIA's)

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Card:
    """One GPU; ``None`` for memory: the driver does not tell."""

    name: str | bytes
    capability: tuple[int, int]
    memory: int | None = 48 << 30


class FakeNvml(types.ModuleType):
    """Answers as the driver would; errors are those of the real package.

    Args:
        cards: the GPUs.
        error: the error of ``nvmlInit``, by the name of its class.
        old: a driver that does not tell its CUDA version.
    """

    def __init__(self, *cards: Card, error: str | None = None, old: bool = False) -> None:
        super().__init__("pynvml")
        self.cards, self.error, self.old = cards, error, old
        self.open = 0
        self.NVMLError = pynvml.NVMLError
        self.NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound  # type: ignore[attr-defined]

    def nvmlInit(self) -> None:
        if self.error is not None:
            raise getattr(pynvml, self.error)()
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: Card) -> str | bytes:
        return handle.name

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetMemoryInfo(self, handle: Card) -> Any:
        if handle.memory is None:
            raise pynvml.NVMLError_NotSupported()  # type: ignore[attr-defined]
        return types.SimpleNamespace(total=handle.memory)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        if self.old:
            raise pynvml.NVMLError_FunctionNotFound()  # type: ignore[attr-defined]
        return 13020
