"""finetune: what it learns from, what it keeps, and how it stops, resumes and fails."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qat_models
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import quantkit
import small_models
from quantkit import numerics
from quantkit.errors import (
    DataError,
    MissingDependencyError,
    ModelFileError,
    RecipeError,
    TrainingError,
)
from quantkit.model import QuantizedModel
from quantkit.qat.finetuning import Epoch, finetune
from quantkit.qat.optimizing import learning_rate, make_optimizer
from quantkit.recipe import PlugIn, Recipe
from quantkit.targets.tensorrt_rtx import TensorRTRTX
from quantkit.training_choice import TrainingChoice
from quantkit.workflow import _find_recipe

QUICK = TrainingChoice(epochs=3, learning_rate=1e-3, teacher_loss="mse")


def images(seed: int = 0, rows: int = 48) -> Tensor:
    return small_models.resnet().inputs(rows, seed)[0]


def data() -> list[Tensor]:
    return list(images(1).split(16))


def quantized(recipe: str | Recipe = "w4a8_qat") -> QuantizedModel:
    return qat_models.quantized(recipe)


def fidelity(model: nn.Module) -> float:
    with torch.no_grad():
        return numerics.sqnr(small_models.resnet()(images(7)), model(images(7)))


class Shuffled:
    """Batches in an order, and with a noise, that the global generator says."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Tensor]:
        x = images(1)
        for part in torch.randperm(len(x)).split(16):
            yield x[part] + 0.1 * torch.randn(16, 3, 16, 16)


# --- what it learns -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["w4a8_qat", "w4a4_qat"])
def test_the_float_model_teaches_its_quantized_self_without_labels(recipe: str) -> None:
    model = quantized(recipe)
    before = fidelity(model)
    result = finetune(model, data(), choice=QUICK.model_copy(update={"epochs": 8}))
    assert fidelity(model) > before + 1.0
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert not any(q.learning or q.observing for q in model.quantizers.values())
    assert not model.training


@pytest.mark.parametrize("grids", ["follow", "learn", "fixed"])
def test_every_way_of_moving_grids_trains(grids: Any) -> None:
    model = quantized("int8_qat")
    choice = QUICK.model_copy(update={"grids": grids, "learning_rate": 3e-4})
    result = finetune(model, data(), choice=choice)
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_features_are_learned_as_well() -> None:
    losses = {}
    for features in ((), ("identity", "projection")):
        model = quantized()
        result = finetune(model, data(), features=features, choice=QUICK)
        losses[features] = [epoch.loss for epoch in result.epochs]
    plain, more = losses.values()
    assert more[0] > plain[0]  # there is more to differ in
    assert more[-1] < more[0]


def test_a_feature_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match=r"no module 'layer9' .*there are: .*projection"):
        finetune(quantized(), data(), features=["layer9"], choice=QUICK)


def test_labels_alone_teach_where_there_is_no_teacher() -> None:
    model = quantized()
    x = images(1)
    labels = x.mean((1, 2, 3)).mul(20).long().remainder(16)
    pairs = list(zip(x.split(16), labels.split(16), strict=True))
    result = finetune(model, pairs, loss=F.cross_entropy, teacher=None, choice=QUICK)
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_labels_count_beside_the_teacher() -> None:
    pairs = [(x, torch.zeros(16, dtype=torch.int64)) for x in data()]
    choice = QUICK.model_copy(update={"epochs": 1})
    alone = finetune(quantized(), data(), choice=choice).epochs[0].loss
    both = finetune(quantized(), pairs, loss=F.cross_entropy, choice=choice).epochs[0].loss
    assert both > alone + 0.5


def test_another_float_model_can_teach() -> None:
    teacher = small_models.resnet().eval()
    with torch.no_grad():
        teacher.get_parameter("fc.bias").add_(5.0)
    model = quantized()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    finetune(model, data(), teacher=teacher, choice=QUICK.model_copy(update={"epochs": 8}))
    with torch.no_grad():
        distance = (model(images(7)) - teacher(images(7))).abs().mean()
    assert distance < 4.9
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())


