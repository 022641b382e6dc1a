"""Where an engine's work is queued: a stream of its own beside the caller's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


class Lane(ABC):
    """A queue of work on one device, in order with what the caller queues."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where tensors must be."""

    @property
    @abstractmethod
    def handle(self) -> int:
        """The stream as the SDK takes it."""

    @abstractmethod
    def entered(self) -> AbstractContextManager[None]:
        """Within it PyTorch queues here, after the caller's work; after it the caller's waits."""

    @abstractmethod
    def lend(self, tensor: torch.Tensor) -> None:
        """Keep the memory of a caller's tensor until what is queued here has read it."""

    @abstractmethod
    def hand_over(self, tensor: torch.Tensor) -> None:
        """Keep the memory of a tensor from here until what the caller queues has read it."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What queues all that ``work`` queues at once, with the same memory.

        Raises:
            RuntimeError: it cannot be captured.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all that is queued here is done."""


class CudaLane(Lane):
    """A stream of the current CUDA device.

    Not the default stream: TensorRT synchronizes the whole device around that.
    """

    def __init__(self) -> None:
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's

    @property
    def device(self) -> torch.device:
        """The device that was current when this was made."""
        return self._device

    @property
    def handle(self) -> int:
        """The address of CUDA's stream."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Queue behind the caller's stream; it goes on when this one is done."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def lend(self, tensor: torch.Tensor) -> None:
        """Tell PyTorch's allocator of the use."""
        tensor.record_stream(self._stream)

    def hand_over(self, tensor: torch.Tensor) -> None:
        """Tell PyTorch's allocator of the use; called outside ``entered``."""
        tensor.record_stream(torch.cuda.current_stream(self._device))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph; ``work`` has run once before, so that nothing is set up while it is made.

        Raises:
            RuntimeError: the work waits for the device, or allocates.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def synchronize(self) -> None:
        """Wait for this stream alone."""
        self._stream.synchronize()
