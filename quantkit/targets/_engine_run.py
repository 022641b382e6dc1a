"""Runs an engine of TensorRT or TensorRT-RTX on PyTorch's CUDA tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import torch
from torch import Tensor

from quantkit.errors import TargetError
from quantkit.targets._engine_lane import CudaLane, Lane

if TYPE_CHECKING:
    import numpy as np
    import tensorrt as api

#: The shape of each input, in order.
Sizes: TypeAlias = tuple[tuple[int, ...], ...]

#: For how many shapes of the inputs buffers (and graphs) are kept at a time.
KEPT_SHAPES: Final = 8


@dataclass(frozen=True)
class _Slot:
    """What belongs to one shape of the inputs."""

    context: api.IExecutionContext
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    replay: Callable[[], None] | None


class EngineRunner:
    """An engine, loaded once, and run as often as is wanted; not by two threads at once.

    A call takes tensors by the names of the inputs and returns those of the outputs. It queues the
    work and returns: what the caller queues on its current stream comes in order with it.

    - Inputs that are on the device already, of the right type and contiguous, are read where they
      are; others are copied. With ``cuda_graph`` all are copied, to where the graph reads them.
    - Outputs are written to buffers that belong to the runner: the next call with inputs of the
      same shape overwrites them. Clone what is to stay.

    Args:
        trt: the module of the SDK that built it: ``tensorrt`` or ``tensorrt_rtx``.
        engine: the engine, which may be loaded (see ``quantkit.tensorrt.trust``).
        name: what it is called in errors.
        cuda_graph: queue each shape's work as one CUDA graph, captured on its first call.
        host_code: the engine holds code for the host, as those that are version compatible do.
        lane: where the work is queued; by default a new stream of the current CUDA device.

    Raises:
        TargetError: the engine does not load here, or has tensors that cannot be served.
    """

    def __init__(
        self,
        trt: Any,
        engine: bytes,
        name: str,
        *,
        cuda_graph: bool = False,
        host_code: bool = False,
        lane: Lane | None = None,
    ) -> None:
        self._name, self._cuda_graph = name, cuda_graph
        self._lane = lane or CudaLane()
        # All of them live as long as the engine does.
        self._logger: Any = trt.Logger(trt.Logger.ERROR)
        try:
            self._runtime: api.Runtime = trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # the binding of a null pointer
            raise TargetError(
                f"cannot run {name}: the SDK does not start here; it needs an NVIDIA GPU with a "
                "driver that is new enough"
            ) from error
        if host_code:
            self._runtime.engine_host_code_allowed = True
        loaded = self._runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise TargetError(
                f"{name} does not load here: it was built for another GPU, or by another version "
                "of the SDK; build it here again (one that is version compatible loads with "
                "version_compatible=True)"
            )
        self._engine: api.ICudaEngine = loaded
        names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
        self._types = {n: _torch_dtype(trt, loaded.get_tensor_dtype(n)) for n in names}
        mode = trt.TensorIOMode.INPUT
        self.inputs = tuple(n for n in names if loaded.get_tensor_mode(n) == mode)
        self.outputs = tuple(n for n in names if n not in self.inputs)
        host = [n for n in names if loaded.get_tensor_location(n) == trt.TensorLocation.HOST]
        if host:
            raise TargetError(
                f"{name} reads or writes {', '.join(host)} on the host, as a shape; give the model "
                "inputs and outputs that are no shapes"
            )
        #: An ``IProfiler`` that each layer's time is told to, by contexts made after it is set.
        self.profiler: Any = None
        self._shared: api.IExecutionContext | None = None
        self._set: Sizes | None = None  # what the shared context is set to
        self._slots: OrderedDict[Sizes, _Slot] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what runs, and free the buffers and graphs."""
        self._lane.synchronize()
        self._slots.clear()
        self._shared = self._set = None

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name, in the engine's order.

        Raises:
            TargetError: the inputs are not the engine's, or do not fit the sizes it is built for.
        """
        if set(batch) != set(self.inputs):
            raise TargetError(
                f"a batch has {', '.join(sorted(batch))}, but {self._name} takes "
                f"{', '.join(self.inputs)}; name each tensor as its input"
            )
        with self._lane.entered():
            given = {name: self._on_device(name, batch[name]) for name in self.inputs}
            slot = self._slot(given)
            if slot.replay is None:
                self._bind(slot.context, given)
                self._execute(slot.context)
            else:
                for name, value in given.items():
                    slot.inputs[name].copy_(value)
                slot.replay()
        for output in slot.outputs.values():
            self._lane.hand_over(output)
        return dict(slot.outputs)

    def arrays(self, batch: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of a batch of NumPy arrays, in the engine's order, copied.

        Raises:
            TargetError: as a call does.
        """
        outputs = self({name: torch.tensor(array) for name, array in batch.items()})
        copied = [output.cpu() for output in outputs.values()]
        return [(c.float() if c.dtype == torch.bfloat16 else c).numpy().copy() for c in copied]

    def _on_device(self, name: str, value: Tensor) -> Tensor:
        want, value = self._types[name], value.detach()
        if value.is_floating_point() != want.is_floating_point:
            raise TargetError(
                f"input {name} is {_told(value.dtype)}, but {self._name} takes {_told(want)}; "
                "convert it"
            )
        ready = value.to(self._lane.device, want, non_blocking=True).contiguous()
        if ready is value:
            self._lane.lend(value)
        return ready

    def _slot(self, given: Mapping[str, Tensor]) -> _Slot:
        """The buffers for inputs of these shapes, made and captured where there are none yet."""
        key = tuple(tuple(given[name].shape) for name in self.inputs)
        slot = self._slots.get(key)
        if self._set != key:
            self._set = None  # until all of it is set: a shape may be refused half-way
        if slot is None:
            if len(self._slots) >= KEPT_SHAPES:
                self._lane.synchronize()  # a graph that is dropped may still run
                self._slots.popitem(last=False)
            slot = self._slots[key] = self._made(given)
        elif slot.replay is None and self._set != key:
            self._sized(slot.context, given)
            self._bind(slot.context, slot.outputs)
        self._slots.move_to_end(key)
        self._set = key
        return slot

    def _made(self, given: Mapping[str, Tensor]) -> _Slot:
        # A graph holds addresses within its context: no other shape may be set on that.
        context = self._context(own=self._cuda_graph)
        self._sized(context, given)
        outputs = {name: self._output(context, name) for name in self.outputs}
        self._bind(context, outputs)
        if not self._cuda_graph:
            return _Slot(context, {}, outputs, None)
        inputs = {name: value.clone() for name, value in given.items()}
        self._bind(context, inputs)
        # The first run of a shape sets up what cannot be captured.
        self._execute(context)
        self._lane.synchronize()
        try:
            replay = self._lane.capture(lambda: self._execute(context))
        except (RuntimeError, TargetError) as error:
            raise TargetError(
                f"{self._name} cannot be captured as a CUDA graph "
                f"({' '.join(str(error).split())[:300]}); run it without: cuda_graph=False"
            ) from error
        return _Slot(context, inputs, outputs, replay)

    def _context(self, *, own: bool) -> api.IExecutionContext:
        if own or self._shared is None:
            made = self._engine.create_execution_context()
            if made is None:
                raise TargetError(
                    f"{self._name} finds no memory to run in; free GPU memory, or build it for "
                    "smaller shapes"
                )
            if self.profiler is not None:
                made.profiler = self.profiler
            if own:
                return made
            self._shared = made
        return self._shared

    def _sized(self, context: api.IExecutionContext, given: Mapping[str, Tensor]) -> None:
        for name, value in given.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise TargetError(
                    f"input {name} has shape {tuple(value.shape)}, outside the sizes that "
                    f"{self._name} was built for; set shapes to include it"
                )

    def _output(self, context: api.IExecutionContext, name: str) -> Tensor:
        shape = tuple(context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise TargetError(
                f"the shape of output {name} depends on the data; give the model outputs of known "
                "shape"
            )
        return torch.empty(shape, dtype=self._types[name], device=self._lane.device)

    def _bind(self, context: api.IExecutionContext, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise TargetError(f"{self._name} refuses the memory of {name}; build it again")

    def _execute(self, context: api.IExecutionContext) -> None:
        if not context.execute_async_v3(self._lane.handle):
            raise TargetError(f"{self._name} did not run; its messages above say why")


def run_engine(
    trt: Any,
    engine: bytes,
    name: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    cuda_graph: bool = False,
    host_code: bool = False,
) -> list[list[np.ndarray]]:
    """The outputs of an engine for each batch, in the engine's order.

    Raises:
        TargetError: the engine does not load here, or a batch does not fit its inputs.
    """
    with EngineRunner(trt, engine, name, cuda_graph=cuda_graph, host_code=host_code) as runner:
        return [runner.arrays(batch) for batch in batches]


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "BF16": torch.bfloat16,
        "INT8": torch.int8,
        "UINT8": torch.uint8,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "BOOL": torch.bool,
    }
    if dtype.name not in known:
        raise TargetError(
            f"the engine has an input or output of {dtype.name}; give the model float ones"
        )
    return known[dtype.name]
