"""What a runner is: how one runtime loads a file and runs it, in a process of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from quantkit.errors import DataError
from quantkit.interfaces import ExportForm, ModelFormat, Severity, Target
from quantkit.spec import Scheme

if TYPE_CHECKING:
    import numpy as np

    Inputs: TypeAlias = Mapping[str, np.ndarray]

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to load, and with what.

    Attributes:
        file: in the format and form that the runner reads, or what it built of that.
        device: where it runs.
        threads: how many of the processor's one run may use.
        half: compute in float16 what the file has in float32.
        shapes: of the inputs of one run, by name.
        folder: for what is built: of this file and runner, whatever the shapes.
    """

    file: Path
    device: Device
    threads: int
    half: bool
    shapes: Mapping[str, tuple[int, ...]]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Precision:
    """One precision of the model, as a runner needs to know it to say whether it takes it.

    Attributes:
        name: the recipe's, ``float``, or that of the file.
        quantized: whether a recipe made it; ``None`` where that is not known.
        schemes: what the recipe makes of tensors; empty where that is not known.
        half: it is the float model in float16, for GPUs.
    """

    name: str
    quantized: bool | None
    schemes: tuple[Scheme, ...] = ()
    half: bool = False


class Opened(ABC):
    """A model that a runtime has loaded, with the inputs of one batch where it reads them."""

    @abstractmethod
    def place(self, inputs: Inputs) -> None:
        """Put inputs where the model reads them: what runs next runs on them."""

    @abstractmethod
    def run(self) -> None:
        """Run once, and return when the outputs are there."""

    @abstractmethod
    def outputs(self) -> list[np.ndarray]:
        """The outputs of the last run, in order."""


class Runner(ABC):
    """A runtime that can be benchmarked: a frozen value that holds nothing.

    ``absent`` and ``refuses`` are called by the process that compares, all else by one that does
    nothing else.
    """

    @property
    @abstractmethod
    def reads(self) -> ModelFormat:
        """The format of its files."""

    @property
    def form(self) -> ExportForm:
        """How Q/DQ in its ONNX files is written."""
        return "onnxruntime"

    @property
    def builds(self) -> bool:
        """Whether something else than the file is deployed: `build` makes it."""
        return False

    @property
    def half(self) -> bool:
        """Whether the float part of its Q/DQ files is to be float16: it runs as it is typed."""
        return False

    @property
    @abstractmethod
    def devices(self) -> tuple[Device, ...]:
        """Where it can run at all, on some machine."""

    @abstractmethod
    def absent(self, device: Device) -> str | None:
        """Why it cannot run on a device of this machine, as far as can be told without a try."""

    def refuses(self, precision: Precision, device: Device) -> str | None:
        """Why it is not compared in a precision, if so."""
        return None

    @abstractmethod
    def load_sdk(self) -> None:
        """Import what it needs, so that this is not counted as memory or time of a model."""

    def build(self, load: Load) -> Path:
        """Make of the file what is deployed, in the folder; in a process that does only that."""
        return load.file

    @abstractmethod
    def open(self, load: Load) -> Opened:
        """Load the file, or what was built of it."""


def refusal(target: Target, precision: Precision) -> str | None:
    """Why a target refuses what a recipe makes of tensors, if so."""
    found = target.refusals(precision.schemes)
    return next((f.why for f in found if f.severity is Severity.ERROR), None)


def no_cuda() -> str | None:
    """Why PyTorch cannot use a GPU here, if so."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def ordered(inputs: Inputs, names: Sequence[str]) -> list[np.ndarray]:
    """Inputs in the order of a model's names: by name where all are known, else as they come.

    Raises:
        DataError: there are more or fewer than the model takes.

    Example:
        >>> ordered({"b": 2, "a": 1}, ["a", "b"]), ordered({"x": 1, "y": 2}, ["in.1", "in.2"])
        ([1, 2], [1, 2])
    """
    if set(inputs) == set(names):
        return [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise DataError(
            f"the inputs are {', '.join(inputs) or 'none'}, the model takes {', '.join(names)}; "
            "give data that name the model's inputs"
        )
    return list(inputs.values())
