"""Roundings that were ended and go on: the same bits, and no other run's blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import quantkit
import small_models
from quantkit import plugins
from quantkit.batches import Call
from quantkit.errors import ExportError, ModelFileError, RecipeError
from quantkit.interfaces import BlockRounding, LayerRounding
from quantkit.model import QuantizedModel, copied
from quantkit.model_calibration import calibrate, calls_of
from quantkit.recipe import Recipe
from quantkit.reconstruction.problem import LayerProblem
from quantkit.reconstruction.steps import reconstruct
from quantkit.reconstruction.stream import Stream
from quantkit.rounding.gptq import Gptq
from quantkit.rounding.qdrop import QDrop
from quantkit.workflow import prepare, round_weights

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [*plugins.names_of("rounding", LayerRounding), *plugins.names_of("rounding", BlockRounding)]
#: Settings under which a rounding takes a moment, and moves everything that it may move.
QUICK: dict[str, dict[str, Any]] = {
    "adaround": {"iterations": 5, "sweeps": 1, "clip": True},
    "qdrop": {"iterations": 8, "batch": 8, "grid_learning_rate": 0.01, "begin": "mse"},
}
ROOT = Path(__file__).resolve().parents[2]


def rounding(name: str) -> LayerRounding | BlockRounding:
    """A rounding that takes a moment."""
    found: LayerRounding | BlockRounding
    found = plugins.find_any("rounding", name, (LayerRounding, BlockRounding))(
        samples=64, **QUICK.get(name, {})
    )
    return found


def batches(first: int = 0) -> list[tuple[Tensor, ...]]:
    """Four calls: the last is held out."""
    return [small_models.resnet().inputs(8, seed=first + seed) for seed in range(4)]


def four_bits(rounding: str = "gptq", **others: object) -> Recipe:
    """A recipe of which each tensor has something to learn."""
    activations = {"dtype": "uint8", "bits": 4, "symmetric": False}
    scheme = {"weights": {"per": "channel", "bits": 4}, "activations": activations}
    chosen = {"scheme": scheme, "target": "onnxruntime", "rounding": rounding, **others}
    return Recipe.model_validate({"name": "w4a4", **chosen})


def calibrated(seed: int = 0, recipe: str | None = None) -> tuple[QuantizedModel, Sequence[Call]]:
    """A model of some blocks whose weights are not rounded yet, and its calls."""
    model, calls = _calibrated(seed, recipe)
    return copied(model), calls


@cache
def _calibrated(seed: int, recipe: str | None) -> tuple[QuantizedModel, Sequence[Call]]:
    model, data = small_models.resnet(), batches(first=seed)
    prepared = prepare(model, recipe or four_bits(), example_inputs=model.example_inputs)
    calibrate(prepared, data)
    return prepared, calls_of(prepared.capture, data, 64)


def same(one: QuantizedModel, other: QuantizedModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def blocks_in(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        count: int = json.loads(file.metadata()["quantkit"])["blocks"]
    return count


@contextmanager
def ending_after(blocks: int) -> Iterator[None]:
    """Ctrl-C when so many blocks are done."""
    move, done = Stream.move, []

    def ended(stream: Stream, stop: int, floating: Any) -> None:
        done.append(stop)
        if len(done) == blocks:
            raise KeyboardInterrupt
        move(stream, stop, floating)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "move", ended)
        try:
            yield
        except KeyboardInterrupt:
            return
    pytest.fail("not ended")


# Going on


@pytest.mark.parametrize("name", NAMES)
def test_a_rounding_that_was_ended_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    file, whole = tmp_path / "rounded", calibrated()
    reconstruct(whole[0], rounding(name), whole[1])
    with ending_after(2):
        reconstruct(*_args(calibrated(), name), checkpoint=file)
    assert blocks_in(file) == 2
    torch.manual_seed(7)  # no rounding draws from PyTorch's own generator
    model, calls = calibrated()
    reconstruct(model, rounding(name), calls, checkpoint=file)
    assert same(model, whole[0])
    assert blocks_in(file) > 2


def _args(
    made: tuple[QuantizedModel, Sequence[Call]], name: str
) -> tuple[QuantizedModel, LayerRounding | BlockRounding, Sequence[Call]]:
    return made[0], rounding(name), made[1]


def test_a_run_may_be_ended_after_each_block_again(tmp_path: Path) -> None:
    file, whole = tmp_path / "rounded", calibrated()
    reconstruct(*_args(whole, "qdrop"))
    for blocks in range(1, 4):
        with ending_after(blocks):
            reconstruct(*_args(calibrated(), "qdrop"), checkpoint=file)
        assert blocks_in(file) == blocks
    last = calibrated()
    reconstruct(*_args(last, "qdrop"), checkpoint=file)
    assert same(last[0], whole[0])


def test_steps_of_activations_are_taken_from_the_file(tmp_path: Path) -> None:
    file, before = tmp_path / "rounded", calibrated()[0]
    reconstruct(*_args(calibrated(), "qdrop"), checkpoint=file)
    model = calibrated()[0]
    restored = (model, QDrop(samples=64, **QUICK["qdrop"]), calibrated()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QDrop, "round", _never)
        reconstruct(*restored, checkpoint=file)
    moved = [
        name
        for name, q in model.quantizers.items()
        if q.observer is not None and not torch.equal(q.scale, before.quantizers[name].scale)
    ]
    assert moved


def _never(*args: object) -> None:
    pytest.fail("learned again")


def test_quantize_goes_on_as_if_it_had_not_been_ended(tmp_path: Path) -> None:
    model, file = small_models.mlp(), tmp_path / "rounded"
    data = [model.inputs(8, seed=seed) for seed in range(3)]
    passes = ["fold_batchnorm", "smooth", "correct_bias"]
    recipe = four_bits(passes=passes, placement={"small": True})
    whole = quantkit.quantize(model, recipe, calibration=data)
    with ending_after(2):
        quantkit.quantize(model, recipe, calibration=iter(data), checkpoint=file)
    assert same(quantkit.quantize(model, recipe, calibration=data, checkpoint=str(file)), whole)
    # What is done stays, and serves a recipe that differs only in what comes after it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gptq, "round", _never)
        bare = recipe.model_copy(update={"name": "bare", "passes": recipe.passes[:-1]})
        quantkit.quantize(model, bare, calibration=data, checkpoint=file)


# Ended at a bad moment


@dataclass(frozen=True)
class Ending(LayerRounding):
    """Rounds to nearest, and is ended at one layer, in the middle of its block."""

    at: str

    @property
    def samples(self) -> int:
        """Some."""
        return 16

    def round(self, problem: LayerProblem) -> tuple[Tensor, Tensor]:
        """Nearest, or an end."""
        if problem.name == self.at:
            raise KeyboardInterrupt
        return problem.snap(problem.weight), problem.step

    def __repr__(self) -> str:
        return "Ending"


def test_half_a_block_is_not_kept(tmp_path: Path) -> None:
    file, (whole, calls) = tmp_path / "rounded", calibrated()
    reconstruct(whole, Ending(""), calls)
    model, _ = calibrated()
    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, Ending("identity.conv2.0"), calls, checkpoint=file)
    assert blocks_in(file) == 1
    assert not model.training
    assert list(tmp_path.iterdir()) == [file]
    again, _ = calibrated()
    reconstruct(again, Ending(""), calls, checkpoint=file)
    assert same(again, whole)


def test_ended_while_it_writes_the_file_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, made = tmp_path / "rounded", calibrated()

    def half(tensors: dict[str, Tensor], path: Path, metadata: Any) -> None:
        if len({key.split("/")[0] for key in tensors}) == 2:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(*_args(made, "gptq"), checkpoint=file)
    assert blocks_in(file) == 1
    assert list(tmp_path.iterdir()) == [file]


KILLED = """
import os, signal, sys
from pathlib import Path
from test_checkpoint import calibrated, rounding, reconstruct, Stream