def test_kept_batch_norm_trains_and_is_folded_at_the_end() -> None:
    recipe = _find_recipe("w4a8_qat").model_copy(
        update={"passes": (PlugIn(name="keep_batchnorm"),)}
    )
    model = quantized(recipe)
    before = fidelity(model)
    choice = QUICK.model_copy(update={"freeze_batch_norm": 0.3, "epochs": 6})
    finetune(model, data(), choice=choice, evaluate=fidelity)
    assert not any("running" in name for name, _ in model.named_buffers())
    assert fidelity(model) >= before


@pytest.mark.parametrize("left_out", ["activations", "weights"])
def test_weight_only_and_activation_only_train_by_the_scheme_alone(left_out: str) -> None:
    recipe = _find_recipe("w4a8_qat")
    scheme = recipe.scheme.model_copy(update={left_out: None})
    model = quantized(recipe.model_copy(update={"scheme": scheme, "overrides": ()}))
    kept = {members[0].role for members in model.plan.grids.values()}
    assert kept == {"activation" if left_out == "weights" else "weight"}
    before = {name: q.qparams.scale for name, q in model.quantizers.items()}
    choice = QUICK.model_copy(update={"epochs": 6, "learning_rate": 1e-4})
    result = finetune(model, data(), choice=choice)
    assert result.epochs[-1].loss < result.epochs[0].loss
    for name, quantizer in model.quantizers.items():
        assert not torch.equal(quantizer.qparams.scale, before[name])


def test_bfloat16_and_clipped_gradients_train() -> None:
    choice = QUICK.model_copy(update={"precision": "bfloat16", "clip_gradient": 1.0})
    result = finetune(quantized(), data(), choice=choice)
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_inputs_by_name_find_their_places() -> None:
    model = quantized()
    named = [{"x": x} for x in data()]
    one = finetune(model, named, choice=QUICK)
    other = finetune(quantized(), data(), choice=QUICK)
    assert [e.loss for e in one.epochs] == [e.loss for e in other.epochs]


def test_what_is_trained_exports_as_it_was_trained(tmp_path: Path) -> None:
    model = quantized()
    finetune(model, data(), choice=QUICK)
    path = quantkit.export_onnx(model, tmp_path / "m.onnx", form="onnxruntime")
    report = quantkit.check(path, target="onnxruntime", reference=model, data=[images(7)])
    assert min(output.sqnr for output in report.outputs) > 45.0


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "quantkit[rtx]"',
)
@pytest.mark.parametrize("recipe", ["int8_qat", "w4a8_qat"])
@pytest.mark.parametrize("passes", ["fold_batchnorm", "keep_batchnorm"])
def test_what_was_trained_runs_in_int8_in_the_engine(
    tmp_path: Path, recipe: str, passes: str
) -> None:
    model = quantized(_find_recipe(recipe).model_copy(update={"passes": (PlugIn(name=passes),)}))
    finetune(model, data(), choice=QUICK.model_copy(update={"epochs": 1}))
    path = quantkit.export_onnx(model, tmp_path / "m.onnx")
    inspection = TensorRTRTX(compute_capability="8.6", progress=False).inspect(path)
    assert inspection.ok, inspection.findings
    assert inspection.covered == inspection.planned == len(model.plan.quantized)


# --- what it keeps --------------------------------------------------------------------------------


def test_the_best_weights_are_kept_those_before_training_among_them() -> None:
    model = quantized()
    before = fidelity(model)
    ruin = TrainingChoice(epochs=2, learning_rate=1.0, teacher_loss="mse")
    result = finetune(model, data(), evaluate=fidelity, choice=ruin)
    assert result.best.number == 0
    assert [e.number for e in result.epochs] == [0, 1, 2]
    assert fidelity(model) == pytest.approx(before, abs=0.5)
    assert "before" in str(result)


