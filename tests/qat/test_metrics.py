"""Accuracy, SQNR and cross-entropy: what they say, when they read, and what they refuse."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import quantkit
from quantkit import numerics
from quantkit.data import DataSpec
from quantkit.errors import DataError
from quantkit.model import QuantizedModel
from quantkit.qat.finetuning import finetune
from quantkit.qat.metrics import accuracy, cross_entropy, fidelity
from quantkit.training_choice import TrainingChoice


def rows(count: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.02), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 16),
    ).eval()  # fmt: skip


def data(size: int = 16) -> list[Tensor]:
    return list(rows().split(size))


def pairs(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(x, net()(x).argmax(1)) for x in data(size)]


def quantized() -> QuantizedModel:
    return quantkit.quantize(net(), "w4a8_qat", calibration=data())


class Counted:
    """Batches that know how often they were read."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.readings = 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        yield from self.batches


class Watched(nn.Module):
    """Notes in what mode it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.inner.training, torch.is_grad_enabled()))
        result: Tensor = self.inner(x)
        return result


class Named(nn.Module):
    """Several outputs by name, one of which is no float."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": x * (1 + self.error), "b": 100 * x * (1 + self.error), "n": x.long()}


# What they say


def test_accuracy_is_the_percentage_of_right_labels_over_batches_of_any_size() -> None:
    (x, labels) = (torch.cat(part) for part in zip(*pairs(), strict=True))
    labels[:12] = (labels[:12] + 1) % 16
    for size in (5, 48):
        batches = list(zip(x.split(size), labels.split(size), strict=True))
        assert accuracy(batches)(net()) == 75.0


def test_accuracy_of_maps_counts_each_position() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1] = 1.0
    labels = torch.tensor([[[1, 1], [1, 2]]])
    assert accuracy([(logits, labels)])(nn.Identity()) == 75.0


def test_accuracy_reads_a_data_file_and_a_data_loader(tmp_path: Path) -> None:
    (x, labels) = (torch.cat(part) for part in zip(*pairs(), strict=True))
    np.savez(tmp_path / "x.npz", input=x.numpy(), y=labels.numpy())
    declared = {"source": str(tmp_path / "x.npz"), "inputs": {"input": {}}, "label": "y"}
    spec = DataSpec.model_validate({**declared, "batch_size": 20})
    assert accuracy(spec)(net()) == 100.0
    assert accuracy(spec.open())(quantized()) > 80.0
    loader = DataLoader(TensorDataset(x, labels), batch_size=7, shuffle=True)
    assert accuracy(loader)(net()) == 100.0


def test_fidelity_is_the_sqnr_over_all_batches() -> None:
    model = quantized()
    with torch.no_grad():
        wanted = numerics.sqnr(net()(rows()), model(rows()))
    for size in (5, 48):
        assert fidelity(data(size), net())(model) == pytest.approx(wanted, abs=1e-3)


def test_fidelity_counts_outputs_alike_whatever_their_size() -> None:
    metric = fidelity(data(), Named())
    assert metric(Named(0.1)) == pytest.approx(-10 * math.log10(0.01 + 0.01), abs=1e-4)
    assert metric(Named()) == math.inf


def test_a_masked_logit_does_not_count_and_nan_is_the_worst_there_is() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.full((len(x), 1), self.value)], dim=1)

    metric = fidelity(data(), Masked(-math.inf))
    assert metric(Masked(-math.inf)) == metric(Masked(-1e4)) == math.inf
    assert fidelity(data(), Masked(1.0))(Masked(math.nan)) == -math.inf


