"""Builds candidates of one model of PyTorch; `making_onnx` those of an ONNX file."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from quantkit import plugins, statistics_file
from quantkit.analysis.sensitivity import sensitivity
from quantkit.calibrating import Checkpoint
from quantkit.data import Data
from quantkit.graph.abstract import Graph
from quantkit.graph.aten import describe
from quantkit.graph.capture import DynamicShapes
from quantkit.graph.placement import place
from quantkit.interfaces import Calibrator, ModelPass
from quantkit.model import QuantizedModel
from quantkit.model_calibration import calibrate, calls_of
from quantkit.onnx.export import export_onnx
from quantkit.onnx.quantized import QuantizedOnnx
from quantkit.qat.finetuning import finetune
from quantkit.recipe import Recipe, SchemeChoice
from quantkit.recovering.deployed import Deployed
from quantkit.recovering.goal import Deadline
from quantkit.recovering.memory import key_of
from quantkit.recovering.steps import Candidate, Facts
from quantkit.workflow import PASSES, correct, prepare, round_weights

Built: TypeAlias = QuantizedModel | QuantizedOnnx
#: Samples by which layers are ranked.
RANKING_SAMPLES = 64
#: A recipe that quantizes nothing: its model is the float model, called as the others are.
_BARE = Recipe(name="float", scheme=SchemeChoice(), passes=())


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the last step learns from.

    Attributes:
        data: batches, as ``finetune`` takes them.
        loss: of outputs and labels; ``None``: from the float model alone.
    """

    data: Iterable[Any]
    loss: Callable[[Any, Any], Tensor] | None = None


@dataclass(frozen=True)
class Timed:
    """Data that end a step where the deadline comes."""

    data: Iterable[Any]
    deadline: Deadline

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            self.deadline.check()
            yield batch

    @property
    def batch_count(self) -> int | None:
        """As the data tell; ``None`` where they do not."""
        if isinstance(self.data, Sized):
            return len(self.data)
        known: int | None = getattr(self.data, "batch_count", None)
        return known


@dataclass(frozen=True, kw_only=True)
class Maker(ABC):
    """Makes quantized models of one float model.

    Attributes:
        calibration: batches, to be read again for each candidate.
        folder: for statistics and exported files, as long as the search runs.
    """

    calibration: Iterable[Any]
    folder: Path

    @property
    @abstractmethod
    def floating(self) -> nn.Module:
        """The float model."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of its weights."""

    @abstractmethod
    def build(self, candidate: Candidate, deadline: Deadline) -> Built:
        """The candidate, calibrated and rounded, and trained if it is to be."""

    @abstractmethod
    def runnable(self, built: Built) -> nn.Module:
        """What runs a candidate on held-out data."""

    @abstractmethod
    def ranking(self, recipe: Recipe, deadline: Deadline) -> tuple[tuple[str, ...], ...]:
        """The quantized layers, the most sensitive first."""

    @property
    @abstractmethod
    def graph(self) -> Graph:
        """The operators of the float model."""

    def exported(self, built: Built) -> Deployed:
        """A candidate as it is deployed."""
        path = self.folder / "candidate.onnx"
        export_onnx(built, path)
        return Deployed(path, built.recipe.target)

    def facts(self, recipe: Recipe) -> Facts:
        """What is known without running anything."""
        plan = place(self.graph, recipe)
        kinds = {decision.op: str(decision.kind) for decision in plan.decisions}
        passes = plugins.names("passes")
        found = {name: plugins.find_any("passes", name, PASSES) for name in passes}
        return Facts(
            calibrators=tuple(plugins.names_of("calibrators", Calibrator)),
            passes=frozenset(passes),
            roundings=frozenset(plugins.names("rounding")),
            model_passes=frozenset(n for n, kind in found.items() if issubclass(kind, ModelPass)),
            operators=frozenset(kinds[name] for name in plan.quantized),
        )

    def _statistics(self, recipe: Recipe) -> Path:
        """Where statistics of all recipes are kept whose float graph and plan are this one's.

        They serve every calibrator; what follows calibration does not change them.
        """
        later = {"calibrator", "weight_calibrator", "rounding", "training", "passes"}
        kinds = {c.name: plugins.find_any("passes", c.name, PASSES) for c in recipe.passes}
        # What changes the calibrated model comes later; but centering changes the plan.
        kept = tuple(
            c for c in recipe.passes
            if c.name == "center" or not issubclass(kinds[c.name], ModelPass)
        )  # fmt: skip
        same = {name: Recipe.model_fields[name].get_default() for name in later - {"passes"}}
        key = key_of(recipe.model_copy(update={**same, "passes": kept}))
        return self.folder / f"{key}.safetensors"