def test_training_stops_when_the_metric_gets_no_better() -> None:
    values = iter([1.0, 2.0, 3.0, 3.0, 2.5, 9.0])
    choice = QUICK.model_copy(update={"epochs": 9, "patience": 2})
    result = finetune(quantized(), data(), evaluate=lambda _: next(values), choice=choice)
    assert result.stopped
    assert (result.best.number, result.epochs[-1].number) == (2, 4)
    assert "stopped early" in str(result)


def test_the_metric_sees_the_model_in_evaluation_and_without_gradients() -> None:
    seen = []

    def metric(model: nn.Module) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return 0.0

    finetune(quantized(), data(), evaluate=metric, choice=QUICK)
    assert seen == [(False, False)] * 4


def test_each_epoch_is_told() -> None:
    told: list[Epoch] = []
    result = finetune(quantized(), data(), on_epoch=told.append, choice=QUICK)
    assert tuple(told) == result.epochs
    assert [e.number for e in told] == [1, 2, 3]
    assert all(math.isfinite(e.loss) and e.metric is None and e.seconds > 0 for e in told)


def test_a_metric_that_is_nan_is_worse_than_any() -> None:
    values = iter([math.nan, 1.0, math.nan, 0.5])
    result = finetune(quantized(), data(), evaluate=lambda _: next(values), choice=QUICK)
    assert result.best.number == 1


def test_whatever_ends_a_run_the_best_weights_are_kept_and_the_model_is_settled() -> None:
    model = quantized("int8_qat")
    before = model(images(7))

    class Broken:
        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Tensor]:
            yield images(1)[:16]
            yield torch.zeros(4, 3, 8, 8, 8)

    ruin = TrainingChoice(epochs=1, learning_rate=1e3, warm_up=0.0)
    with pytest.raises(DataError, match="batch 1"):
        finetune(model, Broken(), choice=ruin)
    assert not model.training
    assert not any(q.learning or q.observing for q in model.quantizers.values())
    assert all(p.grad is None for p in model.parameters())
    assert numerics.sqnr(before, model(images(7))) > 60.0


def test_a_metric_that_fails_before_training_leaves_a_settled_model() -> None:
    def broken(_: nn.Module) -> float:
        raise KilledError

    model = quantized()
    with pytest.raises(KilledError):
        finetune(model, data(), evaluate=broken, choice=QUICK)
    assert not any(q.learning or q.observing for q in model.quantizers.values())


# --- resume ---------------------------------------------------------------------------------------


class KilledError(Exception):
    """A run that was ended from outside."""


def kill_after(number: int) -> Callable[[Epoch], None]:
    def told(epoch: Epoch) -> None:
        if epoch.number > number:
            raise KilledError

    return told


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("w4a8_qat", {}),
        ("int8_qat", {"grids": "follow"}),
        ("w4a4_qat", {"optimizer": "sgd", "learning_rate": 1e-4}),
    ],
    ids=str,
)
def test_a_run_that_was_killed_resumes_to_the_same_weights(
    tmp_path: Path, recipe: str, changes: dict[str, Any]
) -> None:
    choice = QUICK.model_copy(update={"epochs": 4, **changes})
    torch.manual_seed(3)
    whole = quantized(recipe)
    expected = finetune(whole, Shuffled(), choice=choice, evaluate=fidelity)
    path = tmp_path / "run.pt"
    torch.manual_seed(3)
    with pytest.raises(KilledError):
        finetune(
            quantized(recipe), Shuffled(), choice=choice, evaluate=fidelity,
            checkpoint=path, on_epoch=kill_after(2),
        )  # fmt: skip
    torch.manual_seed(99)
    model = quantized(recipe)
    result = finetune(
        model, Shuffled(), choice=choice, evaluate=fidelity, checkpoint=path, resume=True
    )
    assert [(e.number, e.metric) for e in result.epochs] == [
        (e.number, e.metric) for e in expected.epochs
    ]
    state = whole.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    finetune(quantized(), data(), choice=QUICK, checkpoint=path)
    other = QUICK.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ModelFileError, match="another choice"):
        finetune(quantized(), data(), choice=other, checkpoint=path, resume=True)
    with pytest.raises(ModelFileError, match="another plan"):
        finetune(quantized("w4a4_qat"), data(), choice=QUICK, checkpoint=path, resume=True)
    changed = small_models.resnet()
    with torch.no_grad():
        changed.get_parameter("fc.weight").mul_(1.5)
    model = quantkit.quantize(changed, "w4a8_qat", calibration=data())
    with pytest.raises(ModelFileError, match="another weights"):
        finetune(model, data(), choice=QUICK, checkpoint=path, resume=True)
    path.write_bytes(b"not one")
    with pytest.raises(ModelFileError, match="no checkpoint of finetune"):
        finetune(quantized(), data(), choice=QUICK, checkpoint=path, resume=True)


