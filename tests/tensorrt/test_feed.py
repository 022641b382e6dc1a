"""What a calibrator is fed: order, bytes, and no error lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fake_tensorrt import HostBuffers, read_back
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
    options = {"buffers": HostBuffers, "batch_size": 2, **options}
    return CalibrationFeed(SHAPES, source, **options)


def test_each_input_gets_its_address_in_the_order_that_is_asked_for() -> None:
    one = feed([batch(0), batch(1)])
    for seed in range(2):
        index, image = one.next_batch(["index", "image"]) or ()
        want = batch(seed)
        assert np.array_equal(read_back(image, (2, 3), np.float32), want["image"].numpy())
        assert np.array_equal(read_back(index, (2,), np.int64), want["index"].numpy())
    assert one.next_batch(["index", "image"]) is None
    assert one.batches == 2
    one.reraise()


def test_a_buffer_lives_until_the_next_call_and_is_freed_at_the_end() -> None:
    opened: list[HostBuffers] = []

    def buffers() -> HostBuffers:
        opened.append(HostBuffers())
        return opened[0]

    one = feed([batch(0), batch(1)], buffers=buffers)
    assert opened == []
    first = one.next_batch(["image"])
    second = one.next_batch(["image"])
    assert first == second
    assert not opened[0].closed
    one.reraise()
    assert opened[0].closed


def test_values_that_are_not_contiguous_arrive_in_order() -> None:
    values = {"image": torch.arange(6.0).reshape(3, 2).T, "index": torch.zeros(2).long()}
    one = feed([values])
    (address,) = one.next_batch(["image"]) or ()
    assert read_back(address, (2, 3), np.float32).tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("asked", [["image", "mask"], ["mask"], ["image", "image"]])
def test_inputs_that_the_data_lacks_are_refused_by_name(asked: list[str]) -> None:
    one = feed([batch(0)])
    assert one.next_batch(asked) is None
    with pytest.raises(DataError, match=f"asks for the inputs {', '.join(asked)}, .* image, index"):
        one.reraise()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"image": torch.zeros(2, 3)}, "batch 0 has no index"),
        ({"image": torch.zeros(2, 4), "index": torch.zeros(2)}, r"'image' has shape \(2, 4\)"),
        ({"image": torch.zeros(3, 3), "index": torch.zeros(3)}, r"'image' has shape \(3, 3\)"),
        ({"image": torch.zeros(()), "index": torch.zeros(2)}, r"'image' has shape \(\)"),
    ],
)
def test_missing_and_misshapen_inputs_end_the_data_and_are_raised(
    values: dict[str, Tensor], why: str
) -> None:
    one = feed([values, batch(0)])
    assert one.next_batch(["image", "index"]) is None
    with pytest.raises(DataError, match=why):
        one.reraise()


def test_the_samples_of_a_short_last_batch_are_left_out_and_counted() -> None:
    one = feed([batch(0), batch(1, samples=1)])
    assert one.next_batch(["image"]) is not None
    assert one.next_batch(["image"]) is None
    assert (one.batches, one.dropped) == (1, 1)
    one.reraise()


def test_fewer_samples_than_a_batch_are_refused() -> None:
    one = feed([batch(0, samples=1)])
    assert one.next_batch(["image"]) is None
    with pytest.raises(DataError, match="1 samples, fewer than one batch of 2"):
        one.reraise()


def test_a_short_batch_before_the_last_is_refused() -> None:
    one = feed([batch(0), batch(1, samples=1), batch(2)])
    served = [one.next_batch(["image"]) for _ in range(2)]
    assert served[1] is None
    with pytest.raises(DataError, match="batch 1 has 1 samples, others 2, and it is not the last"):
        one.reraise()


def test_no_batch_at_all_is_refused() -> None:
    one = feed([])
    assert one.next_batch(["image"]) is None
    with pytest.raises(DataError, match="no batch"):
        one.reraise()


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_an_error_in_the_data_is_raised_again_as_it_was(error: BaseException) -> None:
    def data() -> Iterator[dict[str, Tensor]]:
        yield batch(0)
        raise error

    written: list[bytes] = []
    one = CalibrationFeed(
        SHAPES,
        data(),
        batch_size=2,
        buffers=HostBuffers,
        save=lambda text, batches: written.append(text),
    )
    assert one.next_batch(["image"]) is not None
    assert one.next_batch(["image"]) is None
    assert one.next_batch(["image"]) is None
    one.write_cache(b"of too little data")
    assert written == []
    with pytest.raises(type(error)) as raised:
        one.reraise()
    assert raised.value is error


def test_an_error_while_the_cache_is_written_is_raised_after_the_build() -> None:
    def save(text: bytes, batches: int) -> None:
        raise OSError("full")

    one = feed([batch(0)], save=save)
    one.next_batch(["image"])
    one.write_cache(b"ranges")
    with pytest.raises(OSError, match="full"):
        one.reraise()


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
    assert one.read_cache() == b"ranges"
    one.write_cache(b"ranges")
    one.reraise()
    assert written == []


def test_a_cache_that_was_not_taken_and_no_data_is_an_error() -> None:
    one = feed(None, served=b"ranges")
    assert one.next_batch(["image"]) is None
    with pytest.raises(DataError, match="did not take the calibration cache, and there is no data"):
        one.reraise()
