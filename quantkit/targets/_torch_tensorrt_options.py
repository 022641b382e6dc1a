"""The names of Torch-TensorRT's options: it drops those misspelt without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

#: The version whose names these are: the fields of ``torch_tensorrt.dynamo.CompilationSettings``.
VERSION = "2.13.0"
_FIELDS = """
assume_dynamic_shape_support attn_bias_is_causal autocast_calibration_dataloader
autocast_excluded_nodes autocast_excluded_ops autocast_low_precision_type
autocast_max_depth_of_reduction autocast_max_output_threshold cache_built_engines
cpu_memory_budget decompose_attention device disable_tf32 dla_global_dram_size
dla_local_dram_size dla_sram_size dryrun dynamically_allocate_resources enable_autocast
enable_cross_compile_for_windows enable_experimental_decompositions
enable_resource_partitioning enable_weight_streaming engine_capability
fallback_data_dependent_ops hardware_compatible immutable_weights l2_limit_for_tiling
lazy_engine_init max_aux_streams min_block_size num_avg_timing_iters offload_module_to_cpu
optimization_level pass_through_build_failures refit_identical_engine_weights
require_full_compilation reuse_cached_engines sparse_weights strip_engine_weights
tiling_optimization_level timing_cache_path torch_executed_ops truncate_double
use_distributed_mode_trace use_fast_partitioner use_fp32_acc version_compatible workspace_size
"""
SETTINGS = frozenset(_FIELDS.split())
#: Read beside the fields, by both ways to compile.
ENGINE_CACHE = frozenset({"custom_engine_cache", "engine_cache_dir", "engine_cache_size"})

#: What earlier versions had, and what to do instead.
_GONE = {
    "enabled_precisions": (
        "networks are strongly typed now; quantize for few bits, and for float16 set "
        "enable_autocast=True and autocast_low_precision_type=torch.float16"
    ),
    "use_explicit_typing": "networks are always strongly typed now; leave it out",
    "debug": "wrap the call in torch_tensorrt.dynamo.Debugger instead",
    "make_refittable": "set immutable_weights=False",
    "refit": "set immutable_weights=False",
    "truncate_long_and_double": "set truncate_double",
    "use_python_runtime": "the runtime is chosen by itself now; leave it out",
    "torch_executed_modules": "it has no effect; name operators in torch_executed_ops",
}
#: What the target itself decides.
_OURS = {
    "device": "choose the GPU with torch.cuda.set_device",
    "dryrun": "call inspect, which is a dry run",
    "enable_cross_compile_for_windows": "build on Windows",
    "pass_through_build_failures": "failures are always told",
}


def check_names(options: Mapping[str, Any], own: Iterable[str]) -> None:
    """Refuse names that Torch-TensorRT would drop without a word.

    Args:
        options: by name.
        own: names that the target has as fields of its own.

    Raises:
        ValueError: names the option, and the nearest that there is, or what has replaced it.

    Example:
        >>> check_names({"optimisation_level": 3}, own=["min_block_size"])
        Traceback (most recent call last):
        ValueError: Torch-TensorRT has no option 'optimisation_level' and would ignore it; did you
        mean 'optimization_level'?
    """
    for name in options:
        if name in set(own):
            raise ValueError(f"option {name!r} is a field of the target; give it as {name}=…")
        if name in _GONE:
            raise ValueError(
                f"Torch-TensorRT {VERSION} has no option {name!r} any more: {_GONE[name]}"
            )
        if name in _OURS:
            raise ValueError(f"option {name!r} is not yours to set here: {_OURS[name]}")
        if name not in SETTINGS | ENGINE_CACHE:
            raise ValueError(
                f"Torch-TensorRT has no option {name!r} and would ignore it; {_nearest(name)}"
            )


def _nearest(name: str) -> str:
    names = sorted((SETTINGS | ENGINE_CACHE) - _OURS.keys())
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"


def operator_names(names: Iterable[str]) -> frozenset[str]:
    """Names of operators as Torch-TensorRT compares them: ``torch.ops.aten.relu.default``.

    Args:
        names: with or without ``torch.ops.``, and with or without an overload; all of them then.

    Raises:
        ValueError: PyTorch has no such operator.

    Example:
        >>> sorted(operator_names(["aten.silu"]))
        ['torch.ops.aten.silu.default', 'torch.ops.aten.silu.out']
    """
    return frozenset(full for name in names for full in _overloads(name))


def _overloads(name: str) -> list[str]:
    import torch

    if name.startswith("_operator."):
        return [name]
    parts = name.removeprefix("torch.ops.").split(".")
    packet: Any = getattr(getattr(torch.ops, parts[0], None), parts[1], None) if parts[1:] else None
    if packet is None or len(parts) > 3:
        raise ValueError(
            f"torch_executed_ops: PyTorch has no operator {name!r}; write such as aten.relu"
        )
    if len(parts) == 3 and parts[2] not in packet.overloads():
        raise ValueError(
            f"torch_executed_ops: {'.'.join(parts[:2])} has no overload {parts[2]!r}; there are: "
            f"{', '.join(packet.overloads())}"
        )
    chosen = parts[2:] or packet.overloads()
    return [f"torch.ops.{parts[0]}.{parts[1]}.{overload}" for overload in chosen]
