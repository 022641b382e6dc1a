"""``quantkit finetune``: quantize a PyTorch model, train it, and write it as ONNX with Q/DQ."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_options as option
from quantkit import _cli_training as training
from quantkit import _cli_work as work
from quantkit._cli_show import Screen, screen
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import ExportForm, Target

if TYPE_CHECKING:
    from quantkit.data import Data
    from quantkit.model import QuantizedModel
    from quantkit.qat.finetuning import FineTuning
    from quantkit.training_choice import TrainingChoice


def _positive(value: float | None) -> float | None:
    if value is not None and not 0.0 < value <= 1000.0:
        raise typer.BadParameter(f"{value:g} is not over 0 and up to 1000: give one such as 1e-4")
    return value


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", show_default=False, help="A .pt2 file, or package.module:factory."
    ),
]
Train = Annotated[
    Path,
    typer.Option("--train", metavar="TRAIN.yaml", show_default=False, help="Training data."),
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="EVAL.yaml",
        help="Held-out data, by which the best epoch is kept: top-1 accuracy where they have "
        "labels, else SQNR beside the float model.",
    ),
]
Labels = Annotated[bool, typer.Option("--labels", help="Learn from the labels of --train as well.")]
NoTeacher = Annotated[
    bool, typer.Option("--no-teacher", help="With --labels: learn from them alone.")
]
Features = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        metavar="GLOB",
        help="Modules, such as layer3, whose results are compared with the float model's.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", min=1, help="Instead of the recipe's: passes."),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", metavar="X", callback=_positive, help="Instead of the recipe's."
    ),
]
Grids = Annotated[
    Literal["follow", "learn", "fixed"] | None,
    typer.Option("--grids", metavar="HOW", help="Instead of the recipe's: follow, learn, fixed."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the order of the data.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="Write the run's state after each epoch."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint, if it is there.")]
Tensorboard = Annotated[
    Path | None,
    typer.Option("--tensorboard", metavar="FOLDER", help="Write events for TensorBoard."),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments and options of the command; ``changes`` are of the recipe's training."""

    model: str
    weights: Path | None
    recipe: str
    data: Path | None
    train: Path
    evaluate: Path | None
    output: Path
    plan: Path | None
    state: Path | None
    place: Target | None
    cpu: str
    form: ExportForm | None
    shapes: option.Shapes
    static: bool
    labels: bool
    teacher: bool
    features: tuple[str, ...]
    changes: dict[str, Any]
    seed: int
    checkpoint: Path | None
    resume: bool
    tensorboard: Path | None

    def check(self) -> None:
        """Refuse, before any work, what means nothing, cannot be written or is not there."""
        if onnx_files.is_onnx(self.model):
            raise work.UsageError(
                f"{self.model} is ONNX, and fine-tuning needs the PyTorch model: give "
                "package.module:factory or a .pt2 file"
            )
        if not self.teacher and not self.labels:
            raise work.UsageError("--no-teacher leaves nothing to learn from: give --labels too")
        if not self.teacher and self.features:
            raise work.UsageError(
                "--feature compares with the float model, the teacher: leave --no-teacher out"
            )
        if self.resume and self.checkpoint is None:
            raise work.UsageError("--resume goes on from the file of --checkpoint: give that too")
        for path in filter(None, (self.output, self.plan, self.state, self.checkpoint)):
            work.require_writable(path)
        if self.tensorboard is not None:
            training.require_events(self.tensorboard)
        _require_specs(self)


def command(
    model: Model,
    output: option.OnnxOutput,
    train: Train,
    recipe: option.RecipeOption = "int8_qat",
    data: option.CalibrationData = None,
    evaluate: Evaluate = None,
    labels: Labels = False,
    no_teacher: NoTeacher = False,
    feature: Features = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    grids: Grids = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    tensorboard: Tensorboard = None,
    weights: option.Weights = None,
    input_shape: option.InputShape = None,
    static: option.Static = False,
    target: option.AnyTarget = None,
    gpu: option.Gpu = None,
    cpu: option.Cpu = "auto",
    form: option.Form = None,
    save_plan: option.SavePlan = None,
    save: option.SaveState = None,
    as_json: option.Json = False,
) -> None:
    """Quantize a PyTorch model, train it to make up for the rounding, and write it as ONNX.

    The float model teaches it, so --train needs no labels.

    \b
    Examples:
      quantkit finetune net:make --data calib.yaml --train train.yaml -o tuned.onnx
      quantkit finetune net.pt2 --recipe w4a8_qat --data calib.yaml --train train.yaml -o w4.onnx
      quantkit finetune net.pt2 --data calib.yaml --train train.yaml --evaluate eval.yaml -o t.onnx
    """  # noqa: D301
    changes = {"epochs": epochs, "learning_rate": learning_rate, "grids": grids}
    asked = Asked(
        model=model, weights=weights, recipe=recipe, data=data, train=train, evaluate=evaluate,
        output=output, plan=save_plan, state=save, form=form, cpu=cpu, static=static,
        place=work.optional_target(target, gpu, cpu), labels=labels, teacher=not no_teacher,
        shapes=option.parse_shapes(input_shape or ()), features=tuple(feature or ()), seed=seed,
        changes={key: value for key, value in changes.items() if value is not None},
        checkpoint=checkpoint, resume=resume, tensorboard=tensorboard,
    )  # fmt: skip
    with screen(as_json) as show:
        _finetune(asked, show)


