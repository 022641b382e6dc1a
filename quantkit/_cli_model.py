"""What the commands do with a model: load it and its data, prepare, quantize and write it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from quantkit import _cli_onnx as onnx_files
from quantkit._cli_work import UsageError, make_target, working
from quantkit.errors import DataError, ExportError
from quantkit.interfaces import ExportForm, Target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quantkit._cli_options import Shapes
    from quantkit.calibrating import Checkpoint
    from quantkit.data import Data
    from quantkit.model import QuantizedModel
    from quantkit.onnx.quantized import QuantizedOnnx
    from quantkit.recipe import Recipe

    TorchSource: TypeAlias = nn.Module | torch.export.ExportedProgram
    #: A model of PyTorch, or the path of a float ONNX file.
    Source: TypeAlias = TorchSource | Path


_FROM_ONNX = "a program is made of a PyTorch model, not of an ONNX file; name the output .onnx"


def load(source: str, weights: Path | None) -> Source:
    """The float model, or the path of its ONNX file."""
    if onnx_files.is_onnx(source):
        return onnx_files.load(source, weights)
    from quantkit.loading import load_model

    with working(f"loading {source}"):
        return load_model(source, weights)


def open_data(path: Path, model: Source | None) -> Data:
    """The batches of a data file, whose inputs have names that ``model`` knows."""
    from torch import nn

    from quantkit.data import load_data_spec

    spec = load_data_spec(path)
    if isinstance(model, nn.Module):
        _require_names(path, list(spec.inputs), model)
    elif isinstance(model, Path):
        onnx_files.require_names(path, spec.inputs, model)
    opened = spec.open()
    if opened.rows == 0:
        raise DataError(f"{path}: {spec.source} has no row; give data with at least one")
    return opened


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What activations get their grids from.

    Attributes:
        data: calibration data.
        statistics: files that an earlier run wrote.
        checkpoint: where statistics are written.
    """

    data: Data | None = None
    statistics: tuple[Path, ...] = ()
    checkpoint: Checkpoint | None = None


def seen(
    data: Path | None,
    model: Source,
    statistics: Sequence[Path] | None,
    save: Path | None,
    *,
    every: int,
    resume: bool,
) -> Seen:
    """The data and statistics of the options."""
    from quantkit.calibrating import Checkpoint

    written = None if save is None else Checkpoint(path=save, every=every, resume=resume)
    opened = None if data is None else open_data(data, model)
    return Seen(data=opened, statistics=tuple(statistics or ()), checkpoint=written)


def prepared(
    model: TorchSource, recipe: Recipe, data: Data | None, shapes: Shapes, *, static: bool
) -> QuantizedModel:
    """The model with quantizers in place."""
    from torch import nn

    from quantkit.batches import as_batches
    from quantkit.workflow import prepare

    args, kwargs = _examples(shapes)
    if data is not None and not shapes:
        args, kwargs = next(as_batches(data))
    if not (args or kwargs) and isinstance(model, nn.Module):
        raise DataError(
            "the model is captured with example inputs, and there are none; give --data, or "
            "--input-shape 1,3,32,32"
        )
    with working("capturing the model"):
        return prepare(
            model, recipe, example_inputs=args, example_kwargs=kwargs,
            dynamic_shapes=None if static else "batch", calibration=data,
        )  # fmt: skip


def quantize(
    model: Source,
    recipe: Recipe,
    given: Seen,
    shapes: Shapes,
    *,
    static: bool,
    checkpoint: Path | None = None,
) -> QuantizedModel | QuantizedOnnx:
    """The steps of ``quantkit.quantize``, each shown while it runs.

    Args:
        model: in float.
        recipe: all choices.
        given: data, statistics and where these are written.
        shapes: of example inputs.
        static: whether every dimension is fixed.
        checkpoint: of the rounding.
    """
    if isinstance(model, Path):
        return onnx_files.quantize(
            model, recipe, given.data, statistics=given.statistics, checkpoint=given.checkpoint
        )
    qmodel = prepared(model, recipe, given.data, shapes, static=static)
    complete(qmodel, given, checkpoint)
    return qmodel


