"""What the commands do with a float ONNX file as MODEL: the counterparts of those for PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit._cli_work import UsageError, working
from quantkit.errors import DataError, ModelFileError

if TYPE_CHECKING:
    from quantkit.calibrating import Checkpoint
    from quantkit.data import Data
    from quantkit.onnx.quantized import QuantizedOnnx
    from quantkit.recipe import Recipe

#: Options that mean nothing here, and why.
_REASONS = {
    "--weights": "holds its own weights",
    "--input-shape": "says itself what its inputs are",
    "--static": "says itself which of its dimensions are fixed",
    "--checkpoint": "is rounded to nearest, which is done at once",
    "--save": "has no parameters of PyTorch to save (the ONNX file written holds the grids)",
}


def is_onnx(source: str) -> bool:
    """Whether MODEL is an ONNX file.

    Example:
        >>> is_onnx("net.onnx"), is_onnx("net:make")
        (True, False)
    """
    return source.endswith(".onnx")


def refuse_options(source: str, given: Mapping[str, object]) -> None:
    """Refuse what is for PyTorch models alone; ``given`` are the options and their values."""
    for option, value in given.items():
        if is_onnx(source) and value:
            raise UsageError(f"{source} {_REASONS[option]}: leave {option} out")


def load(source: str, weights: Path | None) -> Path:
    """The path of a float file."""
    refuse_options(source, {"--weights": weights})
    if not Path(source).is_file():
        raise ModelFileError(f"{source}: no such file; give a float ONNX file")
    return Path(source)


def require_names(data: Path, names: Iterable[str], model: Path) -> None:
    """Refuse data whose inputs are not called as those of the file."""
    from quantkit.onnx.facts import FileFacts

    wanted, given = FileFacts.of(model).inputs, list(names)
    if not wanted:
        raise ModelFileError(f"{model}: has no inputs, or is empty; export the model again")
    listed = ", ".join(wanted)
    unknown = [name for name in given if name not in wanted]
    if unknown:
        raise DataError(
            f"{data}: {model} has no input {unknown[0]!r}; name the inputs as it does: {listed}"
        )
    missing = [name for name in wanted if name not in given]
    if missing:
        raise DataError(
            f"{data}: has nothing for the input {missing[0]!r} of {model}; under `inputs` name all "
            f"that it has: {listed}"
        )


def prepare(model: Path, recipe: Recipe) -> QuantizedOnnx:
    """The file with a plan; its activations have no grids yet."""
    from quantkit.workflow_onnx import prepare_onnx

    with working(f"reading {model}"):
        return prepare_onnx(model, recipe)


def quantize(
    model: Path,
    recipe: Recipe,
    data: Data | None,
    *,
    statistics: Sequence[Path],
    checkpoint: Checkpoint | None,
) -> QuantizedOnnx:
    """The steps of ``quantkit.quantize_onnx``, each shown while it runs."""
    from quantkit.workflow_onnx import calibrate_onnx, round_onnx_weights

    quantized = prepare(model, recipe)
    if quantized.observers and (data is not None or statistics):
        calibrate_onnx(quantized, data, statistics=statistics, checkpoint=checkpoint)
    with working("rounding weights"):
        round_onnx_weights(quantized)
    return quantized


def weight_bytes(model: Path) -> int:
    """How many bytes the constants of a file take, wherever they are stored."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    graph = onnx.load(model, load_external_data=False).graph
    constants = [node for node in graph.node if node.op_type == "Constant"]
    inside = [a.t for node in constants for a in node.attribute if a.HasField("t")]
    total = 0
    for tensor in (*graph.initializer, *inside):
        if uses_external_data(tensor):
            length = next((e.value for e in tensor.external_data if e.key == "length"), "0")
            total += int(length)
        else:
            total += onnx.numpy_helper.to_array(tensor).nbytes
    return total
