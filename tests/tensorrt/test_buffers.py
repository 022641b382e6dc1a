"""Memory on the device: PyTorch's, or PyCUDA's in the context that PyTorch uses."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.tensorrt.buffers import PyCudaBuffers, TorchBuffers, open_buffers


class FakeCuda(ModuleType):
    """``pycuda.driver`` that notes its calls; memory is what an address maps to."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.depth = 0
        self.Context = SimpleNamespace(pop=self._pop)

    def init(self) -> None:
        self.calls.append("init")

    def Device(self, index: int) -> Any:  # noqa: N802  # its name in PyCUDA
        def retain_primary_context() -> Any:
            self.calls.append(f"retain primary {index}")
            return SimpleNamespace(push=self._push)

        return SimpleNamespace(retain_primary_context=retain_primary_context)

    def _push(self) -> None:
        self.depth += 1

    def _pop(self) -> None:
        self.depth -= 1

    def mem_alloc(self, size: int) -> Any:
        assert self.depth == 1, "memory is allocated in the shared context"
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = np.zeros(size, np.uint8)

        class Allocation:
            def __int__(self) -> int:
                return address

            def free(allocation) -> None:  # noqa: N805  # `self` is the module here
                assert self.depth == 1
                del self.memory[address]

        return Allocation()

    def memcpy_htod(self, where: Any, array: np.ndarray) -> None:
        assert self.depth == 1
        assert self.memory[int(where)].nbytes == array.nbytes
        self.memory[int(where)][:] = array.reshape(-1).view(np.uint8)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    package, driver = ModuleType("pycuda"), FakeCuda()
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    return driver


def test_pycuda_works_in_the_primary_context_of_torchs_device(cuda: FakeCuda) -> None:
    buffers = open_buffers("pycuda")
    first = torch.arange(6.0).reshape(2, 3)
    address = buffers.put("x", first.numpy())
    other = buffers.put("index", np.arange(2))
    assert cuda.calls == ["init", "retain primary 3"]
    assert cuda.memory[address].tobytes() == first.numpy().tobytes()
    assert cuda.memory[other].tobytes() == np.arange(2).tobytes()
    assert buffers.put("x", (first + 1).numpy()) == address
    assert cuda.memory[address].tobytes() == (first + 1).numpy().tobytes()
    buffers.close()
    buffers.close()
    assert cuda.memory == {}
    assert cuda.depth == 0, "each push of the context is undone"


def test_the_context_is_popped_when_a_copy_fails(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(size: int) -> None:
        raise cuda.Error("out of memory")

    monkeypatch.setattr(cuda, "mem_alloc", full)
    with pytest.raises(cuda.Error):
        PyCudaBuffers().put("x", np.zeros(1))
    assert cuda.depth == 0


def test_its_absence_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingDependencyError, match="pip install pycuda"):
        open_buffers("pycuda")


def test_pycuda_without_a_gpu_says_so(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> None:
        raise cuda.Error("no device")

    monkeypatch.setattr(cuda, "init", no_device)
    with pytest.raises(TargetError, match=r"PyCUDA finds no GPU \(no device\)"):
        open_buffers("pycuda")


def test_torch_without_cuda_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TargetError, match="PyTorch sees none; install"):
        open_buffers("torch")


@pytest.mark.gpu
def test_torchs_buffers_hold_what_was_put_last() -> None:
    buffers = TorchBuffers()
    address = buffers.put("x", np.zeros((2, 3), np.float32))
    values = torch.arange(6.0).reshape(2, 3)
    assert buffers.put("x", values.numpy()) == address
    assert torch.equal(buffers._buffers["x"].cpu(), values)
    assert buffers._buffers["x"].data_ptr() == address