@dataclass(frozen=True, kw_only=True)
class TorchMaker(Maker):
    """Of a module, or of a program of ``torch.export``.

    Attributes:
        model: the float model.
        args, kwargs: example inputs.
        dynamic_shapes: see ``graph.capture.capture``.
        training: what the last step learns from; ``None``: nothing trains.
    """

    model: nn.Module | torch.export.ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: DynamicShapes = "batch"
    training: Training | None = None

    @cached_property
    def floating(self) -> QuantizedModel:
        """The float model, called as it was captured."""
        return self._prepared(_BARE, self.calibration)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its parameters and buffers."""
        return statistics_file.fingerprint(self.floating.float_state())

    @cached_property
    def graph(self) -> Graph:
        """The operators of the captured graph."""
        return describe(self.floating.graph).graph

    def facts(self, recipe: Recipe) -> Facts:
        """What is known without running anything."""
        return replace(super().facts(recipe), trains=self.training is not None)

    def build(self, candidate: Candidate, deadline: Deadline) -> QuantizedModel:
        """As ``quantize`` would, or ``finetune``; data are run once for all calibrators."""
        data, recipe = Timed(self.calibration, deadline), candidate.recipe
        qmodel = self._prepared(recipe, data)
        if any(True for _ in qmodel.of_role("activation")):
            path = self._statistics(recipe)
            if path.exists():
                calibrate(qmodel, data, statistics=(path,))
            else:
                calibrate(qmodel, data, checkpoint=Checkpoint(path=path))
        round_weights(qmodel, data)
        correct(qmodel, data)
        if candidate.trained:
            self._train(qmodel, deadline)
        return qmodel.eval()

    def runnable(self, built: Built) -> nn.Module:
        """The model itself, on the grids."""
        assert isinstance(built, QuantizedModel)
        return built

    def ranking(self, recipe: Recipe, deadline: Deadline) -> tuple[tuple[str, ...], ...]:
        """By the noise at the outputs when each layer alone is quantized."""
        qmodel = self._prepared(recipe, Timed(self.calibration, deadline))
        calls = calls_of(qmodel.capture, Timed(self.calibration, deadline), RANKING_SAMPLES)
        return tuple(part.layers for part in sensitivity(qmodel, calls).ranked())

    def _prepared(self, recipe: Recipe, data: Iterable[Any]) -> QuantizedModel:
        return prepare(
            self.model, recipe, example_inputs=self.args, example_kwargs=self.kwargs,
            dynamic_shapes=self.dynamic_shapes, calibration=data,
        )  # fmt: skip

    def _train(self, qmodel: QuantizedModel, deadline: Deadline) -> None:
        """As ``quantkit finetune`` without held-out data: the last epoch is kept."""
        assert self.training is not None
        data = self.training.data
        order = data.shuffled() if isinstance(data, Data) else data
        with torch.random.fork_rng(devices=[]):  # the user's own stays as it is
            torch.manual_seed(0)
            finetune(
                qmodel, Timed(order, deadline), loss=self.training.loss,
                on_epoch=lambda epoch: deadline.check(),
            )  # fmt: skip


def digest_of(built: Built) -> str:
    """A hash of weights, grids and plan."""
    if isinstance(built, QuantizedModel):
        state = {k: v for k, v in built.state_dict().items() if isinstance(v, Tensor)}
    else:
        state = {f"weight {k}": v for k, v in built.weights.items()}
        state |= {f"bias {k}": v for k, v in built.biases.items()}
        for name, grid in built.grids.items():
            state |= {f"scale {name}": grid.scale, f"zero-point {name}": grid.zero_point}
    digest = hashlib.sha256(built.plan.to_json().encode())
    digest.update(statistics_file.fingerprint(sorted(state.items())).encode())
    return digest.hexdigest()
