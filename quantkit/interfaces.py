"""What a plug-in implements, and the plain values that plug-ins speak in.

A plug-in is one file in ``calibrators/``, ``quantkit/passes/``, ``quantkit/rounding/`` or
``quantkit/targets/`` with exactly one concrete class of the base below. Its settings are the
fields of a frozen dataclass; it holds no state of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from quantkit.spec import QuantSpec, Scheme

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from quantkit.batches import Call
    from quantkit.model import QuantizedModel
    from quantkit.numerics import QParams
    from quantkit.recipe import Recipe
    from quantkit.reconstruction.block import Block
    from quantkit.reconstruction.problem import LayerProblem


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"  #: it will not build, or the result is wrong
    WARNING = "warning"  #: it runs, slower or less accurate than planned
    INFO = "info"  #: worth knowing


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing wrong or slow: where, why, and what to do.

    Attributes:
        severity: how bad it is.
        code: the rule's name, such as ``nonzero-zero-point``; stable, for machines.
        where: the node, tensor, layer or recipe key concerned.
        why: one sentence.
        fix: one sentence, imperative.
    """

    severity: Severity
    code: str
    where: str
    why: str
    fix: str

    def __str__(self) -> str:
        """One line, such as ``error[zero-scale] conv1: … Fix: …``."""
        return f"{self.severity}[{self.code}] {self.where}: {self.why} Fix: {self.fix}"


#: Combines a tensor with those of all other processes, in place.
Reduce: TypeAlias = "Callable[[Tensor, Literal['min', 'max', 'sum']], None]"