def complete(qmodel: QuantizedModel, given: Seen, checkpoint: Path | None = None) -> None:
    """Calibrate a prepared model, round its weights, and correct what that costs.

    ``checkpoint`` is that of the rounding.
    """
    from quantkit.model_calibration import calibrate
    from quantkit.workflow import correct, round_weights, samples_needed

    if any(True for _ in qmodel.of_role("activation")) and (given.data or given.statistics):
        calibrate(qmodel, given.data, statistics=given.statistics, checkpoint=given.checkpoint)
    if samples_needed(qmodel.recipe):
        # They show their own progress.
        round_weights(qmodel, given.data, checkpoint=checkpoint)
        correct(qmodel, given.data)
        return
    with working("rounding weights"):
        round_weights(qmodel)
        correct(qmodel)


def write(
    model: QuantizedModel | QuantizedOnnx,
    output: Path,
    form: ExportForm,
    *,
    plan: Path | None,
    state: Path | None,
) -> int:
    """The ONNX file, or the program if the name says so, and what else was asked for; its bytes."""
    from quantkit.files import replacing
    from quantkit.model import QuantizedModel
    from quantkit.onnx.export import export_onnx
    from quantkit.onnx.facts import bytes_on_disk
    from quantkit.program.writing import export_pt2

    with working(f"writing {output}"):
        if not is_program(output):
            export_onnx(model, output, form=form)
        elif isinstance(model, QuantizedModel):
            export_pt2(model, output, form=form)
        else:
            raise ExportError(f"{output}: {_FROM_ONNX}")
    if plan is not None:
        with replacing(plan) as temporary:
            temporary.write_text(json.dumps(json.loads(model.plan.to_json()), indent=2) + "\n")
    if state is not None and isinstance(model, QuantizedModel):
        model.save(state)
    return bytes_on_disk(output)


def is_program(output: Path) -> bool:
    """Whether a program of ``torch.export`` is to be written, not ONNX.

    Example:
        >>> is_program(Path("net.pt2")), is_program(Path("net.onnx"))
        (True, False)
    """
    return output.suffix == ".pt2"


def fitting_target(source: str, output: Path, target: Target | None, cpu: str) -> Target | None:
    """The target that the file is written for: that which is named, or that of programs.

    Raises:
        UsageError: the target that is named does not read such files.
        ExportError: a program is to be made of an ONNX file.
    """
    if is_program(output) and onnx_files.is_onnx(source):
        raise ExportError(f"{output}: {_FROM_ONNX}")
    if target is None:
        return make_target("inductor", None, cpu) if is_program(output) else None
    if (target.reads == "pt2") != is_program(output):
        wanted = "a name that ends in .pt2" if target.reads == "pt2" else "another name than .pt2"
        name = type(target).__module__.rpartition(".")[2]
        raise UsageError(f"the target {name} reads {target.reads} files: give -o {wanted}")
    return target


def bytes_of(model: Source) -> int:
    """How much a float model's weights take."""
    if isinstance(model, Path):
        return onnx_files.weight_bytes(model)
    from quantkit.loading import weight_bytes

    return weight_bytes(model)


def _examples(shapes: Shapes) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Inputs of these shapes; their values do not matter."""
    import torch

    # Zeros: whole numbers are mostly indices, and 0 is one in every table.
    made = [(name, torch.zeros(sizes, dtype=getattr(torch, kind))) for name, sizes, kind in shapes]
    by_order = tuple(value for name, value in made if name is None)
    return by_order, {name: value for name, value in made if name is not None}


def _require_names(path: Path, names: list[str], model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise DataError(
            f"{path}: {type(model).__name__}.forward has no input {unknown[0]!r}; name the inputs "
            f"as it does: {', '.join(parameters)}"
        )
