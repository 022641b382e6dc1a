"""What a profile found: kernels, layers, how full the device was, and what is slow about it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.profiling.kinds import Confidence, Unit, Work
from quantkit.profiling.report_rows import layer_row, milliseconds, plain

if TYPE_CHECKING:
    from quantkit.interfaces import Finding
    from quantkit.profiling.layer_memory import MemoryReport
    from quantkit.profiling.roofline import Roofline
    from quantkit.profiling.steps import Step


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """What one kernel took for one layer, a run.

    On a GPU it is a CUDA kernel, in ONNX Runtime a node of its graph, else an operator of PyTorch
    less the operators that it calls.

    Attributes:
        name: as the profiler prints it.
        layer: the layer of the model that it served; empty where that is not known.
        op: the operator that asked for it, such as ``aten::conv2d`` or ``QLinearConv``.
        unit: what of the device did the work.
        confidence: how well the name supports the unit and the type.
        dtype: what it multiplies, or reads, such as ``int8``; ``unknown`` where that is not told.
        work: what it does.
        family: the library it comes from; empty where that is not known.
        why: what told the unit and the type.
        calls: how often it ran, a run of the model.
        seconds: a run of the model, the median over the runs.
        share: of the time of all kernels, 0 to 1.
        blocks_per_sm: thread blocks for each multiprocessor, the fewest of any call; ``None``
            where that is not told.
    """

    name: str
    layer: str
    op: str
    unit: Unit
    confidence: Confidence
    dtype: str
    work: Work
    family: str
    why: str
    calls: float
    seconds: float
    share: float
    blocks_per_sm: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no profile can hold."""
        if not (self.seconds >= 0.0 and self.calls > 0.0 and 0.0 <= self.share <= 1.0):
            raise ValueError(
                f"{self.name}: a kernel has a time of 0 or more, calls, and a share of 0 to 1, got "
                f"{self.seconds}, {self.calls} and {self.share}"
            )


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """What one layer took, a run of the model.

    Attributes:
        name: the layer's, as quantkit writes it in plans and files.
        op: its operators, the one that took most first.
        precision: what it computes in, such as ``int8`` or ``float32``; empty where not told.
        unit: where most of its time went.
        kernels: how many kernels it is made of.
        seconds: the sum of its kernels; ``None`` where there are no times.
        share: of the time of all kernels, 0 to 1; ``None`` where there are no times.
    """

    name: str
    op: str
    precision: str
    unit: Unit
    kernels: int
    seconds: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Times of a whole run of the model, in seconds, medians over the runs.

    Attributes:
        runs: how many were recorded.
        wall_s: of a run without a profiler; ``None`` where the trace was recorded elsewhere.
        profiled_s: of a run with it.
        busy_s: of a recorded run, how long any kernel ran.
        quickest_s: the quickest run: without the profiler, where any was.
        least_busy_s: the least that kernels took in any recorded run.
        launch_s: how long the processor took to queue kernels; ``None`` on a processor.
    """

    runs: int
    wall_s: float | None
    profiled_s: float
    busy_s: float
    quickest_s: float
    least_busy_s: float
    launch_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        times = (self.profiled_s, self.quickest_s)
        if self.runs < 1 or min(times) <= 0.0 or min(self.busy_s, self.least_busy_s) < 0.0:
            raise ValueError(
                "a profile has 1 run or more, and times over 0, got "
                f"{self.runs} and {self.profiled_s}"
            )

    @property
    def busy_share(self) -> float:
        """The share of a recorded run in which any kernel ran, 0 to 1.

        Example:
            >>> Totals(runs=3, wall_s=0.9, profiled_s=1.0, busy_s=0.25, quickest_s=0.8,
            ...        least_busy_s=0.2).busy_share
            0.25
        """
        return min(1.0, self.busy_s / self.profiled_s)

    @property
    def gaps_s(self) -> float:
        """The time of a recorded run in which no kernel ran."""
        return max(0.0, self.profiled_s - self.busy_s)

    @property
    def idle_share(self) -> float:
        """The share of a run in which no kernel ran, 0 to 1, by the quickest runs.

        What else the machine does only adds to a run, so the quickest has the least of it; and what
        the profiler adds to a run is no gap of the model.

        Example:
            >>> Totals(runs=3, wall_s=0.9, profiled_s=1.0, busy_s=0.25, quickest_s=0.8,
            ...        least_busy_s=0.2).idle_share
            0.75
        """
        return max(0.0, 1.0 - self.least_busy_s / self.quickest_s)

    @property
    def overhead(self) -> float | None:
        """What the profiler added to a run, as a share of it; ``None`` where that is not known.

        Example:
            >>> Totals(runs=1, wall_s=1.0, profiled_s=1.25, busy_s=1.0, quickest_s=1.0,
            ...        least_busy_s=1.0).overhead
            0.25
        """
        return None if self.wall_s is None else self.profiled_s / self.wall_s - 1.0


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """Where the time of a model goes.

    Attributes:
        subject: the model.
        runtime: what ran it, with its version.
        device: the processor or GPU.
        batch: samples a run; ``None`` where a trace does not tell it.
        kernels: the slowest first.
        layers: in the order in which they run.
        totals: ``None`` where nothing ran: an engine without a GPU.
        findings: what is slow, the worst first.
        steps: what the runtime made of the model, with the tensors between; empty where it does
            not tell.
        notes: what cannot be told, and why; a sentence each.
        roofline: where each layer lies under the roof of the device; ``None`` where none was asked
            for.
        memory: what lives while each layer runs; ``None`` where it was not asked for.
    """

    subject: str
    runtime: str
    device: str
    batch: int | None
    kernels: tuple[KernelTime, ...]
    layers: tuple[LayerTime, ...]
    totals: Totals | None
    findings: tuple[Finding, ...] = ()
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    roofline: Roofline | None = None
    memory: MemoryReport | None = None

    def to_json(self) -> str:
        """Every field, and what follows from the times."""
        import quantkit

        told = asdict(self)
        for name, part in (("roofline", self.roofline), ("memory", self.memory)):
            told[name] = None if part is None else json.loads(part.to_json())
        if self.totals is not None:
            told["totals"] |= {
                "busy_share": self.totals.busy_share,
                "gaps_s": self.totals.gaps_s,
                "idle_share": self.totals.idle_share,
                "overhead": self.totals.overhead,
            }
        return json.dumps(plain({"quantkit": quantkit.__version__, **told}))

    def save(self, path: Path) -> None:
        """Write the JSON, whole or not at all.

        Raises:
            ExportError: it cannot be written.
        """
        from quantkit.files import replacing

        with replacing(path) as temporary:
            temporary.write_text(self.to_json() + "\n", encoding="utf-8")

    def summary(self) -> list[str]:
        """How long a run took, how full the device was, and what the profiler added."""
        if self.totals is None:
            return []
        t = self.totals
        alone = "" if t.wall_s is None else f"{milliseconds(t.wall_s)} ms without the profiler; "
        added = "" if t.overhead is None else f" ({100.0 * t.overhead:+.0f} %)"
        queued = "" if t.launch_s is None else f", to queue them {milliseconds(t.launch_s)} ms"
        return [
            f"A run takes {alone}{milliseconds(t.profiled_s)} ms with it{added}; medians of "
            f"{t.runs} runs",
            f"Kernels take {milliseconds(t.busy_s)} ms of that, {100.0 * t.busy_share:.0f} %"
            f"{queued}",
        ]

    def table(self, most: int = 15) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The head, and a row for each of the ``most`` layers that take longest."""
        head = ("ms", "share", "runs in", "unit", "operator", "layer")
        timed = [layer for layer in self.layers if layer.seconds is not None]
        slowest = sorted(timed, key=lambda layer: -(layer.seconds or 0.0))
        return head, [layer_row(layer) for layer in (slowest or list(self.layers))[:most]]

    def kernel_table(self, most: int = 15) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The head, and a row for each of the ``most`` kernels that take longest in all layers."""
        head = ("ms", "share", "calls", "type", "unit", "sure", "kernel")
        return head, [
            (
                milliseconds(sum(k.seconds for k in group)),
                f"{100.0 * sum(k.share for k in group):.1f} %",
                f"{sum(k.calls for k in group):.0f}",
                group[0].dtype,
                str(group[0].unit),
                str(group[0].confidence),
                group[0].name,
            )
            for group in self._by_kernel()[:most]
        ]

    def _by_kernel(self) -> list[list[KernelTime]]:
        groups: dict[tuple[str, str], list[KernelTime]] = {}
        for kernel in self.kernels:
            groups.setdefault((kernel.name, kernel.dtype), []).append(kernel)
        return sorted(groups.values(), key=lambda group: -sum(k.seconds for k in group))
