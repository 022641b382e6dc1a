"""Calibration of a prepared model: ended and resumed, from data files, and from statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit.calibrating import Checkpoint
from quantkit.data import DataSpec
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.model import QuantizedModel
from quantkit.model_calibration import activations, calibrate, observe, observers_of
from quantkit.recipe import PlugIn
from quantkit.transform import Transform
from quantkit.workflow import prepare, quantize, resolve_recipe
from small_models import ResNet

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES = 76


def net(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet().eval()


@cache
def captured(recipe: str, seed: int) -> QuantizedModel:
    model = net(seed)
    return prepare(model, recipe, example_inputs=model.example_inputs)


def prepared(recipe: str = "int8_ptq", seed: int = 0) -> QuantizedModel:
    return copy.deepcopy(captured(recipe, seed))


def batches() -> list[Tensor]:
    """Batches of 6, so that what runs at a time is made of two."""
    return list(net().inputs(SAMPLES, seed=1)[0].split(6))


def grids(model: QuantizedModel) -> list[Tensor]:
    return [x for q in model.quantizers.values() for x in (q.scale.clone(), q.zero_point.clone())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


class EndedError(Exception):
    """The process is killed."""


def ended_after(count: int) -> Iterator[Tensor]:
    yield from batches()[:count]
    raise EndedError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Tensor], bytes]:
    """Grids and file of a run that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole") / "s.safetensors"
    model = prepared()
    calibrate(model, batches(), checkpoint=Checkpoint(path=path))
    return grids(model), path.read_bytes()


# Ended and resumed


