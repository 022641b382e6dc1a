"""Calibration data by the network's names, in one shape and the right type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.errors import DataError
from quantkit.tensorrt.rows import NetworkInput, batch_inputs, describe, rows, whole_batches

IMAGE = NetworkInput("image", (-1, 3), torch.float32)
INDEX = NetworkInput("index", (-1,), torch.int32)


def test_inputs_by_order_and_by_name_are_the_same() -> None:
    image, index = torch.ones(2, 3), torch.arange(2)
    by_order = next(rows([(image, index)], [IMAGE, INDEX]))
    by_name = next(rows([{"index": index, "image": image}], [IMAGE, INDEX]))
    for name in ("image", "index"):
        assert torch.equal(by_order[name], by_name[name])
    assert (by_name["image"].dtype, by_name["index"].dtype) == (torch.float32, torch.int32)


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(2, 3),
        (torch.ones(2, 3), torch.arange(2), torch.arange(2)),
        {"image": torch.ones(2, 3)},
        {"image": torch.ones(2, 3), "indices": torch.arange(2)},
        {"image": torch.ones(2, 3), "index": torch.arange(2), "label": torch.arange(2)},
    ],
)
def test_a_wrong_number_of_inputs_is_refused_with_those_it_takes(batch: object) -> None:
    with pytest.raises(DataError, match=r"batch 0 .*takes 2: image: float32 \(any, 3\), index"):
        next(rows([batch], [IMAGE, INDEX]))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.ones(2, 4), r"has shape \(2, 4\), the network takes image"),
        (torch.ones(2), r"has shape \(2,\)"),
        (torch.ones(2, 3).long(), "is int64, the network takes image: float32"),
        (torch.full((2, 3), torch.nan), "NaN or infinity"),
    ],
)
def test_misshapen_and_mistyped_inputs_are_refused(value: torch.Tensor, why: str) -> None:
    with pytest.raises(DataError, match=f"batch 0, input 'image'.*{why}|batch 0, input 0 .*{why}"):
        next(rows([value], [IMAGE]))


def test_indices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="'index' has values that index: int32"):
        next(rows([torch.tensor([1 << 40])], [INDEX]))


def test_wider_floats_are_converted() -> None:
    row = next(rows([np.ones((2, 3))], [IMAGE]))
    assert row["image"].dtype == torch.float32


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_samples_keep_their_order_in_batches_of_one_size(counts: list[int], size: int) -> None:
    samples = torch.arange(float(sum(counts) * 3)).reshape(-1, 3)
    fixed = NetworkInput("image", (size, 3), torch.float32)
    given_batches = rows(list(samples.split(counts)), [fixed])

    regrouped = [r["image"] for r in whole_batches(given_batches, [fixed], {"image": (size, 3)})]

    assert [len(one) for one in regrouped[:-1]] == [size] * (len(regrouped) - 1)
    assert len(regrouped[-1]) <= size
    assert torch.equal(torch.cat(regrouped), samples)


def test_batches_of_different_lengths_are_refused_with_the_way_out() -> None:
    text = NetworkInput("text", (-1, -1), torch.int64)
    batches = rows([torch.ones(2, 8).long(), torch.ones(2, 9).long()], [text])
    with pytest.raises(DataError, match=r"\(2, 9\).*one shape, here \(2, 8\).*pad_to"):
        list(whole_batches(batches, [text], {"text": (2, 8)}))


def test_inputs_of_fixed_size_beside_a_dynamic_batch_do_not_count_samples() -> None:
    positions = NetworkInput("positions", (1, 8), torch.int64)
    assert batch_inputs([positions, IMAGE]) == [IMAGE]
    row = {"image": torch.ones(5, 3), "positions": torch.arange(8).reshape(1, 8)}
    shapes = {"image": (2, 3), "positions": (1, 8)}
    got = [len(r["image"]) for r in whole_batches([row], [positions, IMAGE], shapes)]
    assert got == [2, 2, 1]


def test_nothing_is_opened_before_the_first_row_is_asked_for() -> None:
    waiting = rows(5, [IMAGE])
    with pytest.raises(DataError, match="no iterable of batches"):
        next(waiting)


def test_data_is_described_in_a_line() -> None:
    from quantkit.data import DataSpec

    spec = DataSpec(source="some.npz", inputs={"x": {}}, limit=7)
    assert describe(spec) == '{"source":"some.npz","inputs":{"x":{}},"limit":7}'
    assert describe([torch.ones(1)] * 3) == "list of 3"
    assert describe(iter([])) == "list_iterator"
