"""What a calibrator is fed: which values, in which order, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quantkit.errors import DataError
from quantkit.tensorrt.feed import CalibrationFeed

SHAPES = {"image": (2, 3), "index": (2,)}


def batch(seed: int, samples: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(samples, 3, generator=generator),
        "index": torch.randint(0, 99, (samples,), generator=generator),
    }


def feed(batches: list[dict[str, Tensor]] | None, **options: Any) -> CalibrationFeed:
    source = None if batches is None else iter(batches)
    return CalibrationFeed(SHAPES, source, batch_size=2, **options)


def test_each_input_is_served_in_the_order_that_is_asked_for() -> None:
    one = feed([batch(0), batch(1)])
    for seed in range(2):
        served = one.next_batch(["index", "image"])
        assert served is not None
        assert list(served) == ["index", "image"]
        for name, values in batch(seed).items():
            assert np.array_equal(served[name], values.numpy())
    assert one.next_batch(["index", "image"]) is None
    assert one.batches == 2


def test_values_that_are_not_contiguous_arrive_in_order() -> None:
    values = {"image": torch.arange(6.0).reshape(3, 2).T, "index": torch.zeros(2).long()}
    served = feed([values]).next_batch(["image"])
    assert served is not None
    assert np.frombuffer(served["image"].tobytes(), np.float32).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("asked", [["image", "mask"], ["mask"], ["image", "image"]])
def test_inputs_that_the_data_lacks_are_refused_by_name(asked: list[str]) -> None:
    with pytest.raises(DataError, match=f"asks for the inputs {', '.join(asked)}, .* image, index"):
        feed([batch(0)]).next_batch(asked)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"image": torch.zeros(2, 3)}, "batch 0 has no index"),
        ({"image": torch.zeros(2, 4), "index": torch.zeros(2)}, r"'image' has shape \(2, 4\)"),
        ({"image": torch.zeros(3, 3), "index": torch.zeros(3)}, r"'image' has shape \(3, 3\)"),
        ({"image": torch.zeros(()), "index": torch.zeros(2)}, r"'image' has shape \(\)"),
    ],
)
def test_missing_and_misshapen_inputs_are_refused(values: dict[str, Tensor], why: str) -> None:
    with pytest.raises(DataError, match=why):
        feed([values, batch(0)]).next_batch(["image", "index"])


def test_the_samples_of_a_short_last_batch_are_left_out_and_counted() -> None:
    one = feed([batch(0), batch(1, samples=1)])
    assert one.next_batch(["image"]) is not None
    assert one.next_batch(["image"]) is None
    assert (one.batches, one.dropped) == (1, 1)


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="1 samples, fewer than one batch of 2"):
        feed([batch(0, samples=1)]).next_batch(["image"])


def test_a_short_batch_before_the_last_is_refused() -> None:
    one = feed([batch(0), batch(1, samples=1), batch(2)])
    one.next_batch(["image"])
    with pytest.raises(DataError, match="batch 1 has 1 samples, others 2, and it is not the last"):
        one.next_batch(["image"])


def test_no_batch_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no batch"):
        feed([]).next_batch(["image"])


def test_the_data_is_closed_in_the_end() -> None:
    closed = []

    def data() -> Iterator[dict[str, Tensor]]:
        try:
            yield batch(0)
        finally:
            closed.append(True)

    one = CalibrationFeed(SHAPES, data(), batch_size=2)
    one.next_batch(["image"])
    one.close()
    assert closed == [True]
    feed(None).close()


def test_a_cache_is_saved_with_the_number_of_batches_it_took() -> None:
    written: list[tuple[bytes, int]] = []
    one = feed([batch(0), batch(1)], save=lambda *what: written.append(what))
    while one.next_batch(["image"]):
        pass
    one.write_cache(b"ranges")
    assert written == [(b"ranges", 2)]


def test_a_cache_that_did_is_not_written_again() -> None:
    written: list[tuple[bytes, int]] = []
    one = feed(None, served=b"ranges", save=lambda *what: written.append(what))
    one.write_cache(b"ranges")
    assert written == []


def test_a_cache_that_was_not_taken_and_no_data_is_an_error() -> None:
    with pytest.raises(DataError, match="did not take the calibration cache, and there is no data"):
        feed(None, served=b"ranges").next_batch(["image"])