@pytest.mark.parametrize("after", [1, 4, 12])
@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_run_that_was_ended_and_resumed_is_a_run_that_was_not(
    after: int, every: int, whole: tuple[list[Tensor], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(EndedError):
        calibrate(prepared(), ended_after(after), checkpoint=Checkpoint(path=path, every=every))
    assert not path.exists()
    begun = Checkpoint(path=path).begun()
    assert bool(begun) == (6 * after // 8 >= every)  # parts are of 8 samples
    model = prepared()
    calibrate(model, batches(), checkpoint=Checkpoint(path=path, every=every, resume=True))
    assert same(grids(model), whole[0])
    assert path.read_bytes() == whole[1]
    assert Checkpoint(path=path).begun() == []


def test_a_run_may_be_ended_many_times(whole: tuple[list[Tensor], bytes], tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=tmp_path / "s", every=1, resume=True)
    for after in (2, 4, 7, 11):
        with pytest.raises(EndedError):
            calibrate(prepared(), ended_after(after), checkpoint=checkpoint)
    calibrate(prepared(), batches(), checkpoint=checkpoint)
    assert checkpoint.path.read_bytes() == whole[1]


def test_a_run_that_is_done_reads_no_data_when_resumed(
    whole: tuple[list[Tensor], bytes], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(path=tmp_path / "s", resume=True)
    calibrate(prepared(), batches(), checkpoint=checkpoint)
    model = prepared()
    calibrate(model, ended_after(0), checkpoint=checkpoint)
    assert same(grids(model), whole[0])


def test_the_file_of_an_earlier_run_stays_while_another_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "s"
    calibrate(prepared(), batches()[:2], checkpoint=Checkpoint(path=path))
    before = path.read_bytes()
    with pytest.raises(EndedError):
        calibrate(prepared(), ended_after(12), checkpoint=Checkpoint(path=path, every=1))
    assert path.read_bytes() == before
    # And the run that was ended is the one that goes on.
    calibrate(prepared(), batches(), checkpoint=Checkpoint(path=path, resume=True))
    assert path.read_bytes() != before


def test_another_model_is_not_resumed_and_loses_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint(path=tmp_path / "s", resume=True)
    calibrate(prepared(), batches(), checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()
    other = prepared(seed=1)
    with pytest.raises(ModelFileError, match="another model"):
        calibrate(other, batches(), checkpoint=checkpoint)
    assert checkpoint.path.read_bytes() == before
    assert not any(quantizer.calibrated for quantizer in activations(other))


def test_a_checkpoint_is_due_after_a_part_at_the_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or more, got 0"):
        Checkpoint(path=tmp_path / "s", every=0)


# Data files


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The rows that were decoded."""
    rows: list[object] = []
    read = Transform.read

    def counted(self: Transform, value: object) -> Tensor:
        rows.append(value)
        return read(self, value)

    monkeypatch.setattr(Transform, "read", counted)
    return rows


@pytest.mark.parametrize("batch_size", [1, 6, 8, 32, 100])
def test_a_data_file_gives_what_its_batches_give(
    batch_size: int, whole: tuple[list[Tensor], bytes], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=torch.cat(batches()).numpy())
    model = prepared()
    spec = DataSpec(source=str(tmp_path / "x.npz"), inputs={"x": {}}, batch_size=batch_size)
    calibrate(model, spec)
    assert same(grids(model), whole[0])


@pytest.mark.parametrize("batch_size", [6, 8])
def test_rows_that_were_seen_are_not_decoded_again(
    batch_size: int, decoded: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", x=torch.cat(batches()).numpy())
    spec = DataSpec(source=str(tmp_path / "x.npz"), inputs={"x": {}}, batch_size=batch_size)
    with monkeypatch.context() as patch:
        seen = 0

        def dying(self: QuantizedModel, *args: Tensor) -> Tensor:
            nonlocal seen
            seen += args[0].shape[0]
            if seen > 48:
                raise EndedError
            return self.graph(*args)  # type: ignore[no-any-return]

        patch.setattr(QuantizedModel, "forward", dying)
        with pytest.raises(EndedError):
            calibrate(prepared(), spec, checkpoint=Checkpoint(path=tmp_path / "s", every=1))
    decoded.clear()
    model = prepared()
    calibrate(model, spec, checkpoint=Checkpoint(path=tmp_path / "s", every=1, resume=True))
    assert len(decoded) == SAMPLES - 48
    decoded.clear()
    calibrate(prepared(), spec, checkpoint=Checkpoint(path=tmp_path / "s", resume=True))
    assert decoded == []


def test_other_data_are_not_taken_for_the_rest_of_these(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=torch.cat(batches()).numpy())
    spec = DataSpec(source=str(tmp_path / "x.npz"), inputs={"x": {}}, batch_size=8)
    checkpoint = Checkpoint(path=tmp_path / "s", resume=True)
    calibrate(prepared(), spec, checkpoint=checkpoint)
    with pytest.raises(ModelFileError, match="other data"):
        calibrate(prepared(), spec.model_copy(update={"limit": 8}), checkpoint=checkpoint)
    with pytest.raises(ModelFileError, match="other data"):
        calibrate(prepared(), batches(), checkpoint=checkpoint)


def test_an_error_in_data_names_the_batch_of_the_file(tmp_path: Path) -> None:
    images = torch.cat(batches()).numpy()
    images[50] = np.nan
    np.savez(tmp_path / "x.npz", x=images)
    spec = DataSpec(source=str(tmp_path / "x.npz"), inputs={"x": {}}, batch_size=8)
    with pytest.raises(DataError, match="batch 6, input 'x'"):
        calibrate(prepared(), spec)


def test_a_data_file_without_rows_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 3, 16, 16), np.float32))
    spec = DataSpec(source=str(tmp_path / "x.npz"), inputs={"x": {}})
    with pytest.raises(DataError, match="no row"):
        calibrate(prepared(), spec)


# From files


def saved(folder: Path, name: str, data: list[Tensor], recipe: str = "int8_ptq") -> Path:
    path = folder / name
    calibrate(prepared(recipe), data, checkpoint=Checkpoint(path=path))
    return path


def test_merged_files_give_the_grids_of_one_run(
    whole: tuple[list[Tensor], bytes], tmp_path: Path
) -> None:
    x = torch.cat(batches())
    paths = [saved(tmp_path, str(i), [part]) for i, part in enumerate(x.split([8, 40, 28]))]
    model = prepared()
    calibrate(model, statistics=paths)
    assert same(grids(model), whole[0])


@pytest.mark.parametrize("calibrator", ["entropy", "mse", "percentile", "moving_average", "best"])
def test_one_file_serves_every_calibrator(calibrator: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "s", batches())
    found = resolve_recipe("int8_ptq")
    recipe = found.model_copy(update={"calibrator": PlugIn(name=calibrator)})
    model = net()
    from_file, from_data = (
        prepare(model, recipe, example_inputs=model.example_inputs) for _ in range(2)
    )
    calibrate(from_file, statistics=[path], calibration=batches())
    calibrate(from_data, batches())
    assert same(grids(from_file), grids(from_data))


def test_quantize_takes_statistics_instead_of_data(tmp_path: Path) -> None:
    path, model = saved(tmp_path, "s", batches()), net()
    from_file = quantize(model, example_inputs=model.example_inputs, statistics=[path])
    from_data = quantize(model, example_inputs=model.example_inputs, calibration=batches())
    assert same(grids(from_file), grids(from_data))
    x = model.inputs(4)[0]
    assert torch.equal(from_file(x), from_data(x))


def test_a_program_needs_no_example_beside_statistics(tmp_path: Path) -> None:
    model = net()
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, model.example_inputs, dynamic_shapes=(batch,))
    first = prepare(program, "int8_ptq", example_inputs=())
    calibrate(first, batches(), checkpoint=Checkpoint(path=tmp_path / "s"))
    assert same(grids(quantize(program, statistics=[tmp_path / "s"])), grids(first))


def test_nothing_to_calibrate_with_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to calibrate with"):
        calibrate(prepared())


def test_statistics_of_another_recipe_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "s", batches())
    other = prepared("int8_cpu")  # it quantizes outputs as well
    with pytest.raises(ModelFileError, match="use the recipe"):
        calibrate(other, statistics=[path])
    assert not any(quantizer.calibrated for quantizer in activations(other))


def test_settings_that_cannot_be_kept_beside_another_calibrators_are_told(tmp_path: Path) -> None:
    own = PlugIn(name="percentile", settings={"half": 1024})
    recipe = resolve_recipe("int8_ptq").model_copy(update={"calibrator": own})
    model = net()
    qmodel = prepare(model, recipe, example_inputs=model.example_inputs)
    with pytest.raises(RecipeError, match="same settings"):
        calibrate(qmodel, batches(), checkpoint=Checkpoint(path=tmp_path / "s"))


def test_observing_changes_no_grid_and_counts_the_samples() -> None:
    model = prepared()
    calibrate(model, batches()[:2])
    before, mode = grids(model), model.training
    assert observe(model, batches()) == SAMPLES
    assert same(grids(model), before)
    assert model.training == mode
    assert not any(q.observing for q in model.quantizers.values())
    assert all(q.quantizing for q in model.quantizers.values())
    assert all(bool(o.get_buffer("maximum").isfinite()) for o in observers_of(activations(model)))