class Statistic(ABC):
    """One thing that calibration keeps of a tensor: a few tensors of fixed shape.

    A statistic is a frozen value; what it has seen is a mapping of tensors that the observer keeps
    as buffers (so it is copied, moved and saved with the model) and that change in place.
    """

    @abstractmethod
    def start(self, channels: int) -> dict[str, Tensor]:
        """The state before any sample, by names that no other statistic uses."""

    @abstractmethod
    def update(
        self, state: Mapping[str, Tensor], samples: Tensor, low: Tensor, high: Tensor
    ) -> None:
        """Take in ``samples``, ``(channels, samples)``, whose ranges are ``low`` to ``high``."""

    @abstractmethod
    def merge(self, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
        """Take in what another state has seen."""

    @abstractmethod
    def reduce(self, state: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Take in what the states of all other processes have seen."""


class Calibrator(ABC):
    """Turns what was seen of a tensor into the range that its grid should cover.

    A calibrator is a frozen value and keeps nothing: it names the statistics that it reads, and
    the observer keeps them. So one pass over the data serves every calibrator.
    """

    @property
    @abstractmethod
    def statistics(self) -> tuple[Statistic, ...]:
        """What it reads beside the range of everything seen, which is always kept."""

    @abstractmethod
    def range(self, state: Mapping[str, Tensor], spec: QuantSpec) -> tuple[Tensor, Tensor]:
        """The smallest and largest value to cover, each of shape ``(channels,)``.

        Before any sample the smallest is ``+inf`` and the largest ``-inf``; after a NaN or an
        infinity one of them is not finite.

        Args:
            state: the statistics; ``channels`` may be those of many tensors.
            spec: the form of the grid; its axis does not matter.
        """


class Chooser(Calibrator):
    """A calibrator that takes of each tensor what one of others finds."""

    @property
    @abstractmethod
    def calibrators(self) -> tuple[Calibrator, ...]:
        """Those that it chooses from."""

    @property
    @abstractmethod
    def judged_by(self) -> int:
        """How many samples to judge by at the model's outputs; 0 to choose from statistics."""


class Pass(ABC):
    """Rewrites a captured float graph into an equal float graph that quantizes better."""

    @abstractmethod
    def apply(self, graph: torch.fx.GraphModule) -> int:
        """Rewrite ``graph`` in place; returns how many places were changed."""


class DataPass(ABC):
    """Rewrites a captured float graph by what calibration data show of it."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples of the calibration data it looks at."""

    @abstractmethod
    def apply(self, graph: torch.fx.GraphModule, recipe: Recipe, calls: Sequence[Call]) -> int:
        """Rewrite ``graph`` in place; returns how many places were changed.

        Args:
            graph: captured, in evaluation mode; other passes may have run over it.
            recipe: that will quantize it: schemes and placement.
            calls: ``samples`` of them at least, where there are as many, in calls of a few each.
        """


class ModelPass(ABC):
    """Changes a quantized model that is calibrated and whose weights lie on their grids."""

    #: Whether it compares with the float weights, which are then kept while weights are rounded.
    reads_float_weights: ClassVar[bool] = False

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples of the calibration data it looks at; 0 for none."""

    @abstractmethod
    def apply(self, model: QuantizedModel, calls: Sequence[Call]) -> int:
        """Change ``model`` in place; returns how many places were changed.

        Weights stay on their grids (a grid may move with its weight), and biases on those of the
        sums that they join.
        """


class Rounding(ABC):
    """Puts the weights of one layer on their grid, each tensor by itself."""

    @abstractmethod
    def round(self, weight: Tensor, qparams: QParams) -> Tensor:
        """Values on the grid, in float, of the shape of ``weight``."""


class LayerRounding(ABC):
    """Puts the weights of one layer on a grid by what the layer makes of its inputs."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples of the calibration data it looks at."""

    @abstractmethod
    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Integers of the grid, as floats, and the steps of the grid.

        Both of the shape of ``problem.weight``, the steps broadcast to it; a rounding that keeps
        the grid returns ``problem.step``.
        """


class BlockRounding(ABC):
    """Puts the weights of several layers on their grids, by the result that they make together."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples of the calibration data it looks at."""

    @property
    @abstractmethod
    def first(self) -> LayerRounding | None:
        """What rounds the layers of each block before, for it to begin with; ``None``: nearest."""

    @abstractmethod
    def round(self, block: Block) -> None:
        """Set the weights of ``block``, by ``block.set_weight``."""


#: How Q/DQ is written: TensorRT wants int8 with zero-point 0; ONNX Runtime on x86 runs uint8
#: with zero-point 128, the same grid, about twice as fast.
ExportForm = Literal["tensorrt", "onnxruntime"]

#: The file that a target reads: ONNX with Q/DQ, or a program of ``torch.export`` with Q/DQ in it.
ModelFormat = Literal["onnx", "pt2"]


@dataclass(frozen=True, kw_only=True)
class LayerCoverage:
    """How one compute layer (convolution, Gemm, MatMul …) of a model runs on a target.

    Attributes:
        node: the ONNX node's name.
        op_type: its ONNX operator.
        quantized: the file asks for it in low precision (its inputs come from DequantizeLinear).
        precision: what the target runs it in, such as ``int8``, ``fp8``, ``float32``.
        kernel: the target's own name for the kernel that covers it, where it tells.
        reason: where ``precision`` is not what ``quantized`` promises, or it is not quantized: why.
    """

    node: str
    op_type: str
    quantized: bool
    precision: str
    kernel: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a target makes of an ONNX file.

    Attributes:
        target: the target, with its options, such as ``tensorrt_rtx (SM86)``.
        layers: the compute layers in graph order.
        findings: what it refuses, and what runs other than planned.
        engine: the engine's bytes where one was built and kept.
        seconds: how long the build took.
    """

    target: str
    layers: tuple[LayerCoverage, ...] = ()
    findings: tuple[Finding, ...] = ()
    engine: bytes | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is an error."""
        return not any(f.severity is Severity.ERROR for f in self.findings)

    @property
    def planned(self) -> int:
        """How many layers the file asks for in low precision."""
        return sum(layer.quantized for layer in self.layers)

    @property
    def covered(self) -> int:
        """How many of those do run in low precision."""
        return sum(
            layer.quantized and not layer.precision.startswith(("float", "bf", "none"))
            for layer in self.layers
        )


class Target(ABC):
    """A place to run: what it would refuse, what it builds, and its results.

    A target is a frozen dataclass of its options (compute capability, execution mode …). Its SDK
    is imported only inside the methods that need it.
    """

    @property
    @abstractmethod
    def reads(self) -> ModelFormat:
        """Which files it inspects, builds and runs."""

    @property
    @abstractmethod
    def form(self) -> ExportForm:
        """How Q/DQ for this target is written."""

    @abstractmethod
    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What it cannot run of these schemes, known before any work begins; needs no SDK."""

    @abstractmethod
    def inspect(self, model: Path) -> Inspection:
        """What it would run of a file and how; never raises for what the file contains."""

    @abstractmethod
    def build(self, model: Path, output: Path) -> Inspection:
        """Write the deployable file to ``output``, atomically; ``TargetError`` where it cannot."""

    @abstractmethod
    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs for each batch of named inputs; ``TargetError`` where it cannot run here."""


class EngineCalibrator(ABC):
    """Serves calibration data to an engine builder, which finds the ranges by itself.

    It lies in the folder of the calibrators, but it finds no range that a recipe could use.
    """

    @property
    @abstractmethod
    def algorithm(self) -> str:
        """The algorithm as calibration caches name it, such as ``EntropyCalibration2``."""

    @property
    @abstractmethod
    def base(self) -> str:
        """The class of the builder's SDK that it extends, such as ``IInt8EntropyCalibrator2``."""