def test_a_finished_run_resumes_to_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    finetune(model := quantized(), data(), choice=QUICK, checkpoint=path)
    again = quantized()
    result = finetune(again, data(), choice=QUICK, checkpoint=path, resume=True)
    assert [e.number for e in result.epochs] == [1, 2, 3]
    assert torch.equal(again(images(7)), model(images(7)))


# --- what is wrong --------------------------------------------------------------------------------


class Fragile(nn.Module):
    """Its middle layer overflows for an input of ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 32)`` to the same."""
        x = torch.relu(self.first(x))
        x = self.second(x) / (1.0 - (x.sum() > 1e4).float())
        out: Tensor = self.third(x)
        return out


def test_a_loss_of_nan_names_the_layer_and_keeps_the_best_weights() -> None:
    batches = [torch.randn(8, 32) for _ in range(2)]
    model = quantkit.quantize(Fragile(), "int8_qat", calibration=batches)
    before = model(batches[0])
    bad = [*batches, torch.full((8, 32), 1e6)]
    choice = TrainingChoice(epochs=2, grids="learn", learning_rate=1e-9, grid_learning_rate=1e-9)
    with pytest.raises(
        TrainingError, match=r"the loss of epoch 1 is (nan|inf): layer div of the float"
    ):
        finetune(model, bad, choice=choice)
    torch.testing.assert_close(model(batches[0]), before, rtol=0.05, atol=0.05)


def test_weights_that_became_infinite_are_named() -> None:
    model = quantized()
    with torch.no_grad():
        model.graph.get_parameter("fc.weight")[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"parameter fc.weight holds NaN or infinity"):
        finetune(model, data(), choice=QUICK, teacher=small_models.resnet())


def test_a_loss_that_is_nan_by_itself_is_told_apart() -> None:
    pairs = [(x, x) for x in data()]
    with pytest.raises(TrainingError, match="the model's outputs are finite, so the loss itself"):
        finetune(
            quantized(), pairs, teacher=None, choice=QUICK,
            loss=lambda y, _: y.sum() * math.nan,
        )  # fmt: skip


def test_a_gradient_that_is_not_finite_is_told_before_it_reaches_the_weights() -> None:
    model = quantized()
    before = copy.deepcopy(model.state_dict())
    pairs = [(x, x) for x in data()]
    with pytest.raises(TrainingError, match=r"the gradient of .* is not finite in epoch 1"):
        finetune(
            model, pairs, teacher=None, choice=QUICK,
            loss=lambda y, _: (y * 0.0).sum().clamp(min=0.0).sqrt(),
        )  # fmt: skip
    assert torch.equal(model.graph.get_parameter("fc.weight"), before["graph.fc.weight"])


