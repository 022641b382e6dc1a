"""The callback for Hugging Face, in Trainers of transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import quantkit
import small_models
from quantkit.errors import MissingDependencyError, RecipeError
from quantkit.model import QuantizedModel
from quantkit.qat.transformers import QuantizationCallback
from quantkit.recipe import PlugIn
from quantkit.workflow import _find_recipe


class Net(nn.Module):
    """A classifier that is one of its attributes, or two; it returns its loss, as Trainers want."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Record(TrainerCallback):
    """The switches, as they are before each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_step_begin(self, *_: object, **kwargs: Any) -> None:
        model = kwargs["model"].model
        self.seen.append((model.quantizers["fc.weight"].observing, model.batch_norm_frozen))


def quantized(**training: Any) -> QuantizedModel:
    chosen = _find_recipe("int8_qat")
    choice = chosen.training.model_copy(update=training)
    chosen = chosen.model_copy(
        update={"passes": (PlugIn(name="keep_batchnorm"),), "training": choice}
    )
    model = small_models.resnet()
    return quantkit.quantize(model, chosen, calibration=[model.inputs(16)])


def data(batches: int = 8) -> list[dict[str, Tensor]]:
    (x,) = small_models.resnet().inputs(4 * batches, 1)
    labels = x.mean((1, 2, 3)).mul(20).long().remainder(16)
    return [{"x": image, "labels": label} for image, label in zip(x, labels, strict=True)]


def trainer(
    folder: Path,
    net: nn.Module,
    *callbacks: TrainerCallback,
    batches: int = 8,
    optimizers: Any = (None, None),
    **changes: Any,
) -> Trainer:
    arguments = {
        "num_train_epochs": 1, "save_strategy": "no", "learning_rate": 0.01, "optim": "sgd",
        "per_device_train_batch_size": 4, **changes,
    }  # fmt: skip
    return Trainer(
        net,
        TrainingArguments(
            str(folder), use_cpu=True, disable_tqdm=True, report_to="none", logging_strategy="no",
            dataloader_pin_memory=False, **arguments,
        ),
        train_dataset=data(batches), callbacks=list(callbacks), optimizers=optimizers,
    )  # fmt: skip


def scales(model: QuantizedModel) -> dict[str, Tensor]:
    return {name: q.qparams.scale for name, q in model.quantizers.items()}


def test_grids_that_learn_are_in_the_optimizer_and_move(tmp_path: Path) -> None:
    net = Net(model=quantized())
    before = scales(net.model)
    run = trainer(tmp_path, net, QuantizationCallback("learn", settle=False), batches=2)
    run.train()
    known = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert all(id(q.scale) in known for q in net.model.quantizers.values())
    after = scales(net.model)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_observers_and_batch_norm_freeze_at_their_part_of_the_optimizer_steps(
    tmp_path: Path,
) -> None:
    record = Record()
    net = Net(model=quantized(freeze_observers=0.75, freeze_batch_norm=0.5))
    run = trainer(
        tmp_path, net, QuantizationCallback("follow"), record, gradient_accumulation_steps=2
    )
    run.train()
    assert run.state.global_step == 4
    assert record.seen == [(True, False), (True, False), (True, True), (False, True)]


@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_after_training_the_model_is_settled_and_exports(grids: str, tmp_path: Path) -> None:
    net = Net(model=quantized())
    trainer(tmp_path, net, QuantizationCallback(grids), batches=2).train()
    assert not any(q.learning or q.observing for q in net.model.quantizers.values())
    assert not any("running" in name for name, _ in net.model.named_buffers())
    assert not net.model.training
    quantkit.export_onnx(net.model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_a_run_that_resumes_ends_as_one_that_was_not_interrupted(
    grids: str, tmp_path: Path
) -> None:
    def run(checkpoint: str | None) -> tuple[list[tuple[bool, bool]], QuantizedModel]:
        record = Record()
        net = Net(model=quantized(freeze_observers=0.75, freeze_batch_norm=0.7))
        whole = trainer(
            tmp_path, net, QuantizationCallback(grids), record,
            batches=4, num_train_epochs=2, save_strategy="epoch",
        )  # fmt: skip
        whole.train(resume_from_checkpoint=checkpoint)
        return record.seen, net.model

    seen, whole = run(None)
    tail, resumed = run(str(tmp_path / "checkpoint-4"))
    assert tail == seen[4:]
    assert [frozen for _, frozen in tail] == [False, False, True, True]
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())


def test_a_model_of_no_quantized_model_is_refused(tmp_path: Path) -> None:
    net = Net(model=small_models.resnet())
    with pytest.raises(RecipeError, match=r"^Net holds no QuantizedModel .*quantkit\.quantize.*$"):
        trainer(tmp_path, net, QuantizationCallback())


def test_of_two_quantized_models_one_is_to_be_named(tmp_path: Path) -> None:
    net = Net(model=quantized(), teacher=quantized())
    told = r"^Net holds several QuantizedModels, model and teacher; .*attribute='model'\)$"
    with pytest.raises(RecipeError, match=told):
        trainer(tmp_path, net, QuantizationCallback("learn"))
    trainer(tmp_path, net, QuantizationCallback("learn", attribute="model"))
    assert all(q.learning for q in net.model.quantizers.values())
    assert not any(q.learning for q in net.teacher.quantizers.values())


def test_an_optimizer_of_ones_own_is_to_have_the_grids(tmp_path: Path) -> None:
    net = Net(model=quantized())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with pytest.raises(RecipeError, match=r"^the optimizer .*call quantkit.train_quantizers .*$"):
        trainer(tmp_path, net, QuantizationCallback("learn"), optimizers=(optimizer, None))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    run = trainer(tmp_path, net, QuantizationCallback("learn"), optimizers=(optimizer, None))
    run.train()


def test_a_callback_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, Net(model=quantized()))
    run.add_callback(QuantizationCallback("learn"))
    with pytest.raises(RecipeError, match=r"^QuantizationCallback has to see .* are too late$"):
        run.train()


def test_training_again_after_the_model_was_settled_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, Net(model=quantized()), QuantizationCallback("learn"), batches=1)
    run.train()
    with pytest.raises(RecipeError, match="make a new Trainer"):
        run.train()


def test_without_transformers_the_way_to_install_them_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "quantkit.qat.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "quantkit\[transformers\]"'):
        import quantkit.qat.transformers  # noqa: F401
