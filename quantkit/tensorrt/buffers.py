"""Memory on the GPU from which TensorRT's calibrator reads: of PyTorch, or of PyCUDA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from quantkit.errors import MissingDependencyError, TargetError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

#: Who allocates: PyTorch, or PyCUDA in the context that PyTorch uses too.
BufferKind = Literal["torch", "pycuda"]
BUFFER_KINDS: Final[tuple[BufferKind, ...]] = get_args(BufferKind)


class DeviceBuffers(ABC):
    """One buffer an input, filled again with each batch."""

    @abstractmethod
    def put(self, name: str, values: np.ndarray) -> int:
        """Copy ``values`` (contiguous) and return their address on the device.

        The copy is complete on return, and stays until the next ``put`` of the same name, which
        has the same shape, or ``close``.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the buffers."""


def open_buffers(kind: BufferKind) -> DeviceBuffers:
    """Buffers on the current device.

    Raises:
        TargetError: there is no device that can be used.
        MissingDependencyError: PyCUDA was asked for, and is not installed.
    """
    return PyCudaBuffers() if kind == "pycuda" else TorchBuffers()


class TorchBuffers(DeviceBuffers):
    """Buffers that PyTorch's allocator owns."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise TargetError(
                "calibration needs memory on a GPU, and PyTorch sees none; install a build of "
                "PyTorch for CUDA, or allocate with PyCUDA: buffers='pycuda'"
            )
        # Now, and by number: the builder may ask for batches on another thread than this.
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._buffers: dict[str, Tensor] = {}

    def put(self, name: str, values: np.ndarray) -> int:
        """Copy to the buffer of ``name`` on the current stream, and wait for it."""
        import torch

        host = torch.from_numpy(values)
        if name not in self._buffers:
            self._buffers[name] = torch.empty(host.shape, dtype=host.dtype, device=self._device)
        self._buffers[name].copy_(host)
        torch.cuda.current_stream(self._device).synchronize()
        return self._buffers[name].data_ptr()

    def close(self) -> None:
        """Give the buffers back to PyTorch."""
        self._buffers.clear()


class PyCudaBuffers(DeviceBuffers):
    """Buffers that PyCUDA owns, in the primary context of the device.

    PyTorch and TensorRT use the primary context. ``pycuda.autoinit`` would make a second one,
    whose memory TensorRT cannot read, so it is never used here.
    """

    def __init__(self) -> None:
        import torch

        self._cuda: Any = _pycuda()
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        self._context: Any = self._cuda.Device(index).retain_primary_context()
        self._buffers: dict[str, Any] = {}

    def put(self, name: str, values: np.ndarray) -> int:
        """Copy to the buffer of ``name``; this copy is synchronous."""
        self._context.push()
        try:
            if name not in self._buffers:
                self._buffers[name] = self._cuda.mem_alloc(values.nbytes)
            self._cuda.memcpy_htod(self._buffers[name], values)
        finally:
            self._cuda.Context.pop()
        return int(self._buffers[name])

    def close(self) -> None:
        """Free the buffers; the context is the others' too, and stays."""
        if not self._buffers:
            return
        self._context.push()
        try:
            for buffer in self._buffers.values():
                buffer.free()
        finally:
            self._buffers.clear()
            self._cuda.Context.pop()


def _pycuda() -> Any:
    try:
        import pycuda.driver as cuda
    except ImportError as error:  # also where it is there, and CUDA's driver is not
        raise MissingDependencyError(
            f"buffers='pycuda' needs PyCUDA, which cannot be loaded ({error}); run `pip install "
            "pycuda` on a machine with CUDA, or leave the option out: PyTorch allocates as well"
        ) from error
    try:
        cuda.init()
    except cuda.Error as error:
        raise TargetError(
            f"PyCUDA finds no GPU ({error}); calibration needs one with its driver"
        ) from error
    return cuda