@pytest.mark.parametrize(
    ("train", "error", "match"),
    [
        ([], DataError, "train has no batch"),
        (iter([torch.zeros(1)]), DataError, "can be read only once"),
        ([torch.zeros(4, 3, 8, 8, 8)], DataError, "batch 0, input .*expected float32"),
        ([torch.full((4, 3, 16, 16), math.nan)], DataError, "NaN"),
    ],
    ids=["none", "iterator", "form", "nan"],
)
def test_data_that_cannot_serve_are_refused(train: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        finetune(quantized(), train, choice=QUICK)


def test_a_teacher_of_other_outputs_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"outputs have the shapes \(16, 16\), the teacher's"):
        finetune(quantized(), data(), teacher=nn.Flatten(), choice=QUICK)


def test_outputs_that_are_no_logits_need_a_loss_for_such() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    batches = [torch.randn(8, 32) for _ in range(2)]
    model = quantkit.quantize(net, "int8_qat", calibration=batches)
    with pytest.raises(RecipeError, match=r"no logits of several classes.*teacher_loss: mse"):
        finetune(model, batches, choice=TrainingChoice(epochs=1))


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_logits_that_the_model_masks_do_not_count(kind: Any) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)
            self.register_buffer("mask", torch.arange(32) % 4 == 0)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x).masked_fill(self.get_buffer("mask"), -torch.inf)
            return out

    batches = [torch.randn(16, 32) for _ in range(2)]
    model = quantkit.quantize(Masked(), "w4a8_qat", calibration=batches)
    choice = TrainingChoice(epochs=5, teacher_loss=kind)
    result = finetune(model, batches, choice=choice)
    assert math.isfinite(result.best.loss)


def test_a_model_of_which_nothing_may_train_is_refused() -> None:
    model = quantized()
    model.requires_grad_(False)
    with pytest.raises(RecipeError, match="every parameter is frozen"):
        finetune(model, data(), choice=QUICK.model_copy(update={"grids": "fixed"}))


def test_data_of_unknown_length_are_refused() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            return iter(data())

    with pytest.raises(DataError, match="does not say how many batches"):
        finetune(quantized(), Endless(), choice=QUICK)


def test_a_loss_needs_pairs_and_something_to_learn_from_is_needed() -> None:
    with pytest.raises(DataError, match="batch 0 is a Tensor, not a pair"):
        finetune(quantized(), data(), loss=F.cross_entropy, choice=QUICK)
    with pytest.raises(RecipeError, match="nothing to learn from"):
        finetune(quantized(), data(), teacher=None, choice=QUICK)


def test_tensorboard_is_asked_for_only_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        finetune(quantized(), data(), choice=QUICK, tensorboard=tmp_path)


def test_tensorboard_gets_loss_and_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert math.isfinite(value)
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", 0))

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    finetune(quantized(), data(), choice=QUICK, evaluate=fidelity, tensorboard=tmp_path)
    assert written.count(("loss/step", 9)) == 1
    assert [step for name, step in written if name == "metric"] == [0, 1, 2, 3]
    assert written[-1] == ("closed", 0)
    path = tmp_path / "run.pt"
    with pytest.raises(KilledError):
        finetune(quantized(), data(), choice=QUICK, checkpoint=path, on_epoch=kill_after(1))
    written.clear()
    result = finetune(
        quantized(), data(), choice=QUICK, evaluate=fidelity, checkpoint=path, resume=True,
        tensorboard=tmp_path,
    )  # fmt: skip
    assert [step for name, step in written if name == "loss/step"] == [4, 5, 6, 7, 8, 9]
    assert "before" not in str(result)  # the run that was killed has measured nothing


# --- the optimizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_parameter_is_in_one_group_and_grids_decay_never(optimizer: Any) -> None:
    model = quantized("w4a4_qat")
    quantkit.train_quantizers(model, "learn")
    made = make_optimizer(model, QUICK.model_copy(update={"optimizer": optimizer,
                                                          "weight_decay": 0.1}))  # fmt: skip
    ids = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for g in made.param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names
    assert all(name.endswith(".weight") for name in names)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(i / 20, 0.25) for i in range(21)]
    assert rates.index(max(rates)) == 5
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(0.5, 0.0) == pytest.approx(0.5)
    assert learning_rate(0.0, 0.0) == 1.0
