"""What candidates are judged by."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from quantkit.errors import DataError
from quantkit.recovering import metrics
from quantkit.recovering.metrics import Outputs


def outputs(*batches: Tensor, labels: tuple[Tensor, ...] = ()) -> Outputs:
    return Outputs(batches=tuple((batch,) for batch in batches), labels=labels)


def test_accuracy_counts_over_batches_of_any_size() -> None:
    rows = torch.eye(3)
    found = outputs(rows[:2], rows[2:], labels=(torch.tensor([0, 0]), torch.tensor([2])))
    assert metrics.accuracy(found, found) == pytest.approx(200 / 3)


def test_masked_logits_do_not_disturb_accuracy() -> None:
    masked = torch.tensor([[-math.inf, 1.0], [-math.inf, 1.0]])
    found = outputs(masked, labels=(torch.tensor([1, 0]),))
    assert metrics.accuracy(found, found) == 50.0


def test_agreement_is_beside_the_float_model_and_needs_no_labels() -> None:
    wanted, got = outputs(torch.eye(4)), outputs(torch.eye(4)[[0, 1, 2, 2]])
    assert metrics.agreement(got, wanted) == 75.0
    with pytest.raises(DataError, match="no row of scores"):
        metrics.agreement(outputs(torch.ones(4)), outputs(torch.ones(4)))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_spearman_is_that_of_scipy_with_ties(pairs: list[tuple[int, int]]) -> None:
    scores, labels = (torch.tensor(x, dtype=torch.float32) for x in zip(*pairs, strict=True))
    found = metrics.spearman(outputs(scores[:, None], labels=(labels,)), outputs(scores))
    if len(scores.unique()) > 1 and len(labels.unique()) > 1:
        wanted = 100 * spearmanr(scores.numpy(), labels.numpy()).statistic
        assert found == pytest.approx(wanted, abs=1e-9)
    else:
        assert found == 0.0


def test_mse_is_the_mean_over_all_values() -> None:
    found = outputs(torch.tensor([[1.0], [3.0]]), labels=(torch.tensor([1.0, 1.0]),))
    assert metrics.mse(found, found) == 2.0
    with pytest.raises(DataError, match="one label for each value"):
        metrics.mse(outputs(torch.ones(2, 2), labels=(torch.ones(2),)), found)


def test_noise_is_that_of_finetune() -> None:
    from quantkit.qat.metrics import fidelity

    x = [torch.randn(5, 3) for _ in range(2)]
    exact, rough = nn.Linear(3, 3), nn.Linear(3, 3)
    rough.load_state_dict({k: v.half().float() for k, v in exact.state_dict().items()})
    got, wanted = (metrics.outputs_of(net, x, labelled=False) for net in (rough, exact))
    assert metrics.sqnr(got, wanted) == pytest.approx(fidelity(x, exact)(rough), abs=1e-6)
    assert metrics.sqnr(wanted, wanted) == math.inf


def test_a_model_is_run_in_evaluation_mode_and_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    x = [torch.randn(8, 4)]
    first, second = (metrics.outputs_of(net, x, labelled=False).only() for _ in range(2))
    assert torch.equal(first, second)
    assert net.training
    assert net[1].training


def test_a_metric_of_ones_own_gets_everything_at_once() -> None:
    def largest(values: Tensor, labels: Tensor) -> float:
        assert values.shape == (6, 2)
        assert labels.tolist() == [0, 1, 2, 3, 4, 5]
        return float(values.max())

    found = outputs(torch.ones(4, 2), 3 * torch.ones(2, 2), labels=torch.arange(6).split(4))
    metric = metrics.own_metric(largest, "largest", labelled=True)
    assert metric.of(found, found) == 3.0


def test_a_metric_is_found_by_name_or_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_test.py").write_text("def half(outputs, labels):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    found = outputs(torch.ones(2, 2))
    for name in ("mine_of_test:half", "mine_of_test.half"):
        assert metrics.find_metric(name, labelled=False).of(found, found) == 0.5
    assert metrics.find_metric("accuracy", labelled=True).unit == "%"


@pytest.mark.parametrize("name", ["acuracy", "no_such:metric", "math:nothing", "math:pi"])
def test_a_metric_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="module:function"):
        metrics.find_metric(name, labelled=True)


def test_a_lead_of_less_than_four_predictions_is_luck() -> None:
    assert metrics.KNOWN["accuracy"].resolution(100) == 3.0
    assert metrics.KNOWN["mse"].resolution(100) == 0.0
    dense = outputs(torch.zeros(2, 5, 4, 4))
    assert (dense.samples, dense.verdicts) == (2, 32)