def _finetune(asked: Asked, show: Screen) -> None:
    """The command, from its options to its last line."""
    started = time.perf_counter()
    asked.check()
    place = models.fitting_target(asked.model, asked.output, asked.place, asked.cpu)
    recipe = work.accepted_recipe(asked.recipe, place, asked.cpu, asked.data)
    form = asked.form or (recipe.target if place is None else place.form)
    work.require_form(recipe, form)
    doubts = work.warnings_of(recipe, place, form, asked.cpu)
    show.warnings(doubts)
    choice = recipe.training.model_copy(update=asked.changes)
    source = models.load(asked.model, asked.weights)
    assert not isinstance(source, Path)  # it would be ONNX
    given = models.seen(asked.data, source, None, None, every=1, resume=False)
    train = models.open_data(asked.train, source)
    held_out = None if asked.evaluate is None else models.open_data(asked.evaluate, source)
    order = train.shuffled()
    qmodel = models.prepared(source, recipe, given.data or train, asked.shapes, static=asked.static)
    judge = _judge(qmodel, choice, asked, train, held_out)
    models.complete(qmodel, given)
    lines = training.Lines(show, judge)
    result = _train(qmodel, order, choice, judge, lines, asked)
    written = models.write(qmodel, asked.output, form, plan=asked.plan, state=asked.state)
    lines.result(result, choice.epochs)
    show.quantized(
        qmodel.plan, recipe, output=asked.output, form=form,
        bytes_before=models.bytes_of(source), bytes_after=written,
        seconds=time.perf_counter() - started, warnings=doubts,
        training=training.as_json(result, judge),
    )  # fmt: skip


def _train(
    qmodel: QuantizedModel,
    order: Data,
    choice: TrainingChoice,
    judge: training.Judge,
    lines: training.Lines,
    asked: Asked,
) -> FineTuning:
    import torch

    from quantkit.qat.finetuning import finetune
    from quantkit.qat.metrics import cross_entropy

    torch.manual_seed(asked.seed)
    with training.naming(asked.train):
        return finetune(
            qmodel, order, loss=cross_entropy if asked.labels else None,
            teacher="float" if asked.teacher else None, features=asked.features,
            evaluate=judge.measure, choice=choice, checkpoint=asked.checkpoint,
            resume=asked.resume, tensorboard=asked.tensorboard, on_epoch=lines.epoch,
        )  # fmt: skip


def _judge(
    qmodel: QuantizedModel,
    choice: TrainingChoice,
    asked: Asked,
    train: Data,
    held_out: Data | None,
) -> training.Judge:
    """How the model is judged; before calibration, data that do not fit it are refused."""
    from quantkit.qat.metrics import accuracy, fidelity

    _require_trainable(qmodel, choice, asked)
    reference = training.float_model(qmodel)
    first = list(islice(train, 1))
    with training.naming(asked.train):  # a metric tells what does not fit
        if asked.labels:
            accuracy(first)(reference)
        else:
            fidelity(first, reference)
    return training.judge(asked.evaluate, held_out, reference)


def _require_trainable(qmodel: QuantizedModel, choice: TrainingChoice, asked: Asked) -> None:
    """Refuse, before calibration, what the captured model shows to be in vain."""
    from quantkit.qat import snapshots
    from quantkit.qat.distilling import feature_nodes
    from quantkit.qat.finetuning import made_for
    from quantkit.qat.switches import require_quick

    if not qmodel.plan.quantized:
        raise RecipeError(
            f"recipe {qmodel.recipe.name} quantizes nothing of this model, so there is nothing to "
            "train; `quantkit quantize` lists why"
        )
    if choice.grids == "follow":
        require_quick(qmodel)
    feature_nodes(qmodel.graph, asked.features)
    if asked.resume and asked.checkpoint is not None and asked.checkpoint.exists():
        snapshots.load(asked.checkpoint, made_for(qmodel, choice))


def _require_specs(asked: Asked) -> None:
    """Refuse files of data that cannot be read, before the model is loaded."""
    from quantkit.data import load_data_spec

    for path in filter(None, (asked.data, asked.evaluate)):
        load_data_spec(path)
    if load_data_spec(asked.train).label is None and asked.labels:
        raise DataError(
            f"{asked.train}: names no column of labels, and --labels learns from them; set label "
            "there, or leave --labels out"
        )
