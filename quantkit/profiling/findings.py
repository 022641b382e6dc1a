"""What is slow about a profile, with the figure that it costs: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from quantkit.interfaces import Finding, Severity
from quantkit.profiling import step_findings
from quantkit.profiling.flow import Flow
from quantkit.profiling.kinds import Unit, Work
from quantkit.profiling.report import KernelTime, Totals
from quantkit.profiling.step_findings import Judged
from quantkit.profiling.steps import Step

#: From these shares on, it is a finding.
LEAST_CUDA_CORES: Final = 0.05
LEAST_UNFILLED: Final = 0.2
LEAST_IDLE: Final = 0.5
LEAST_OVERHEAD: Final = 0.3
LEAST_BATCH_GAIN: Final = 0.2
LEAST_REFORMAT_KERNELS: Final = 0.05
#: Types for which a GPU may have tensor cores.
_ON_TENSOR_CORES: Final = frozenset({"fp32", "tf32", "fp16", "bf16", "int8", "fp8_e4m3"})


def findings(
    device: Literal["cpu", "cuda"],
    kernels: Sequence[KernelTime],
    totals: Totals | None,
    steps: Sequence[Step] = (),
    walls: Mapping[int, Sequence[float]] | None = None,
) -> tuple[Finding, ...]:
    """What is slow, the costliest first; what has no measured cost comes last.

    Args:
        device: where it ran, or is to run.
        kernels: with times.
        totals: of a run; ``None`` where nothing ran.
        steps: what the runtime made of the model; empty where it does not tell.
        walls: seconds of runs by batch size, the first being that of the profile.
    """
    flow = Flow(tuple(steps))
    found: list[Judged] = [*step_findings.islands(flow), *step_findings.ping_pong(flow)]
    found += step_findings.dequantized(flow)
    found += step_findings.reformats(flow, device) if steps else _reformat_kernels(kernels)
    if device == "cuda":
        found += [*step_findings.channels(flow), *_cuda_cores(kernels), *_unfilled(kernels)]
    if totals is not None:
        found += _launch_bound(totals) if device == "cuda" else _overhead(totals)
    found += _larger_batch(walls or {})
    return tuple(
        finding for _, finding in sorted(found, key=lambda f: -1.0 if f[0] is None else -f[0])
    )


def _reformat_kernels(kernels: Sequence[KernelTime]) -> Iterator[Judged]:
    moving = [kernel for kernel in kernels if kernel.work is Work.REFORMAT]
    share = sum(kernel.share for kernel in moving)
    if share >= LEAST_REFORMAT_KERNELS:
        yield (
            share,
            Finding(
                severity=Severity.WARNING,
                code="reformats",
                where=_named(moving),
                why=f"{len(moving)} kernels only move values into another layout, "
                f"{100.0 * share:.1f} % of the time.",
                fix="Give the layers on both sides one type and layout: quantize both or neither, "
                "and run convolutions in channels_last.",
            ),
        )


def _cuda_cores(kernels: Sequence[KernelTime]) -> Iterator[Judged]:
    """Products that ran beside the tensor cores."""
    products = {Work.MATMUL, Work.CONVOLUTION, Work.ATTENTION}
    slow = [
        kernel
        for kernel in kernels
        if kernel.work in products
        and kernel.unit is Unit.CUDA_CORES
        and kernel.dtype in _ON_TENSOR_CORES
    ]
    share = sum(kernel.share for kernel in slow)
    if share >= LEAST_CUDA_CORES:
        types = ", ".join(dict.fromkeys(kernel.dtype for kernel in slow))
        yield (
            share,
            Finding(
                severity=Severity.WARNING,
                code="cuda-cores",
                where=_named(slow),
                why=f"{len(slow)} kernels multiply {types} on CUDA cores, {100.0 * share:.1f} % of "
                "the time of all kernels; tensor cores are idle meanwhile.",
                fix="Compute in a type that this GPU's tensor cores take (`quantkit hardware`), "
                "with channels in multiples of 16; for float32 allow TF32.",
            ),
        )


def _unfilled(kernels: Sequence[KernelTime]) -> Iterator[Judged]:
    """Kernels with fewer blocks than the GPU has multiprocessors."""
    few = [k for k in kernels if k.blocks_per_sm is not None and k.blocks_per_sm < 1.0]
    share = sum(kernel.share for kernel in few)
    if share >= LEAST_UNFILLED:
        least = min(kernel.blocks_per_sm or 0.0 for kernel in few)
        yield (
            share,
            Finding(
                severity=Severity.WARNING,
                code="batch-too-small",
                where=_named(few),
                why=f"{len(few)} kernels start fewer blocks than the GPU has multiprocessors (down "
                f"to {least:.2f} a multiprocessor), {100.0 * share:.1f} % of the time.",
                fix="Run larger batches, or several requests at once.",
            ),
        )


def _launch_bound(totals: Totals) -> Iterator[Judged]:
    """The GPU waits for the processor."""
    idle, busy = totals.idle_share, totals.least_busy_s
    launches = totals.launch_s or 0.0
    if idle >= LEAST_IDLE or (launches >= totals.busy_s > 0.0 and idle > 0.0):
        yield (
            idle,
            Finding(
                severity=Severity.WARNING,
                code="launch-bound",
                where="the whole run",
                why=f"The GPU is idle for {100.0 * idle:.1f} % of a run: kernels take "
                f"{1e3 * busy:.3f} ms, to queue them {1e3 * launches:.3f} ms, and a run "
                f"{1e3 * totals.quickest_s:.3f} ms.",
                fix="Capture it as a CUDA graph, compile it, or run larger batches.",
            ),
        )


def _overhead(totals: Totals) -> Iterator[Judged]:
    """The processor does other things than operators."""
    between = totals.idle_share
    if between >= LEAST_OVERHEAD:
        yield (
            between,
            Finding(
                severity=Severity.WARNING,
                code="overhead-bound",
                where="the whole run",
                why=f"{100.0 * between:.1f} % of a run is spent between operators: they take "
                f"{1e3 * totals.least_busy_s:.3f} ms of {1e3 * totals.quickest_s:.3f} ms.",
                fix="Run it in ONNX Runtime or compile it (`quantkit bench` compares), or run "
                "larger batches.",
            ),
        )


def _larger_batch(walls: Mapping[int, Sequence[float]]) -> Iterator[Judged]:
    """A sample takes less time in a larger batch: measured, by the quickest runs."""
    if len(walls) < 2:
        return
    (batch, times), *others = walls.items()
    more, longer = max(others)
    one, many = min(times) / batch, min(longer) / more
    gain = 1.0 - many / one
    if more > batch and gain >= LEAST_BATCH_GAIN:
        yield (
            gain,
            Finding(
                severity=Severity.INFO,
                code="batch-too-small",
                where=f"batch {batch}",
                why=f"A sample takes {1e3 * one:.3f} ms at batch {batch} and {1e3 * many:.3f} ms "
                f"at batch {more}, {100.0 * gain:.0f} % less.",
                fix="Run larger batches where latency allows.",
            ),
        )


def _named(kernels: Sequence[KernelTime], most: int = 4) -> str:
    """The layers of kernels that take longest, or their names."""
    slowest = sorted(kernels, key=lambda kernel: -kernel.seconds)
    names = list(dict.fromkeys(kernel.layer or kernel.name for kernel in slowest))
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
