"""The callback for Lightning, in Trainers of Lightning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import quantkit
import small_models
from quantkit.errors import MissingDependencyError, RecipeError
from quantkit.model import QuantizedModel
from quantkit.qat.lightning import QuantizationCallback
from quantkit.recipe import PlugIn
from quantkit.workflow import _find_recipe

# What Lightning says of data that is in memory, of a GPU it is not to use, and of few steps.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Net(LightningModule):
    """A classifier that is one of its attributes, or two."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class ValidatedNet(Net):
    """One that is also looked at."""

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.model(batch[0])


class Record(Callback):
    """The switches, as they are before each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: object) -> None:
        model = pl_module.model
        self.seen.append((model.quantizers["fc.weight"].observing, model.batch_norm_frozen))


def quantized(**training: Any) -> QuantizedModel:
    chosen = _find_recipe("int8_qat")
    choice = chosen.training.model_copy(update=training)
    chosen = chosen.model_copy(
        update={"passes": (PlugIn(name="keep_batchnorm"),), "training": choice}
    )
    model = small_models.resnet()
    return quantkit.quantize(model, chosen, calibration=[model.inputs(16)])


def batches(count: int = 8) -> DataLoader[Any]:
    (x,) = small_models.resnet().inputs(4 * count, 1)
    return DataLoader(TensorDataset(x, x.mean((1, 2, 3)).mul(20).long().remainder(16)), 4)


def trainer(folder: Path, *callbacks: Callback, **changes: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks),
        enable_checkpointing=saving, **{"max_epochs": 1, **quiet, **changes},
    )  # fmt: skip


def scales(model: QuantizedModel) -> dict[str, Tensor]:
    return {name: q.qparams.scale for name, q in model.quantizers.items()}


def test_grids_that_learn_are_in_the_optimizer_and_move(tmp_path: Path) -> None:
    net = Net(model=quantized())
    before = scales(net.model)
    run = trainer(tmp_path, QuantizationCallback("learn", settle=False))
    run.fit(net, batches(2))
    known = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert all(id(q.scale) in known for q in net.model.quantizers.values())
    after = scales(net.model)
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_observers_and_batch_norm_freeze_at_their_part_of_the_optimizer_steps(
    tmp_path: Path,
) -> None:
    record = Record()
    net = Net(model=quantized(freeze_observers=0.75, freeze_batch_norm=0.5))
    run = trainer(tmp_path, QuantizationCallback("follow"), record, accumulate_grad_batches=2)
    run.fit(net, batches(8))
    assert run.global_step == 4
    assert record.seen == [(True, False)] * 4 + [(True, True)] * 2 + [(False, True)] * 2


@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_after_fit_the_model_is_settled_and_exports(grids: str, tmp_path: Path) -> None:
    net = Net(model=quantized())
    trainer(tmp_path, QuantizationCallback(grids)).fit(net, batches(2))
    assert not any(q.learning or q.observing for q in net.model.quantizers.values())
    assert not any("running" in name for name, _ in net.model.named_buffers())
    assert not net.model.training
    quantkit.export_onnx(net.model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("grids", ["follow", "learn"])
def test_a_run_that_resumes_ends_as_one_that_was_not_interrupted(
    grids: str, tmp_path: Path
) -> None:
    def run(checkpoint: Path | None) -> tuple[list[tuple[bool, bool]], QuantizedModel]:
        record, saving = Record(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        net = Net(model=quantized(freeze_observers=0.75, freeze_batch_norm=0.7))
        whole = trainer(tmp_path, QuantizationCallback(grids), record, saving, max_epochs=2)
        whole.fit(net, batches(4), ckpt_path=checkpoint)
        return record.seen, net.model

    seen, whole = run(None)
    tail, resumed = run(tmp_path / "epoch=0.ckpt")
    assert tail == seen[4:]
    assert [frozen for _, frozen in tail] == [False, False, True, True]
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())


def test_batch_norm_goes_on_after_validation(tmp_path: Path) -> None:
    net = ValidatedNet(model=quantized(freeze_batch_norm=1.0))
    seen: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            seen.append(net.model.graph.get_buffer("stem.1.running_mean").clone())

    run = trainer(tmp_path, QuantizationCallback(), Watch(), val_check_interval=1)
    run.fit(net, batches(3), batches(1))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_another_fit_of_the_same_callback_begins_anew(tmp_path: Path) -> None:
    callback = QuantizationCallback("learn")
    for _ in range(2):
        net = Net(model=quantized())
        before = scales(net.model)
        trainer(tmp_path, callback).fit(net, batches(2))
        assert callback.state_dict() == {"done": 2}
        assert not torch.equal(before["fc.weight"], scales(net.model)["fc.weight"])


def test_validation_alone_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    net = ValidatedNet(model=quantized())
    trainer(tmp_path, QuantizationCallback("learn")).validate(net, batches(1), verbose=False)
    assert not any(q.learning for q in net.model.quantizers.values())


def test_a_module_of_no_quantized_model_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, QuantizationCallback())
    with pytest.raises(RecipeError, match=r"^Net holds no QuantizedModel .*quantkit\.quantize.*$"):
        run.fit(Net(model=small_models.resnet()), batches(2))


def test_of_two_quantized_models_one_is_to_be_named(tmp_path: Path) -> None:
    net = Net(model=quantized(), teacher=quantized()).train()
    told = r"^Net holds several QuantizedModels, model and teacher; .*attribute='model'\)$"
    with pytest.raises(RecipeError, match=told):
        trainer(tmp_path, QuantizationCallback("learn")).fit(net, batches(2))
    with pytest.raises(RecipeError, match="name 'student'; there are: 'model', 'teacher'"):
        trainer(tmp_path, QuantizationCallback("learn", attribute="student")).fit(net, batches(2))
    callback = QuantizationCallback("learn", attribute="model", settle=False)
    trainer(tmp_path, callback).fit(net, batches(2))
    assert all(q.learning for q in net.model.quantizers.values())
    assert not any(q.learning for q in net.teacher.quantizers.values())


def test_one_model_of_two_names_is_one(tmp_path: Path) -> None:
    model = quantized()
    trainer(tmp_path, QuantizationCallback("learn")).fit(Net(model=model, same=model), batches(1))


def test_steps_without_an_end_are_refused(tmp_path: Path) -> None:
    class Endless(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            yield from batches(1).dataset

    run = trainer(tmp_path, QuantizationCallback())
    with pytest.raises(RecipeError, match=r"does not know how many steps .*give it max_steps"):
        run.fit(Net(model=quantized()), DataLoader(Endless(), 4))


def test_a_checkpoint_of_a_settled_model_does_not_resume(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    chosen = _find_recipe("int8_qat")
    net = small_models.resnet()

    def model() -> QuantizedModel:
        return quantkit.quantize(net, chosen, calibration=[net.inputs(16)])

    run = trainer(tmp_path, QuantizationCallback("learn"))
    run.fit(Net(model=model()), batches(2))
    run.save_checkpoint(path)
    run = trainer(tmp_path, QuantizationCallback("learn"), max_epochs=2)
    with pytest.raises(RecipeError, match="loaded is of a settled model; resume from one"):
        run.fit(Net(model=model()), batches(2), ckpt_path=path)


def test_without_lightning_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "quantkit.qat.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "quantkit\[lightning\]"'):
        import quantkit.qat.lightning  # noqa: F401
