"""The same samples, whatever batches they come in."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quantkit.batches import regroup


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 9))
def test_regrouping_keeps_every_sample_in_order_and_fills_every_call(
    sizes: list[int], size: int
) -> None:
    samples = torch.arange(sum(sizes) * 2.0).view(-1, 2)
    row = torch.ones(1, 2)
    calls = [((part, row), {"y": part + 1}) for part in samples.split(sizes)]
    got = list(regroup(calls, size, {0, "y"}))
    assert torch.equal(torch.cat([args[0] for args, _ in got]), samples)
    assert torch.equal(torch.cat([kwargs["y"] for _, kwargs in got]), samples + 1)
    assert all(torch.equal(args[1], row) for args, _ in got)
    lengths = [len(args[0]) for args, _ in got]
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    assert 0 < lengths[-1] <= size


def test_samples_of_another_shape_are_not_joined_with_those_before_them() -> None:
    calls = [((torch.zeros(5, 3),), {}), ((torch.zeros(5, 4),), {})]
    assert [args[0].shape for args, _ in regroup(calls, 8, {0})] == [(5, 3), (5, 4)]


def test_a_model_of_fixed_batch_gets_its_batches_as_they_are() -> None:
    calls = [((torch.zeros(5, 3),), {}), ((torch.zeros(5, 3),), {})]
    assert list(regroup(calls, 8, frozenset())) == calls
