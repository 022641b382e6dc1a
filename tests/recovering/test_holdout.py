"""Data that calibrate and data that judge: how they are split, and that no row is both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.data import DataSpec
from quantkit.errors import DataError
from quantkit.recovering import holdout


def spec(folder: Path, rows: int, **others: object) -> DataSpec:
    np.savez(folder / "rows.npz", x=np.arange(rows, dtype=np.float32)[:, None], y=np.arange(rows))
    return DataSpec.model_validate(
        {"source": str(folder / "rows.npz"), "inputs": {"x": {}}, "label": "y", **others}
    )


def values(batches: object) -> list[float]:
    return [v for b in batches for v in b.inputs["x"].flatten().tolist()]  # type: ignore[attr-defined]


@given(rows=st.integers(2, 200), batch_size=st.integers(1, 70), seed=st.none() | st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_split_shares_no_row_and_loses_none(
    tmp_path_factory: pytest.TempPathFactory, rows: int, batch_size: int, seed: int | None
) -> None:
    whole = spec(tmp_path_factory.mktemp("data"), rows, batch_size=batch_size, seed=seed)
    calibration, rest = holdout.split(whole)
    calibrating, judging = values(calibration.open()), values(rest)
    assert set(calibrating).isdisjoint(judging)
    assert sorted(calibrating + judging) == list(range(rows))
    assert 1 <= len(calibrating) <= len(judging)


def test_a_split_is_the_same_each_time_and_mixes_the_rows(tmp_path: Path) -> None:
    calibration, rest = holdout.split(spec(tmp_path, 64))
    again, rest_again = holdout.split(spec(tmp_path, 64))
    assert calibration == again
    assert values(rest) == values(rest) == values(rest_again)
    assert values(calibration.open()) != list(range(32))


def test_labels_stay_beside_their_rows(tmp_path: Path) -> None:
    _, rest = holdout.split(spec(tmp_path, 40, batch_size=7))
    for batch in rest:
        assert batch.labels is not None
        assert torch.equal(batch.inputs["x"].flatten().long(), batch.labels)


def test_more_rows_than_needed_do_not_calibrate(tmp_path: Path) -> None:
    calibration, rest = holdout.split(spec(tmp_path, 3000))
    assert calibration.limit == holdout.MOST_CALIBRATING
    assert len(values(rest)) == 3000 - holdout.MOST_CALIBRATING


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few to split"):
        holdout.split(spec(tmp_path, 1))


def test_the_file_of_the_calibrating_rows_reads_the_same_rows(tmp_path: Path) -> None:
    calibration, _ = holdout.split(spec(tmp_path, 50, seed=3))
    read = DataSpec.model_validate(json.loads(calibration.model_dump_json(exclude_defaults=True)))
    assert values(read.open()) == values(calibration.open())


def test_a_row_that_is_in_both_is_refused_whatever_its_batch() -> None:
    rows = torch.randn(20, 3)
    calibration = holdout.seen(rows[:12].split(4), labelled=False)
    pairs = [(x, torch.zeros(len(x))) for x in torch.cat([rows[12:], rows[5:6]]).split(3)]
    with pytest.raises(DataError, match="1 of the 9 held-out samples calibrate as well"):
        holdout.require_apart(calibration, holdout.seen(pairs, labelled=True))
    holdout.require_apart(calibration, holdout.seen(pairs[:2], labelled=True))


def test_labels_and_order_are_part_of_a_fingerprint() -> None:
    x, zeros, ones = torch.randn(4, 3), torch.zeros(4), torch.ones(4)
    prints = {
        holdout.seen(pairs, labelled=True).fingerprint
        for pairs in ([(x, zeros)], [(x, ones)], [(x.flip(0), zeros)])
    }
    assert len(prints) == 3


def test_inputs_by_name_are_rows_as_well() -> None:
    ids, mask = torch.arange(6).reshape(3, 2), torch.ones(3, 2)
    found = holdout.seen([{"ids": ids, "mask": mask}], labelled=False)
    assert len(set(found.rows)) == 3
