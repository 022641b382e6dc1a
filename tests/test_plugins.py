"""The folder is the registry."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantkit import plugins
from quantkit.errors import QuantkitError, RecipeError
from quantkit.interfaces import (
    BlockRounding,
    Calibrator,
    DataPass,
    EngineCalibrator,
    LayerRounding,
    ModelPass,
    Pass,
    Rounding,
    Target,
)

BASES: list[tuple[str, type]] = [
    ("calibrators", Calibrator),
    ("calibrators", EngineCalibrator),
    ("passes", Pass),
    ("passes", DataPass),
    ("passes", ModelPass),
    ("rounding", Rounding),
    ("rounding", LayerRounding),
    ("rounding", BlockRounding),
    ("targets", Target),
]
EVERY_PLUGIN = [
    (folder, name, base) for folder, base in BASES for name in plugins.names_of(folder, base)
]
each_plugin = pytest.mark.parametrize(("folder_name", "name", "base"), EVERY_PLUGIN)

CALIBRATOR = """
from dataclasses import dataclass
from quantkit.interfaces import Calibrator

@dataclass(frozen=True, kw_only=True)
class {name}(Calibrator):
    statistics = ()
    def range(self, state, spec): return None
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second folder of calibrators, and of recipes, beside the real ones."""
    for package in ("quantkit.calibrators", "quantkit.recipes"):
        module = importlib.import_module(package)
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path)])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("quantkit.calibrators."):
            del sys.modules[name]
            vars(sys.modules["quantkit.calibrators"]).pop(name.rpartition(".")[2], None)


@each_plugin
def test_every_plugin_file_defines_one_frozen_dataclass(
    folder_name: str, name: str, base: type
) -> None:
    cls = plugins.find(folder_name, name, base)
    assert issubclass(cls, base)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen, f"{cls.__name__} can be changed after its checks"


def test_every_file_of_a_folder_is_a_plugin_of_one_kind() -> None:
    found = [(folder, name) for folder, name, _ in EVERY_PLUGIN]
    assert sorted(found) == sorted(
        (folder, name) for folder in dict(BASES) for name in plugins.names(folder)
    )


@pytest.mark.parametrize("name", plugins.names_of("calibrators", EngineCalibrator))
def test_a_recipe_that_names_an_engine_calibrator_is_told_the_way(name: str) -> None:
    with pytest.raises(RecipeError, match=f"build --calibrator {name}.*calibrator: entropy"):
        plugins.find("calibrators", name, Calibrator)


def test_a_builder_given_a_calibrator_of_recipes_is_told_which_it_can_have() -> None:
    known = ", ".join(plugins.names_of("calibrators", EngineCalibrator))
    with pytest.raises(RecipeError, match=f"'minmax' is one of recipes.*{known}"):
        plugins.find("calibrators", "minmax", EngineCalibrator)


@each_plugin
def test_every_plugin_says_what_it_is(folder_name: str, name: str, base: type) -> None:
    cls = plugins.find(folder_name, name, base)
    # A dataclass without a docstring is given its signature as one.
    assert inspect.getdoc(cls)
    assert not (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def test_names_are_those_of_the_files_in_the_folder(root: Path) -> None:
    files = {file.stem for file in (root / "calibrators").glob("[!_]*.py")}
    assert plugins.names("calibrators") == sorted(files)


def test_names_of_recipes_are_those_of_the_yaml_files(root: Path) -> None:
    files = {file.stem for file in (root / "recipes").glob("[!_]*.yaml")}
    assert plugins.names("recipes") == sorted(files)


def test_a_new_file_is_a_new_plugin_and_nothing_else_changes(folder: Path) -> None:
    (folder / "brand_new.py").write_text(CALIBRATOR.format(name="BrandNew"))
    assert "brand_new" in plugins.names("calibrators")
    assert plugins.find("calibrators", "brand_new", Calibrator).__name__ == "BrandNew"


def test_a_leading_underscore_makes_a_file_private(folder: Path) -> None:
    (folder / "_shared.py").write_text(CALIBRATOR.format(name="Shared"))
    (folder / "_shared.yaml").write_text("{}")
    assert "_shared" not in plugins.names("calibrators")
    assert "_shared" not in plugins.names("recipes")
    with pytest.raises(RecipeError, match="no calibrator '_shared'"):
        plugins.find("calibrators", "_shared", Calibrator)


def test_a_base_class_that_a_plugin_imports_is_not_taken_for_its_own(folder: Path) -> None:
    (folder / "first.py").write_text(CALIBRATOR.format(name="First"))
    second = "from quantkit.calibrators.first import First\n" + CALIBRATOR.format(name="Second")
    (folder / "second.py").write_text(second)
    assert plugins.find("calibrators", "second", Calibrator).__name__ == "Second"


def test_an_unknown_name_is_answered_with_the_known_and_the_nearest(folder: Path) -> None:
    (folder / "median.py").write_text(CALIBRATOR.format(name="Median"))
    with pytest.raises(RecipeError) as raised:
        plugins.find("calibrators", "mediam", Calibrator)
    known = ", ".join(plugins.names_of("calibrators", Calibrator))
    assert str(raised.value) == (
        f"no calibrator 'mediam'; there are: {known}; did you mean 'median'?"
    )
    assert isinstance(raised.value, QuantkitError)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(RecipeError, match="no calibrator '§§§'") as raised:
        plugins.find("calibrators", "§§§", Calibrator)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", ["../secrets", "minmax.py", "", "a.b", "__init__"])
def test_only_names_of_files_are_imported(name: str) -> None:
    with pytest.raises(RecipeError, match="there are"):
        plugins.find("calibrators", name, Calibrator)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n", r"defines 0 \(none\)"),
        (CALIBRATOR.format(name="A") + CALIBRATOR.format(name="B"), r"defines 2 \(A, B\)"),
        (
            "from quantkit.interfaces import Calibrator\nclass Half(Calibrator): ...\n",
            r"defines 0 \(none\)",
        ),
    ],
)
def test_a_broken_plugin_file_is_named_with_the_rule_it_breaks(
    folder: Path, source: str, said: str
) -> None:
    (folder / "broken.py").write_text(source)
    with pytest.raises(TypeError, match=f"broken.py: .*exactly one concrete subclass.*{said}"):
        plugins.find("calibrators", "broken", Calibrator)


def test_a_class_under_two_names_is_one_class(folder: Path) -> None:
    (folder / "renamed.py").write_text(CALIBRATOR.format(name="New") + "\nOld = New\n")
    assert plugins.find("calibrators", "renamed", Calibrator).__name__ == "New"


def test_an_error_inside_a_plugin_file_is_not_hidden(folder: Path) -> None:
    (folder / "failing.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        plugins.find("calibrators", "failing", Calibrator)


def test_a_recipe_is_found_by_its_file_name(folder: Path) -> None:
    (folder / "mine.yaml").write_text("{}")
    assert plugins.recipe_path("mine") == folder / "mine.yaml"


def test_an_unknown_recipe_is_answered_with_the_known_ones(folder: Path) -> None:
    (folder / "mine.yaml").write_text("{}")
    with pytest.raises(RecipeError, match=r"no recipe 'mime'; there are: .*mine.*did you mean"):
        plugins.recipe_path("mime")
