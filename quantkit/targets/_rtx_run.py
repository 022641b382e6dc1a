"""Runs an engine of TensorRT or TensorRT-RTX with PyTorch tensors as buffers; needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import TargetError

if TYPE_CHECKING:
    import numpy as np
    import torch


def run_engine(
    trt: Any, engine: Path, batches: Sequence[Mapping[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    """The outputs of an engine for each batch, in the engine's order; not yet run on a GPU.

    Args:
        trt: the module of the SDK that built it: ``tensorrt`` or ``tensorrt_rtx``.
        engine: an engine built here: loading one runs what is in it.
        batches: the inputs by name.

    Raises:
        TargetError: the engine does not load here, or a batch does not fit its inputs.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(engine.read_bytes())
    if loaded is None:
        raise TargetError(
            f"{engine.name} does not load on this GPU: it was built for another compute "
            "capability; set compute_capability to that of this GPU"
        )
    context = loaded.create_execution_context()
    return [_run_batch(trt, loaded, context, batch) for batch in batches]


def _run_batch(
    trt: Any, engine: Any, context: Any, batch: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    import torch

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    outputs = [n for n in names if n not in inputs]
    if set(batch) != set(inputs):
        raise TargetError(
            f"a batch has {', '.join(sorted(batch))}, but the engine takes {', '.join(inputs)}; "
            "name each array as its input"
        )
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # of torch
    buffers: dict[str, torch.Tensor] = {}
    with torch.cuda.stream(stream):
        for name in inputs:
            dtype = _torch_dtype(trt, engine.get_tensor_dtype(name))
            buffers[name] = torch.as_tensor(batch[name]).to("cuda", dtype).contiguous()
            if not context.set_input_shape(name, tuple(buffers[name].shape)):
                raise TargetError(
                    f"input {name} has shape {tuple(buffers[name].shape)}, outside the sizes that "
                    "the engine was built for; set shapes to include it"
                )
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise TargetError(
                    f"the shape of output {name} depends on the data; give the model outputs of "
                    "known shape"
                )
            dtype = _torch_dtype(trt, engine.get_tensor_dtype(name))
            buffers[name] = torch.empty(shape, dtype=dtype, device="cuda")
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.data_ptr())
    if not context.execute_async_v3(stream.cuda_stream):
        raise TargetError("the engine did not run; see its messages above")
    stream.synchronize()
    return [_to_numpy(buffers[name]) for name in outputs]


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    import torch

    host = tensor.cpu()
    return (host.float() if host.dtype == torch.bfloat16 else host).numpy()


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    import torch

    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT8: torch.int8,
        trt.DataType.UINT8: torch.uint8,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.BOOL: torch.bool,
    }
    if dtype not in known:
        raise TargetError(
            f"the engine has an input or output of {dtype}; give the model float ones"
        )
    return known[dtype]
