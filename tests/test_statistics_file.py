"""Statistics as a file: read back as written, merged as one, and refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantkit.calibrators.entropy import Entropy
from quantkit.calibrators.minmax import MinMax
from quantkit.calibrators.moving_average import MovingAverage
from quantkit.errors import ExportError, ModelFileError
from quantkit.interfaces import Calibrator
from quantkit.observer import Observer
from quantkit.spec import QuantSpec
from quantkit.statistics import Average, Histogram
from quantkit.statistics_file import FORMAT, Run, fingerprint, load, load_merged, save

MODEL = fingerprint([("w", torch.ones(2))])
DATA = "the images"


def observers(calibrator: Calibrator | None = None) -> dict[str, Observer]:
    chosen = calibrator or Entropy()
    channels = QuantSpec(axis=1)
    return {
        "a": Observer(QuantSpec(), chosen, name="a"),
        "b/c": Observer(channels, chosen, channels=3, name="b/c"),
    }


def fed(*seeds: int, calibrator: Calibrator | None = None) -> dict[str, Observer]:
    """Observers that have seen a batch for each seed."""
    made = observers(calibrator)
    for seed in seeds:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) * (seed + 1)
        for observer in made.values():
            observer(x)
    return made


def states(made: Mapping[str, Observer]) -> dict[str, Tensor]:
    return {f"{n}/{key}": v.clone() for n, o in made.items() for key, v in o.state.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    file = tmp_path / "s.safetensors"
    save(file, fed(1, 2), MODEL, Run(samples=16, data=DATA))
    return file


def test_what_is_written_is_read_back_to_the_bit(path: Path) -> None:
    made = observers()
    run = load(path, made, MODEL, DATA)
    assert run == Run(samples=16, parts=None, data=DATA)
    assert same(states(made), states(fed(1, 2)))


def test_equal_statistics_are_equal_files(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save(again, fed(1, 2), MODEL, Run(samples=16, data=DATA))
    assert again.read_bytes() == path.read_bytes()


def test_what_the_observers_held_is_gone(path: Path) -> None:
    made = fed(7)
    load(path, made, MODEL, DATA)
    assert same(states(made), states(fed(1, 2)))


def test_a_file_with_more_than_is_read_serves_as_well(path: Path) -> None:
    made = observers(MinMax())
    load(path, made, MODEL, DATA)
    assert same(states(made), states(fed(1, 2, calibrator=MinMax())))


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3), min_size=1, max_size=4))
def test_merged_files_are_one_run_over_all_data(
    tmp_path_factory: pytest.TempPathFactory, runs: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    paths = [folder / str(index) for index in range(len(runs))]
    for path, seeds in zip(paths, runs, strict=True):
        save(path, fed(*seeds), MODEL, Run(samples=8 * len(seeds)))
    merged = fed(3)
    samples = load_merged(paths, merged, MODEL)
    everything = [seed for seeds in runs for seed in seeds]
    assert samples == 8 * len(everything)
    assert same(states(merged), states(fed(*everything)))


def test_merged_means_are_those_of_one_run(tmp_path: Path) -> None:
    kind = MovingAverage()
    for index, seeds in enumerate(([1, 2, 3], [4])):
        made = fed(*seeds, calibrator=kind)
        save(tmp_path / str(index), made, MODEL, Run(samples=8 * len(seeds)))
    merged = observers(kind)
    load_merged([tmp_path / "0", tmp_path / "1"], merged, MODEL)
    for key, value in states(fed(1, 2, 3, 4, calibrator=kind)).items():
        torch.testing.assert_close(states(merged)[key], value, rtol=1e-12, atol=1e-12)


# Refused


def rewritten(path: Path, change: Callable[[dict[str, Tensor], dict[str, object]], None]) -> None:
    """The file with other contents, and the sum that belongs to them."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["quantkit"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(tensors, about)
    if about.get("tensors") != "kept":
        about["tensors"] = fingerprint(sorted(tensors.items()))
    save_file(tensors, path, metadata={"quantkit": json.dumps(about)})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def of(key: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rewritten(path, lambda tensors, about: about.update({key: value}))

    return change


def holding(key: str, value: Tensor) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rewritten(path, lambda tensors, about: tensors.update({key: value}))

    return change


def deep(path: Path) -> None:
    save_file({"w": torch.ones(1)}, path, metadata={"quantkit": "[" * 100_000})


NEGATIVE = torch.full((1, 2 * Histogram.half), -1)

DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (cut, "cut short"),
    "empty": (lambda path: path.write_bytes(b"") and None, "not a file of statistics"),
    "absent": (lambda path: path.unlink(), "no such file"),
    "a flipped bit": (flipped, "its sum does not match"),
    "another format": (lambda path: path.write_text("{}") and None, "not a file of statistics"),
    "other tensors": (lambda path: save_file({"w": torch.ones(1)}, path), "holds no statistics"),
    "an older form": (of("format", "quantkit.statistics/0"), "'quantkit.statistics/0', not"),
    "another model": (of("model", "0" * 64), "another model"),
    "an unreadable head": (of("run", {"samples": "many"}), "its head cannot be read"),
    "a head of another kind": (of("statistics", 3), "its head cannot be read"),
    "a head without end": (deep, "its head cannot be read"),
    "negative counts": (holding("a/counts", NEGATIVE), "negative counts"),
    "an empty range": (holding("a/minimum", torch.tensor([9e9])), "minimum above its maximum"),
    "an unknown width": (
        holding("a/exponent", torch.tensor([500], dtype=torch.int32)),
        "bins of a width",
    ),
    "no counts": (holding("a/counts", 0 * NEGATIVE), "without counts"),
    "another shape": (holding("a/counts", NEGATIVE[:, :8]), "a/counts is"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_no_good_is_refused_and_nothing_changes(name: str, path: Path) -> None:
    damage, words = DAMAGES[name]
    damage(path)
    before = path.read_bytes() if path.exists() else None
    made = fed(5)
    held = states(made)
    for read in (
        lambda: load(path, made, MODEL, DATA),
        lambda: load_merged([path], made, MODEL),
    ):
        with pytest.raises(ModelFileError, match=words) as caught:
            read()
        assert str(path) in str(caught.value)
    assert same(states(made), held)
    assert before == (path.read_bytes() if path.exists() else None)


def test_statistics_of_another_recipe_are_refused(path: Path) -> None:
    fewer = {"a": observers()["a"]}
    with pytest.raises(ModelFileError, match="b/c is only in the file"):
        load(path, fewer, MODEL, DATA)
    more = observers() | {"d": Observer(QuantSpec(), Entropy(), name="d")}
    with pytest.raises(ModelFileError, match="d is only in the model under this recipe"):
        load(path, more, MODEL, DATA)


def test_a_file_that_lacks_what_the_calibrator_reads_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "range", fed(1, calibrator=MinMax()), MODEL, Run(samples=8))
    with pytest.raises(ModelFileError, match=r"holds no Histogram\(half=4096\) of a"):
        load_merged([tmp_path / "range"], observers(), MODEL)
    made = observers()
    for observer in made.values():
        observer.keep([Average(momentum=0.5)])
    save(tmp_path / "moving", fed(1, calibrator=MovingAverage()), MODEL, Run(samples=8))
    with pytest.raises(ModelFileError, match="holds no"):
        load_merged([tmp_path / "moving"], made, MODEL)


def test_other_data_are_not_resumed(path: Path) -> None:
    with pytest.raises(ModelFileError, match="other data"):
        load(path, observers(), MODEL, "other images")


def test_a_run_that_was_not_done_is_not_merged(path: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    save(begun, fed(3), MODEL, Run(samples=8, parts=1))
    made = fed(5)
    held = states(made)
    with pytest.raises(ModelFileError, match=r"begun: of a run that was not done.* 8 samples"):
        load_merged([path, begun], made, MODEL)
    assert same(states(made), held)


def test_a_file_is_not_merged_with_itself(path: Path) -> None:
    with pytest.raises(ModelFileError, match="given twice"):
        load_merged([path, path.parent / "." / path.name], observers(), MODEL)


def test_where_a_file_cannot_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        save(tmp_path / "no" / "s", fed(1), MODEL, Run(samples=8))


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"samples": 1, "parts": -1}])
def test_an_account_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"account of a run|must be a count"):
        Run(**wrong)  # type: ignore[arg-type]


def test_the_fingerprint_knows_names_types_shapes_and_values() -> None:
    x = torch.arange(4.0)
    seen = {
        fingerprint(named)
        for named in (
            [("w", x)], [("v", x)], [("w", x.double())], [("w", x.view(2, 2))], [("w", x + 1)],
            [("w", x), ("v", x)], [],
        )
    }  # fmt: skip
    assert len(seen) == 7
    assert fingerprint([("w", x.view(2, 2).t().contiguous().t())]) == fingerprint(
        [("w", x.view(2, 2))]
    )
    assert FORMAT.startswith("quantkit.statistics/")
