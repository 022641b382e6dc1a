"""``finetune``: train a quantized model for who has no training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantkit import nvtx, statistics_file
from quantkit.errors import RecipeError, TrainingError
from quantkit.model import QuantizedModel
from quantkit.qat import diagnosis, snapshots
from quantkit.qat.distilling import Teacher, WithFeatures
from quantkit.qat.feeding import Feed
from quantkit.qat.optimizing import learning_rate, make_optimizer
from quantkit.qat.reporting import Reporter
from quantkit.qat.switches import Schedule, train_quantizers
from quantkit.settling import settle
from quantkit.training_choice import TrainingChoice

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[nn.Module], float]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        number: from 1; 0 is the model before training.
        loss: the mean over the pass; ``nan`` for 0.
        metric: of the model after it, on held-out data; ``None`` where none is measured.
        learning_rate: at its last step.
        seconds: it took, the metric with it.
    """

    number: int
    loss: float
    metric: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What came of it.

    Attributes:
        epochs: all of them; the first is the model before training, where a metric is measured.
        best: the epoch whose weights the model has now.
        stopped: whether it ended early, for want of a better metric.
    """

    epochs: tuple[Epoch, ...]
    best: Epoch
    stopped: bool

    def __str__(self) -> str:
        """One line."""
        trained = self.epochs[-1].number
        text = f"{trained} epochs in {sum(e.seconds for e in self.epochs):.0f} s"
        if self.best.metric is None:
            return f"{text}, loss {self.best.loss:.4g}"
        early = ", stopped early" if self.stopped else ""
        first = self.epochs[0].metric  # none where a run resumes that measured nothing
        before = "" if first is None else f"{first:.4g} before, "
        return f"{text}{early}: {before}{self.best.metric:.4g} at epoch {self.best.number}"


@nvtx.phase("train")
def finetune(
    model: QuantizedModel,
    train: Iterable[Any],
    *,
    loss: Loss | None = None,
    teacher: nn.Module | Literal["float"] | None = "float",
    features: Sequence[str] = (),
    evaluate: Metric | None = None,
    choice: TrainingChoice | None = None,
    checkpoint: Path | str | None = None,
    resume: bool = False,
    tensorboard: Path | str | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FineTuning:
    """Train a quantized model in place; afterwards it is settled, ready to export.

    The float model that it was made of teaches it: the loss is the difference of their outputs
    (and of chosen features), so labels are not needed. With ``loss`` labels count as well, and
    with ``teacher=None`` they alone.

    Args:
        model: as ``quantize`` makes it; it has not trained yet, or it would be its own teacher.
        train: batches, to be read once an epoch: a list, a ``DataLoader``, a `DataSpec`. With
            ``loss`` a batch is a pair of inputs and targets (or has labels), else inputs alone;
            inputs are a tensor, a tuple of them, or a dict by name.
        loss: of the model's output and the targets, a scalar.
        teacher: another float model that takes the same inputs and returns outputs of the same
            form; ``"float"``: this one without its quantizers; ``None``: no teacher.
        features: globs over paths of modules, such as ``layer3``, whose results are compared with
            the teacher's as well; only where the teacher is ``"float"``.
        evaluate: a metric of the model on held-out data, the higher the better. The best weights
            are kept, those before training among them.
        choice: how to train; the recipe's ``training`` if ``None``.
        checkpoint: a file that is written after each epoch.
        resume: go on from ``checkpoint``, where it is there: the model is quantized anew, as for
            the first run, and the run ends as if it had not been interrupted.
        tensorboard: a folder for TensorBoard's events.
        on_epoch: called after each epoch, and before the first where there is a metric.

    However training ends, the model is settled and has the best weights so far.

    Raises:
        TrainingError: the loss is NaN or infinite; the message names the layer.
        DataError: no batch, or one of the wrong form; a model that is not calibrated.
        RecipeError: nothing to learn from, or a feature that is not there.
        ModelFileError: the checkpoint is not readable, or of another run.

    Example:
        >>> import quantkit
        >>> net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        >>> data = [torch.randn(16, 32) for _ in range(4)]
        >>> qmodel = quantkit.quantize(net, "w4a8_qat", calibration=data)
        >>> result = finetune(qmodel, data, choice=TrainingChoice(epochs=2, grids="learn"))
        >>> len(result.epochs)
        2
    """
    feed = Feed(model, train, labelled=loss is not None)
    if loss is None and teacher is None:
        raise RecipeError("neither loss nor teacher is given: nothing to learn from; give one")
    chosen = model.recipe.training if choice is None else choice
    run = _Run(
        model=model,
        feed=feed,
        loss=loss,
        evaluate=evaluate,
        choice=chosen,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        teacher=None if teacher is None else Teacher(
            model, None if teacher == "float" else teacher, features, chosen
        ),
        student=WithFeatures(model, features if teacher is not None else ()),
    )  # fmt: skip
    with Reporter(chosen.epochs, tensorboard, on_epoch) as reporter:
        return run.train_all(reporter, resume=resume)


@dataclass(kw_only=True)
class _Run:
    """One call of `finetune`."""

    model: QuantizedModel
    feed: Feed
    loss: Loss | None
    evaluate: Metric | None
    choice: TrainingChoice
    checkpoint: Path | None
    teacher: Teacher | None
    student: WithFeatures
    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    best_state: dict[str, Any] = field(default_factory=dict)
    weights: str = ""

    def train_all(self, reporter: Reporter, *, resume: bool) -> FineTuning:
        model = self.model
        training = model.training
        self.weights = _fingerprint(model)
        model.zero_grad()
        steps = self.choice.epochs * len(self.feed)
        train_quantizers(model, self.choice.grids)
        optimizer = make_optimizer(model, self.choice)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step / steps, self.choice.warm_up)
        )
        schedule = Schedule(model, steps, self.choice)
        state = {"optimizer": optimizer, "scheduler": scheduler}
        self.best_state = snapshots.copy_of(model.state_dict())
        try:
            if resume and self.checkpoint is not None and self.checkpoint.exists():
                self._resume(self.checkpoint, state, schedule)
                reporter.resume(schedule.done)
                for epoch in self.history:
                    reporter.epoch(epoch)
            elif self.evaluate is not None:
                self._note(self._measured(0, math.nan, 0.0, time.perf_counter()), reporter)
            for number in range(
                1 + len([e for e in self.history if e.number]), 1 + self.choice.epochs
            ):
                if self._is_over():
                    break
                self._epoch(number, optimizer, scheduler, schedule, reporter)
                if self.checkpoint is not None:
                    self._save(self.checkpoint, state, schedule)
        except BaseException:  # Ctrl-C as well
            self._finish()
            model.train(training)
            raise
        self._finish()
        assert self.best is not None  # there is one epoch at least
        return FineTuning(epochs=tuple(self.history), best=self.best, stopped=self._is_over())

    def _epoch(
        self,
        number: int,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        schedule: Schedule,
        reporter: Reporter,
    ) -> None:
        started, total, count = time.perf_counter(), 0.0, 0
        self.model.train()
        steps = reporter.steps(self.feed, number, len(self.feed))
        for args, kwargs, target in steps:
            value = self._step(args, kwargs, target, optimizer, number)
            scheduler.step()
            schedule.step()
            total, count = total + value, count + 1
            reporter.loss(value)
        rate = float(optimizer.param_groups[0]["lr"])
        self._note(self._measured(number, total / count, rate, started), reporter)

    def _step(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Any,
        optimizer: torch.optim.Optimizer,
        number: int,
    ) -> float:
        optimizer.zero_grad()
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.choice.precision == "bfloat16"):
            output, features = self.student(*args, **kwargs)
            parts = []
            if self.teacher is not None:
                parts.append(self.teacher.loss(output, features, args, kwargs))
            if self.loss is not None:
                parts.append(self.loss(output, target))
            total = torch.stack([part.float().reshape(()) for part in parts]).sum()
        value = float(total.detach())
        if not math.isfinite(value):
            teacher = None if self.teacher is None else self.teacher.own
            why = diagnosis.cause(self.model, teacher, args, kwargs)
            raise TrainingError(f"the loss of epoch {number} is {value}: {why}")
        total.backward()  # type: ignore[no-untyped-call]
        limit = self.choice.clip_gradient
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), math.inf if limit is None else limit
        )
        if not math.isfinite(float(norm)):
            if (name := diagnosis.bad_parameter(self.model)) is not None:
                raise TrainingError(f"in epoch {number} {diagnosis.told_parameter(name)}")
            raise TrainingError(
                f"the gradient of {diagnosis.bad_gradient(self.model)} is not finite in epoch "
                f"{number}, at a loss of {value:.4g}; lower the learning rate, or train in float32"
            )
        optimizer.step()
        return value

    def _measured(self, number: int, loss: float, rate: float, started: float) -> Epoch:
        metric = None
        if self.evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                metric = float(self.evaluate(self.model))
        return Epoch(
            number=number, loss=loss, metric=metric, learning_rate=rate,
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _note(self, epoch: Epoch, reporter: Reporter) -> None:
        self.history.append(epoch)
        best = None if self.best is None else self.best.metric
        # A metric that is NaN is worse than any.
        if epoch.metric is None or best is None or epoch.metric > best or math.isnan(best):
            self.best = epoch
            self.best_state = snapshots.copy_of(self.model.state_dict())
        reporter.epoch(epoch)

    def _is_over(self) -> bool:
        """Whether the metric has not become better for too long."""
        patience, best = self.choice.patience, self.best
        if patience is None or best is None or best.metric is None:
            return False
        return self.history[-1].number - best.number >= patience

    def _finish(self) -> None:
        """The best weights, and nothing that still moves."""
        self.model.load_state_dict(self.best_state)
        self.model.zero_grad()
        settle(self.model)

    def _save(self, path: Path, parts: Mapping[str, Any], schedule: Schedule) -> None:
        assert self.best is not None  # an epoch is over
        state = {
            **made_for(self.model, self.choice),
            "weights": self.weights,
            **{name: part.state_dict() for name, part in parts.items()},
            "model": self.model.state_dict(),
            "done": schedule.done,
            "history": [asdict(epoch) for epoch in self.history],
            "best": asdict(self.best),
            "best_state": self.best_state,
            "random": snapshots.random_state(self.feed.data),
        }
        snapshots.save(path, state)

    def _resume(self, path: Path, parts: Mapping[str, Any], schedule: Schedule) -> None:
        own = {**made_for(self.model, self.choice), "weights": self.weights}
        state = snapshots.load(path, own)
        self.model.load_state_dict(state["model"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        schedule.done = state["done"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best, self.best_state = Epoch(**state["best"]), state["best_state"]
        snapshots.restore_random_state(state["random"], self.feed.data)


def made_for(model: QuantizedModel, choice: TrainingChoice) -> dict[str, Any]:
    """What a checkpoint must be of, so that a run of these resumes from it."""
    return {"plan": model.plan.to_json(), "choice": choice.model_dump_json()}


def _fingerprint(model: QuantizedModel) -> str:
    """A hash of the weights that training begins with."""
    weights = ((name, value) for name, value in model.float_state() if value.dim() > 1)
    return statistics_file.fingerprint(weights)
