"""What was measured, in a file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from quantkit.errors import ModelFileError
from quantkit.recipe import PlugIn, Recipe, SchemeChoice
from quantkit.recovering.goal import Measured
from quantkit.recovering.memory import Memory, key_of, recalled
from quantkit.recovering.steps import Candidate
from quantkit.training_choice import TrainingChoice

ABOUT = {"model": "m", "metric": "accuracy"}
RECIPE = Recipe(name="mine", scheme=SchemeChoice())
CANDIDATE = Candidate(step="one", change="a", recipe=RECIPE)
MEASURED = Measured(value=90.0, sqnr=math.inf, seconds=1.5, digest="x", deployed=89.0)


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    memory = Memory(about=ABOUT, path=path)
    memory.rankings["key"] = (("a", "b"), ("c",))
    memory.put(CANDIDATE, MEASURED)
    again = recalled(ABOUT, path, resume=True)
    assert again.get(CANDIDATE) == MEASURED
    assert again.rankings == memory.rankings


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    Memory(about=ABOUT, path=tmp_path / "c.json").put(CANDIDATE, MEASURED)
    assert recalled(ABOUT, tmp_path / "c.json", resume=False).get(CANDIDATE) is None


@pytest.mark.parametrize("name", ["model", "metric"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    Memory(about=ABOUT, path=tmp_path / "c.json").put(CANDIDATE, MEASURED)
    with pytest.raises(ModelFileError, match=f"another {name}"):
        recalled({**ABOUT, name: "other"}, tmp_path / "c.json", resume=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', '{"format": 1'])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ModelFileError, match="no checkpoint of recover"):
        recalled(ABOUT, tmp_path / "c.json", resume=True)


def test_the_key_is_of_all_that_is_chosen() -> None:
    other = RECIPE.model_copy(update={"calibrator": PlugIn(name="mse")})
    trains = RECIPE.model_copy(update={"training": TrainingChoice(epochs=3)})
    assert key_of(other) != key_of(RECIPE)
    assert key_of(trains) == key_of(RECIPE)
    assert key_of(trains, trained=True) != key_of(RECIPE, trained=True)
    assert key_of(RECIPE, trained=True) != key_of(RECIPE)
    assert key_of(RECIPE.model_copy(update={"description": "x"})) == key_of(RECIPE)
