"""Training on several processes: real ones, which torchrun starts, over gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrun import TESTS, launch

pytestmark = pytest.mark.slow

RUNS = [f"{g} {p}" for g in ("follow", "learn") for p in ("fold_batchnorm", "keep_batchnorm")]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each process ended with, by how many there were."""
    folder = tmp_path_factory.mktemp("qat")
    found = {}
    for processes in (1, 2):
        done = launch([str(TESTS / "qat_ranks.py"), str(folder)], folder, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        files = [folder / f"{rank}-of-{processes}.pt" for rank in range(processes)]
        found[processes] = [torch.load(file, weights_only=True) for file in files]
    return found


@pytest.mark.parametrize("run", RUNS)
def test_all_processes_end_with_equal_weights_and_grids(
    states: dict[int, list[dict[str, Any]]], run: str
) -> None:
    first, second = (state[run] for state in states[2])
    assert first.keys() == second.keys()
    assert any(name.endswith(".scale") for name in first)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("passes", ["fold_batchnorm", "keep_batchnorm"])
def test_grids_that_follow_saw_the_batches_of_all_processes(
    states: dict[int, list[dict[str, Any]]], passes: str
) -> None:
    """The second process has larger inputs; one process on the whole batch saw both halves."""
    (alone,), (shared, _) = ([s[f"follow {passes}"] for s in states[n]] for n in (1, 2))
    key = "graph.quantizers.x.scale"
    assert torch.equal(alone[key], shared[key])
    for name, value in alone.items():
        if name.endswith("quantizers.stem_0_weight.scale"):
            torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-7)
        elif name.endswith("average_maximum"):  # what the weights between make of it
            torch.testing.assert_close(shared[name], value, rtol=0.05, atol=1e-3)


def test_stubs_saw_the_batches_of_all_processes(states: dict[int, list[dict[str, Any]]]) -> None:
    (alone,), shared = ([s["stub"] for s in states[n]] for n in (1, 2))
    for state in shared:
        assert all(torch.equal(value, alone[name]) for name, value in state.items())
