"""What calibrators make of a model: figures against the truth, and as calibration gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantkit import numerics, plugins
from quantkit.analysis.calibrators import (
    CalibratedRange,
    CalibratorComparison,
    TensorComparison,
    compare_calibrators,
    compare_observed,
    compared_and_kept,
)
from quantkit.calibrating import Checkpoint
from quantkit.errors import DataError, RecipeError
from quantkit.interfaces import Calibrator, Chooser
from quantkit.model import QuantizedModel
from quantkit.model_calibration import activations, calibrate
from quantkit.observer import Observer
from quantkit.recipe import PlugIn
from quantkit.spec import QuantSpec
from quantkit.workflow import prepare, resolve_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def prepared(recipe: str = "int8_ptq", calibrator: PlugIn | None = None) -> QuantizedModel:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)]
    found = resolve_recipe(recipe)
    if calibrator is not None:
        found = found.model_copy(update={"calibrator": calibrator})
    return prepare(nn.Sequential(*layers).eval(), found, example_inputs=(torch.randn(2, 32),))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 32, generator=generator)
    return list((x * (1 + 3 * torch.rand(96, 1, generator=generator))).split(32))


@pytest.fixture(scope="module", params=["int8_ptq", "int8_asymmetric"])
def compared(request: pytest.FixtureRequest) -> tuple[str, QuantizedModel, CalibratorComparison]:
    model = prepared(request.param)
    return request.param, model, compare_calibrators(model, batches())


def test_every_calibrator_that_finds_ranges_is_compared(
    compared: tuple[str, QuantizedModel, CalibratorComparison],
) -> None:
    _, model, found = compared
    names = plugins.names_of("calibrators", Calibrator)
    kinds = {name: plugins.find("calibrators", name, Calibrator) for name in names}
    assert found.calibrators == tuple(n for n, k in kinds.items() if not issubclass(k, Chooser))
    assert [t.tensor for t in found.tensors] == [q.name for q in activations(model)]
    assert all(tuple(r.calibrator for r in t.ranges) == found.calibrators for t in found.tensors)
    assert found.samples == 96


def test_ranges_are_those_of_calibrating_with_each(
    compared: tuple[str, QuantizedModel, CalibratorComparison],
) -> None:
    recipe, _, found = compared
    for number, name in enumerate(found.calibrators):
        model = prepared(recipe, PlugIn(name=name))
        calibrate(model, batches())
        for quantizer, tensor in zip(activations(model), found.tensors, strict=True):
            low, high = (
                torch.tensor(end) for end in (tensor.ranges[number].low, tensor.ranges[number].high)
            )
            assert torch.equal(numerics.grid(low, high, quantizer.spec)[0], quantizer.scale)


def test_the_noise_of_a_tensor_is_that_of_its_samples() -> None:
    for spec in (QuantSpec(), QuantSpec(dtype="uint8", symmetric=False), QuantSpec(dtype="int4")):
        x = torch.randn(200_000, generator=torch.Generator().manual_seed(3)) * 2 + 0.3
        names = ("minmax", "mse", "percentile")
        kinds = {n: plugins.find("calibrators", n, Calibrator)() for n in names}
        observer = Observer(spec, kinds["mse"], name="x")
        observer.keep(compared_and_kept([observer])[1])
        observer(x)
        (tensor,) = compare_observed([observer], kinds, len(x)).tensors
        for found in tensor.ranges:
            grid = numerics.choose_qparams(torch.tensor(found.low), torch.tensor(found.high), spec)
            noise = (numerics.fake_quantize(x, grid) - x).double().square().sum()
            true = 10 * math.log10(float(x.double().square().sum() / noise))
            assert found.sqnr == pytest.approx(true, abs=0.1)
        mse = tensor.ranges[names.index("mse")]
        assert mse.sqnr > tensor.best.sqnr - 0.1


def test_figures_at_the_outputs_are_those_of_running_each(
    compared: tuple[str, QuantizedModel, CalibratorComparison],
) -> None:
    recipe, _, found = compared
    assert found.output_sqnr is not None
    x = torch.cat(batches())
    for name, figure in zip(found.calibrators, found.output_sqnr, strict=True):
        model = prepared(recipe, PlugIn(name=name))
        calibrate(model, batches())
        assert figure == pytest.approx(sqnr(model, x), abs=1e-3)
    best = prepared(recipe, PlugIn(name="best"))
    calibrate(best, batches())
    assert found.mixed_sqnr == pytest.approx(sqnr(best, x), abs=1e-3)
    assert found.mixed_sqnr >= max(found.output_sqnr)


def sqnr(model: QuantizedModel, x: Tensor) -> float:
    with torch.no_grad():
        got = model(x)
        model.simulate(False)
        wanted = model(x)
        model.simulate()
    noise = (got - wanted).double().square().sum()
    return 10 * math.log10(float(wanted.double().square().sum() / noise))


def test_comparing_changes_no_grid() -> None:
    model = prepared()
    calibrate(model, batches())
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("scale", "point"))}
    assert before
    compare_calibrators(model, batches()[:1])
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_an_iterator_is_read_once() -> None:
    reads = 0

    def once() -> Iterator[Tensor]:
        nonlocal reads
        for batch in batches():
            reads += 1
            yield batch

    found = compare_calibrators(prepared(), once())
    assert reads == 3
    assert found.tensors == compare_calibrators(prepared(), batches()).tensors


def test_statistics_without_data_tell_everything_but_the_outputs(tmp_path: Path) -> None:
    written = Checkpoint(path=tmp_path / "s")
    whole = compare_calibrators(prepared(), batches(), checkpoint=written)
    found = compare_calibrators(prepared(), statistics=[tmp_path / "s"])
    assert found.tensors == whole.tensors
    assert (found.output_sqnr, found.mixed_sqnr, found.samples) == (None, None, 96)
    assert found.best == max(found.calibrators, key=found.mean_sqnr)
    judged = compare_calibrators(prepared(), batches(), statistics=[tmp_path / "s"])
    assert judged == whole


def test_some_calibrators_can_be_chosen_and_the_file_serves_all(tmp_path: Path) -> None:
    written = Checkpoint(path=tmp_path / "s")
    found = compare_calibrators(
        prepared(), batches(), names=["mse", "minmax"], samples=0, checkpoint=written
    )
    assert found.calibrators == ("mse", "minmax")
    assert found.output_sqnr is None
    entropy = compare_calibrators(prepared(), statistics=[tmp_path / "s"], names=["entropy"])
    assert entropy.calibrators == ("entropy",)


def test_the_recipes_own_settings_are_compared() -> None:
    own = PlugIn(name="percentile", settings={"percentile": 90.0})
    found = compare_calibrators(prepared(calibrator=own), batches(), names=["percentile"])
    plain = compare_calibrators(prepared(), batches(), names=["percentile"])
    assert all(
        a.ranges[0].high < b.ranges[0].high
        for a, b in zip(found.tensors, plain.tensors, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "words"), [("best", "chooses from other calibrators"), ("msr", "did you mean 'mse'")]
)
def test_what_cannot_be_compared_is_refused(name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        compare_calibrators(prepared(), batches(), names=[name])


def test_nothing_seen_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to calibrate with"):
        compare_calibrators(prepared())


def test_wins_and_means_count_every_tensor_once() -> None:
    def tensor(name: str, *figures: float) -> TensorComparison:
        ranges = tuple(
            CalibratedRange(calibrator=c, low=0.0, high=1.0, sqnr=f)
            for c, f in zip("ab", figures, strict=True)
        )
        return TensorComparison(
            tensor=name, form="int8", symmetric=True, low=0.0, high=1.0, ranges=ranges
        )

    tensors = (tensor("x", 10.0, 20.0), tensor("y", 30.0, 30.0), tensor("z", 5.0, 1.0))
    found = CalibratorComparison(calibrators=("a", "b"), tensors=tensors)
    assert (found.wins("a"), found.wins("b")) == (2, 1)  # of equal ones the first
    assert (found.mean_sqnr("a"), found.mean_sqnr("b")) == (15.0, 17.0)
    assert found.best == "b"
    assert (
        CalibratorComparison(
            calibrators=("a", "b"), tensors=tensors, output_sqnr=(9.0, 8.0), mixed_sqnr=9.0
        ).best
        == "a"
    )
