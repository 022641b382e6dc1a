"""How good outputs are, beside the reference's and beside labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantkit.benching.quality import Judge, top1
from quantkit.errors import DataError

LOGITS = np.array([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]], dtype=np.float32)


def test_equal_outputs_have_infinite_sqnr_and_agree() -> None:
    judge = Judge()
    judge.update([LOGITS], 3, [LOGITS], None)
    found = judge.result()
    assert (found.samples, found.sqnr, found.agreement, found.accuracy) == (3, math.inf, 1.0, None)


def test_sqnr_is_that_of_the_worst_output() -> None:
    judge = Judge()
    judge.update([LOGITS * 1.1, LOGITS * 1.01], 3, [LOGITS, LOGITS], None)
    assert judge.result().sqnr == pytest.approx(20.0, abs=0.01)


def test_an_output_that_is_no_number_is_the_worst() -> None:
    judge = Judge()
    judge.update([LOGITS, LOGITS * np.nan], 3, [LOGITS, LOGITS], None)
    sqnr = judge.result().sqnr
    assert sqnr is not None
    assert math.isnan(sqnr)


def test_rows_that_fill_up_the_last_batch_do_not_count() -> None:
    judge = Judge()
    wrong = LOGITS.copy()
    wrong[2] = 100.0
    judge.update([wrong], 2, [LOGITS], np.array([1, 0]))
    found = judge.result()
    assert (found.samples, found.sqnr, found.accuracy) == (2, math.inf, 1.0)


def test_without_a_reference_there_is_accuracy_alone() -> None:
    judge = Judge()
    judge.update([LOGITS], 3, None, np.array([1, 1, 1]))
    found = judge.result()
    assert (found.sqnr, found.agreement) == (None, None)
    assert found.accuracy == pytest.approx(2 / 3)


def test_labels_may_be_of_every_pixel() -> None:
    logits = np.zeros((1, 2, 2, 2), dtype=np.float32)
    logits[:, 1, 0, 0] = 1.0
    assert top1([logits], np.array([[[1, 1], [0, 0]]])) == (3, 4)


@pytest.mark.parametrize(
    ("outputs", "labels", "words"),
    [
        ([LOGITS, LOGITS], np.zeros(3, int), "one output of logits"),
        ([LOGITS[:, 0]], np.zeros(3, int), "one output of logits"),
        ([LOGITS], np.zeros((3, 1), int), "give one label for each row"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    outputs: list[np.ndarray], labels: np.ndarray, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        top1(outputs, labels)


def test_outputs_of_other_shapes_than_the_references_are_refused() -> None:
    with pytest.raises(DataError, match="compare models that put out the same"):
        Judge().update([LOGITS[:, :1]], 3, [LOGITS], None)
