"""``recover`` on real, small models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_ways import export_float

import quantkit
from quantkit.errors import DataError, ModelFileError, RecipeError
from quantkit.model import QuantizedModel
from quantkit.recipe import Recipe, parse_recipe
from quantkit.recovering import making
from quantkit.recovering.goal import Attempt
from quantkit.recovering.ladder import LADDER
from quantkit.recovering.recover import recover

pytestmark = pytest.mark.usefixtures("one_thread")

#: As bad as can be: one scale a tensor, and channels that differ by far.
POOR = Recipe.model_validate({"name": "poor", "scheme": {"weights": {}, "activations": {}}})


class Net(nn.Module):
    """Two layers between which channels differ by far, as equalization is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(32, 64), nn.Linear(64, 16)
        with torch.no_grad():
            spread = torch.logspace(-2, 2, 64)
            self.stem.weight *= spread[:, None]
            self.stem.bias *= spread
            self.head.weight /= spread

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 32)`` to ``(N, 16)``."""
        out: Tensor = self.head(torch.relu(self.stem(x)))
        return out


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


ROWS = torch.randn(160, 32, generator=torch.Generator().manual_seed(1))
CALIBRATION = list(ROWS[:64].split(16))


def only(*steps: str) -> list[str]:
    """All other steps, to be left out."""
    return [step.name for step in LADDER if step.name not in steps]


def closeness(outputs: Tensor, labels: Tensor) -> float:
    """A metric in which float is never reached."""
    return -float((outputs - labels).square().mean())


@pytest.fixture(scope="module")
def wanted(net: Net) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x, net(x)) for x in ROWS[64:].split(32)]


@pytest.fixture(scope="module")
def held_out(net: Net) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x, net(x).argmax(dim=1)) for x in ROWS[64:].split(32)]


def measured(model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in pairs)
    return 100.0 * right / sum(len(y) for _, y in pairs)


def test_it_finds_a_recipe_that_makes_the_same_model_again(
    net: Net, held_out: list[tuple[Tensor, Tensor]]
) -> None:
    before = copy.deepcopy(net.state_dict())
    found = recover(
        net,
        POOR,
        calibration=CALIBRATION,
        holdout=held_out,
        max_drop=3.0,
        skip=only("weight ranges", "equalization", "asymmetric"),
    )
    assert found.met
    assert found.attempts[0].drop(found.goal) > 10.0
    assert "+ equalize" in found.best.changes
    assert found.best.measured is not None
    # Written, read, and quantized as anybody would.
    recipe = parse_recipe(found.to_yaml(), name="recovered")
    again = quantkit.quantize(net, recipe, calibration=CALIBRATION)
    assert measured(again, held_out) == found.best.measured.value
    assert isinstance(found.model, QuantizedModel)
    ours, theirs = found.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_candidate_is_that_of_quantize(net: Net, wanted: list[tuple[Tensor, Tensor]]) -> None:
    """One pass over the data serves many: none is another for it."""
    found = recover(
        net, POOR, calibration=CALIBRATION, holdout=wanted, metric=closeness, max_drop=0.0,
        skip=only("calibrators", "equalization", "asymmetric", "mixed precision"),
    )  # fmt: skip
    assert not found.met
    tried = [a for a in found.attempts if a.measured is not None and a.candidate is not None]
    assert {a.step for a in tried} == {
        "baseline", "calibrators", "equalization", "asymmetric", "mixed precision",
    }  # fmt: skip
    for attempt in tried[1::2]:
        assert attempt.candidate is not None
        assert attempt.measured is not None
        again = quantkit.quantize(net, attempt.candidate.recipe, calibration=CALIBRATION)
        assert making.digest_of(again) == attempt.measured.digest, attempt.change
    values = [a.measured.value for a in tried if a.measured is not None]
    assert found.best.measured is not None
    assert found.best.measured.value == max(values)
    assert "NOT recovered: closeness" in found.to_yaml()


def test_a_run_that_resumes_builds_and_measures_nothing_again(
    net: Net, wanted: list[tuple[Tensor, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*steps: str) -> tuple[Attempt, ...]:
        return recover(
            net, POOR, calibration=CALIBRATION, holdout=wanted, metric=closeness, max_drop=0.0,
            checkpoint=tmp_path / "c.json", resume=True, keep_model=False, skip=only(*steps),
        ).attempts  # fmt: skip

    first = run("weight ranges", "equalization", "mixed precision")
    with monkeypatch.context() as patch:
        patch.setattr(making.TorchMaker, "build", refuse)
        patch.setattr(making.TorchMaker, "ranking", refuse)
        second = run("weight ranges", "equalization", "mixed precision")
    assert [a.measured for a in second] == [a.measured for a in first]
    built: list[str] = []
    build = making.TorchMaker.build

    def counted(self: making.TorchMaker, candidate: Any, deadline: Any) -> QuantizedModel:
        built.append(candidate.step)
        return build(self, candidate, deadline)

    monkeypatch.setattr(making.TorchMaker, "build", counted)
    run("weight ranges", "equalization", "bias correction")
    assert set(built) == {"bias correction"}


def refuse(*args: object) -> None:
    raise AssertionError("nothing is to be built")


def test_a_checkpoint_of_another_model_is_refused(
    net: Net, held_out: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    options: dict[str, Any] = {"calibration": CALIBRATION, "holdout": held_out, "max_drop": 0.0}
    options["skip"] = only()
    recover(net, POOR, checkpoint=path, **options)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias += 1.0
    with pytest.raises(ModelFileError, match="another model"):
        recover(other, POOR, checkpoint=path, resume=True, **options)


def test_data_that_calibrate_may_not_judge(net: Net) -> None:
    pairs = [(ROWS[60:70], torch.zeros(10, dtype=torch.int64))]
    with pytest.raises(DataError, match="4 of the 10 held-out samples calibrate as well"):
        recover(net, POOR, calibration=CALIBRATION, holdout=pairs)


def test_without_labels_the_float_model_is_the_measure(net: Net) -> None:
    found = recover(
        net,
        POOR,
        calibration=CALIBRATION,
        holdout=list(ROWS[64:].split(32)),
        max_drop=0.0,
        skip=only(),
    )
    assert (found.goal.metric, found.goal.floating) == ("agreement", 100.0)


def test_a_time_limit_ends_the_climb(net: Net, held_out: list[tuple[Tensor, Tensor]]) -> None:
    found = recover(
        net, POOR, calibration=CALIBRATION, holdout=held_out, max_drop=0.0, time_limit=0.001
    )
    assert not found.met
    assert [a.status for a in found.attempts[1:]] == ["skipped"] * (len(found.attempts) - 1)
    assert found.best.step == "baseline"


def test_finetune_makes_a_trained_model_again(
    net: Net, wanted: list[tuple[Tensor, Tensor]]
) -> None:
    recipe = POOR.model_copy(
        update={"training": quantkit.TrainingChoice(epochs=2, learning_rate=1e-3)}
    )
    random = torch.get_rng_state()
    found = recover(
        net, recipe, calibration=CALIBRATION, holdout=wanted, metric=closeness, max_drop=0.0,
        train=CALIBRATION, skip=only("training"),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random)
    assert found.trained
    assert "The model is trained" in found.to_yaml()
    qmodel = quantkit.quantize(net, found.recipe, calibration=CALIBRATION)
    quantkit.finetune(qmodel, CALIBRATION)
    assert found.best.measured is not None
    assert making.digest_of(qmodel) == found.best.measured.digest


def test_an_onnx_file_climbs_as_far_as_there_are_steps_for_it(
    net: Net, held_out: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    export_float(net, (ROWS[:2],), tmp_path / "float.onnx")
    found = recover(
        tmp_path / "float.onnx", POOR, calibration=CALIBRATION, holdout=held_out, max_drop=0.0,
        allow=["per_channel"],
        skip=["weight ranges"],
    )  # fmt: skip
    status = {a.step: a.status for a in found.attempts}
    assert (
        status["equalization"] == status["quick rounding"] == status["mixed precision"] == "skipped"
    )
    assert status["calibrators"] == status["per channel"] == "measured"
    assert found.drop < found.attempts[0].drop(found.goal)
    again = quantkit.quantize_onnx(tmp_path / "float.onnx", found.recipe, calibration=CALIBRATION)
    assert found.best.measured is not None
    assert making.digest_of(again) == found.best.measured.digest


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"holdout": None}, DataError, "no held-out data"),
        ({"calibration": iter(CALIBRATION)}, DataError, "only once"),
        ({"max_drop": -1.0}, DataError, "max_drop must be 0 or more"),
        ({"skip": ["qdorp"]}, RecipeError, "no step 'qdorp'"),
        ({"allow": ["all"]}, RecipeError, "no allowance 'all'"),
        ({"metric": "spearman", "holdout": CALIBRATION}, DataError, "needs labels"),
        ({"loss": nn.functional.cross_entropy}, DataError, "loss is of training data"),
    ],
)
def test_what_means_nothing_is_refused(
    net: Net,
    held_out: list[tuple[Tensor, Tensor]],
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given: dict[str, Any] = {"calibration": CALIBRATION, "holdout": held_out, **options}
    with pytest.raises(error, match=words):
        recover(net, POOR, **given)


def test_a_model_whose_outputs_are_no_numbers_is_a_failed_row(
    net: Net, held_out: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = making.TorchMaker.build

    def broken(self: making.TorchMaker, candidate: Any, deadline: Any) -> QuantizedModel:
        made = build(self, candidate, deadline)
        if candidate.step == "calibrators":
            with torch.no_grad():
                made.graph.head.bias.fill_(float("nan"))
        return made

    monkeypatch.setattr(making.TorchMaker, "build", broken)
    found = recover(
        net, POOR, calibration=CALIBRATION, holdout=held_out, max_drop=0.0,
        skip=only("calibrators", "weight ranges"),
    )  # fmt: skip
    rows = [a for a in found.attempts if a.step == "calibrators"]
    assert {a.status for a in rows} == {"failed"}
    assert "NaN" in rows[0].note
    assert found.attempts[-1].status == "measured"