def test_cross_entropy_is_pytorchs() -> None:
    logits, labels = rows()[:, :16], torch.arange(48) % 16
    assert torch.equal(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    assert torch.equal(cross_entropy({"y": logits}, labels.int()), F.cross_entropy(logits, labels))


# How they run


@pytest.mark.parametrize("training", [False, True])
def test_a_model_is_measured_in_evaluation_mode_and_gets_its_own_back(training: bool) -> None:
    for metric in (accuracy(pairs()), fidelity(data(), net())):
        model = Watched().train(training)
        model.inner[0].eval()
        metric(model)
        assert set(model.seen) == {(False, False)}
        assert model.training is model.inner.training is training
        assert not model.inner[0].training
        assert torch.is_grad_enabled()


def test_a_quantized_model_in_training_is_measured_without_dropout() -> None:
    model = quantized()
    metric = fidelity(data(), net())
    wanted = metric(model)
    assert metric(model.train()) == wanted
    assert model.training
    assert not torch.equal(model(rows()), model(rows()))  # dropout is on again


def test_the_float_model_runs_once_and_each_call_reads_the_data_once() -> None:
    reference, batches = Watched(), Counted(data())
    metric = fidelity(batches, reference)
    for _ in range(3):
        metric(net())
    assert len(reference.seen) == 3
    assert batches.readings == 4


def test_inputs_are_not_kept() -> None:
    alive: list[int] = []

    class Streamed:
        def __iter__(self) -> Iterator[Tensor]:
            given: weakref.WeakSet[Tensor] = weakref.WeakSet()
            for _ in range(6):
                alive.append(len(given))
                batch = torch.ones(3, 32)
                given.add(batch)
                yield batch
                del batch

    fidelity(Streamed(), net())(net())
    assert len(alive) == 12
    assert max(alive) <= 2


def test_finetune_takes_them_and_keeps_the_best_epoch() -> None:
    model = quantized()
    metric = fidelity(data(), net())
    choice = TrainingChoice(epochs=16, learning_rate=1e-3, teacher_loss="mse")
    result = finetune(model, data(), evaluate=metric, choice=choice)
    assert result.best.metric is not None
    assert result.epochs[0].metric is not None
    assert result.best.metric > result.epochs[0].metric
    assert metric(model) == pytest.approx(result.best.metric, abs=0.1)
    again = finetune(
        quantized(), pairs(), loss=cross_entropy, evaluate=accuracy(pairs()), choice=choice
    )
    assert again.best.metric is not None
    assert again.best.metric <= 100.0


# What they refuse


def test_an_iterator_is_refused_at_once() -> None:
    for make in (lambda: accuracy(iter(pairs())), lambda: fidelity(iter(data()), net())):
        with pytest.raises(DataError, match="can be read only once"):
            make()


def test_data_without_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="no batch; give one"):
        fidelity([], net())
    with pytest.raises(DataError, match="no batch; give one"):
        accuracy([])(net())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(16), r"batch 0: labels are torch.float32, not whole numbers"),
        (torch.zeros(16, 1, dtype=torch.int64), r"shape \(16, 1\), logits \(16, 16\)"),
        (torch.full((16,), 16), "there is a label 16, and the model has 16 classes"),
        (torch.full((16,), -100), "there is a label -100"),
        ([0] * 16, "labels are list, not whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        accuracy([(data()[0], labels)])(net())
    with pytest.raises(DataError, match=words.removeprefix("batch 0: ")):
        cross_entropy(net()(data()[0]), labels)


def test_batches_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch 0 is a Tensor, not a pair .* measure fidelity"):
        accuracy(data())(net())
    np.savez(tmp_path / "x.npz", input=rows().numpy())
    spec = DataSpec.model_validate({"source": str(tmp_path / "x.npz"), "inputs": {"input": {}}})
    with pytest.raises(DataError, match="batch 0 has no labels, which accuracy needs; set label"):
        accuracy(spec)(net())


def test_labels_need_one_output_of_logits() -> None:
    with pytest.raises(DataError, match=r"the model's are \(16, 32\), \(16, 32\); leave"):
        accuracy(pairs())(Named())
    with pytest.raises(DataError, match="the model's are none of floats"):
        cross_entropy(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


def test_data_in_another_order_are_not_compared() -> None:
    dataset = TensorDataset(rows())
    metric = fidelity(DataLoader(dataset, batch_size=16, shuffle=True), net())
    with pytest.raises(DataError, match=r"batch 0 is not the one .* in the same order"):
        metric(net())
    growing = data()
    metric = fidelity(growing, net())
    for change in (lambda: growing.append(rows(16)), lambda: growing.__delitem__(slice(2, None))):
        change()
        with pytest.raises(DataError, match="is not the one that the float model has seen"):
            metric(net())


def test_outputs_of_another_model_are_not_compared() -> None:
    with pytest.raises(DataError, match=r"shapes \[\(16, 32\)\], the float model's \[\(16, 16\)\]"):
        fidelity(data(), net())(nn.Identity())
    with pytest.raises(DataError, match="no output of the float model is of floats"):
        fidelity([torch.zeros(2, 3, dtype=torch.int64)], nn.Identity())


def test_a_batch_that_a_quantized_model_does_not_take_is_named() -> None:
    metric = fidelity([rows()[:, :16]], nn.Identity())
    with pytest.raises(DataError, match=r"batch 0, input 0: got float32 \(48, 16\), expected"):
        metric(quantized())
