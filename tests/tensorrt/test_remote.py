"""A calibrator's feed in another process than its data: bytes, buffers, and no error lost."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import HostBuffers, read_back
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from quantkit.tensorrt.remote import Answer, RemoteFeed

IMAGE, INDEX = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 8])


def sent(answer: Answer) -> Answer:
    return Answer.read(io.BytesIO(answer.bytes()))


@given(
    st.dictionaries(
        st.text(max_size=5),
        arrays.arrays(
            st.sampled_from([np.float32, np.int64, np.int32, np.bool_]),
            arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        ),
        max_size=3,
    )
)
def test_arrays_go_from_one_process_to_the_other_as_they_are(values: dict[str, Any]) -> None:
    got = sent(Answer({"a": None}, values))
    assert got.values == {"a": None}
    assert list(got.arrays) == list(values)
    for name, value in values.items():
        assert (got.arrays[name].dtype, got.arrays[name].shape) == (value.dtype, value.shape)
        assert got.arrays[name].tobytes() == value.tobytes()
        assert got.arrays[name].flags.writeable  # else PyTorch warns of it


@pytest.mark.parametrize("kept", [0, 30, -1])
def test_an_answer_that_is_cut_off_is_the_end(kept: int) -> None:
    whole = Answer({}, {"x": IMAGE}).bytes()
    assert len(whole) > 60
    with pytest.raises((EOFError, ValueError)):
        Answer.read(io.BytesIO(whole[:kept]))


class Other:
    """The process that has the data: it answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.asked: list[tuple[str, dict[str, object]]] = []
        self._answers = list(answers)

    def __call__(self, what: str, **values: object) -> Answer:
        self.asked.append((what, values))
        answer = self._answers.pop(0) if self._answers else Answer()
        if isinstance(answer, Exception):
            raise answer
        return sent(answer)


def feed(
    other: Other, buffers: Callable[[], HostBuffers] = HostBuffers, served: bytes | None = None
) -> RemoteFeed:
    return RemoteFeed(other, batch_size=2, served=served, buffers=buffers)


def test_each_input_gets_its_address_in_the_order_that_is_asked_for() -> None:
    other = Other(Answer({}, {"index": INDEX, "image": IMAGE}))
    one = feed(other)
    index, image = one.next_batch(["index", "image"]) or ()
    assert np.array_equal(read_back(image, (2, 3), np.float32), IMAGE)
    assert np.array_equal(read_back(index, (2,), np.int64), INDEX)
    assert one.next_batch(["index", "image"]) is None
    assert other.asked == [("batch", {"names": ["index", "image"]})] * 2
    assert one.error is None


def test_a_buffer_lives_until_the_next_call_and_is_freed_at_the_end() -> None:
    opened: list[HostBuffers] = []

    def buffers() -> HostBuffers:
        opened.append(HostBuffers())
        return opened[-1]

    one = feed(Other(Answer({}, {"image": IMAGE}), Answer({}, {"image": IMAGE + 1})), buffers)
    assert opened == []  # no memory before there is data
    first = one.next_batch(["image"])
    assert one.next_batch(["image"]) == first
    assert not opened[0].closed
    one.close()
    one.close()
    assert [host.closed for host in opened] == [True]


def test_after_an_error_nothing_is_served_or_asked_and_nothing_is_kept() -> None:
    def refused() -> HostBuffers:
        raise MemoryError("the GPU is full")

    other = Other(Answer({}, {"image": IMAGE}), Answer({}, {"image": IMAGE}))
    one = feed(other, refused, served=b"ranges")
    assert one.next_batch(["image"]) is None
    assert one.next_batch(["image"]) is None
    assert one.read_cache() is None
    one.write_cache(b"of too little data")
    assert len(other.asked) == 1
    assert isinstance(one.error, MemoryError)


def test_the_cache_goes_in_and_out() -> None:
    other = Other()
    one = feed(other, served=b"ranges")
    assert one.read_cache() == b"ranges"
    one.write_cache(b"\xff\n")
    assert other.asked == [("cache", {"text": "/wo="})]
    one = feed(Other(EOFError()))
    one.write_cache(b"ranges")
    assert isinstance(one.error, EOFError)
