"""Several processes calibrate as one does: real ones, which torchrun starts, over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from torchrun import TESTS, launch

from quantkit import distributed
from quantkit.calibrating import Checkpoint
from quantkit.distributed import Place
from quantkit.errors import DataError, GroupError, ModelFileError

ROWS = 76


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each process found, by how many there were."""
    folder = tmp_path_factory.mktemp("ranks")
    images = ranks.ResNet().inputs(ROWS, seed=2)[0].numpy()
    np.savez(folder / "x.npz", x=images)
    results = {}
    for processes in (1, 3):
        done = launch([str(TESTS / "ranks.py"), str(folder)], folder, processes)
        assert done.returncode == 0, done.stderr
        files = [folder / f"{rank}-of-{processes}.pt" for rank in range(processes)]
        results[processes] = [torch.load(file, weights_only=True) for file in files]
    return results


#: What does not depend on the order in which sums are made.
EXACT = ("/minimum", "/maximum", "/counts", "/exponent", "/grid")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(map(torch.equal, one, other))
    return torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ranks.RUNS, "data"])
@pytest.mark.parametrize("processes", [3])
def test_statistics_and_grids_of_many_processes_are_those_of_one_to_the_bit(
    found: dict[int, list[dict[str, Any]]], processes: int, name: str
) -> None:
    (alone,) = found[1]
    for result in found[processes]:
        assert result[name].keys() == alone[name].keys()
        for key, value in alone[name].items():
            if key.endswith(EXACT):
                assert equal(result[name][key], value), key
            elif key.endswith("batches"):
                assert int(result[name][key]) == int(value)
            else:  # means of float64, whose sums are of another order
                torch.testing.assert_close(result[name][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_all_processes_end_with_equal_grids(
    found: dict[int, list[dict[str, Any]]], processes: int
) -> None:
    first, *others = found[processes]
    for name in ranks.RUNS:
        for other in others:
            assert all(equal(value, other[name][key]) for key, value in first[name].items())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_no_row_is_decoded_by_two_processes(
    found: dict[int, list[dict[str, Any]]], processes: int
) -> None:
    counts = [result["decoded"] for result in found[processes]]
    assert sum(counts) == ROWS == found[1][0]["decoded"]
    assert min(counts) > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_one_process_writes_and_no_file_of_another_is_left(
    found: dict[int, list[dict[str, Any]]], processes: int
) -> None:
    assert found[processes][0]["own files"] == []
    alone, shared = found[1][0]["saved"], found[processes][0]["saved"]
    assert all(equal(v, shared[k]) for k, v in alone.items() if k.endswith(EXACT))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["broken", "broken while judged"])
@pytest.mark.parametrize("processes", [3])
def test_an_error_of_one_process_ends_all_and_is_told_once(
    found: dict[int, list[dict[str, Any]]], processes: int, when: str
) -> None:
    *others, last = (result[when] for result in found[processes])
    assert last == ("DataError", "the disk is gone", DataError.exit_code)
    for kind, message, code in others:
        assert (kind, code) == ("GroupError", DataError.exit_code)
        assert message.startswith(f"process {processes - 1} of {processes} has failed")


@pytest.mark.slow
def test_where_all_fail_the_first_tells_it(found: dict[int, list[dict[str, Any]]]) -> None:
    kinds = [result["all broken"][0] for result in found[3]]
    assert kinds == ["DataError", "GroupError", "GroupError"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_models_of_different_weights_are_refused(
    found: dict[int, list[dict[str, Any]]], processes: int
) -> None:
    first, *others = (result["other models"] for result in found[processes])
    assert first[0] == "ModelFileError"
    assert "different weights" in first[1]
    assert {other[0] for other in others} == {"GroupError"}


@pytest.mark.slow
def test_a_group_works_on_after_an_error(found: dict[int, list[dict[str, Any]]]) -> None:
    for result in found[3]:
        for key, value in result["uneven"].items():
            assert equal(result["after"][key], value), key


def test_a_lone_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.tensor([1.0, 2.0])
    with distributed.group() as place, distributed.together():
        distributed.all_reduce(x, "sum")
        distributed.of_lead(x)
    assert place == Place(0, 1)
    assert x.tolist() == [1.0, 2.0]
    assert not distributed.failed_elsewhere()
    with pytest.raises(DataError, match="own"), distributed.together():
        raise DataError("own")


def test_a_group_that_cannot_be_joined_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(GroupError, match="torchrun"), distributed.group():
        pass


def test_every_part_is_of_one_process() -> None:
    for world in (1, 2, 3):
        owners = [[r for r in range(world) if Place(r, world).owns(part)] for part in range(20)]
        assert all(len(owner) == 1 for owner in owners)
        counts = [sum(owner == [rank] for owner in owners) for rank in range(world)]
        assert max(counts) - min(counts) <= 1


def test_a_run_of_other_processes_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors.0-of-2").write_bytes(b"")
    checkpoint = Checkpoint(path=tmp_path / "s.safetensors", resume=True)
    with pytest.raises(ModelFileError, match="begun by 2 processes, not 1"):
        ranks.calibrated("int8_ptq", ranks.batches(9), checkpoint)