move, done = Stream.move, []

def killed(stream, stop, floating):
    done.append(stop)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    move(stream, stop, floating)

Stream.move = killed
model, calls = calibrated()
reconstruct(model, rounding("gptq"), calls, checkpoint=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_gone_on_with_by_another(tmp_path: Path) -> None:
    file, whole = tmp_path / "rounded", calibrated()
    reconstruct(*_args(whole, "gptq"))
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(file)], check=False, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folders},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert blocks_in(file) == 2
    model, calls = calibrated()
    reconstruct(model, rounding("gptq"), calls, checkpoint=file)
    assert same(model, whole[0])


# Refused


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run that was ended has left."""
    file = tmp_path_factory.mktemp("begun") / "rounded"
    with ending_after(2):
        reconstruct(*_args(calibrated(), "gptq"), checkpoint=file)
    return file.read_bytes()


def refused(path: Path, made: tuple[QuantizedModel, Sequence[Call]], chosen: LayerRounding) -> str:
    """The message; neither the file nor the model has changed."""
    content, (model, calls) = path.read_bytes(), made
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelFileError) as caught:
        reconstruct(model, chosen, calls, checkpoint=path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "remove the file" in message
    return message


def gptq() -> LayerRounding:
    return Gptq(samples=64)


def other_weights() -> tuple[QuantizedModel, Sequence[Call]]:
    made = calibrated()
    with torch.no_grad():
        next(layer.weight_value for layer in made[0].layers()).mul_(1.001)  # type: ignore[union-attr]
    return made


def other_grids() -> tuple[QuantizedModel, Sequence[Call]]:
    made = calibrated()
    with torch.no_grad():
        next(iter(made[0].quantizers.values())).scale.mul_(1.001)
    return made


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: calibrated(seed=1), "other calibration data"),
        (lambda: (calibrated()[0], calibrated()[1][:-1]), "other calibration data"),
        (lambda: calibrated(recipe="int8_ptq"), "another model, or another plan"),
        (other_weights, "other float weights"),
        (other_grids, "other grids"),
    ],
)
def test_a_file_of_another_run_is_refused_and_stays(
    make: Callable[[], tuple[QuantizedModel, Sequence[Call]]],
    words: str,
    begun: bytes,
    tmp_path: Path,
) -> None:
    file = tmp_path / "rounded"
    file.write_bytes(begun)
    assert words in refused(file, make(), gptq())


def test_a_file_of_another_rounding_or_version_is_refused(
    begun: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rounded"
    file.write_bytes(begun)
    assert "another rounding, or other settings" in refused(file, calibrated(), Gptq(samples=63))
    monkeypatch.setattr(quantkit, "__version__", "0.0.1")
    assert "another version of quantkit" in refused(file, calibrated(), gptq())


def junk(path: Path) -> None:
    path.write_text("junk")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def no_head(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


def head(**entries: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["quantkit"]) | entries
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata={"quantkit": json.dumps(about)})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (junk, "no checkpoint of a rounding, or cut short"),
        (cut, "no checkpoint of a rounding, or cut short"),
        (no_head, "no checkpoint of a rounding"),
        (flipped, "damaged (its sum does not match)"),
        (head(format="quantkit.rounding/9"), "its form is 'quantkit.rounding/9'"),
        (head(blocks=1), "damaged"),
        (head(blocks=3), "its blocks are not those of this model"),
        (head(blocks="two"), "damaged"),
        (head(about=["x"]), "no checkpoint of a rounding"),
    ],
)
def test_a_file_that_is_none_or_damaged_is_refused_and_stays(
    change: Callable[[Path], None], words: str, begun: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "rounded"
    file.write_bytes(begun)
    change(file)
    assert words in refused(file, calibrated(), gptq())


def test_a_file_that_cannot_be_written_is_told_before_anything_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = calibrated()
    monkeypatch.setattr(Gptq, "round", _never)
    with pytest.raises(ExportError, match="choose a folder that exists"):
        reconstruct(model, gptq(), calls, checkpoint=tmp_path / "absent" / "rounded")


def test_a_rounding_that_learns_nothing_has_no_checkpoint(tmp_path: Path) -> None:
    model, file = small_models.resnet(), tmp_path / "rounded"
    with pytest.raises(RecipeError, match=r"nearest, learns nothing.*leave the checkpoint out"):
        quantkit.quantize(model, "int8_ptq", calibration=[torch.tensor(torch.nan)], checkpoint=file)
    prepared = prepare(model, "int8_weight_only", example_inputs=model.example_inputs)
    with pytest.raises(RecipeError, match="leave the checkpoint out"):
        round_weights(prepared, checkpoint=file)
    assert not file.exists()
