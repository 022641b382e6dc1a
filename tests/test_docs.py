"""What the documentation says can be done is done here, as it stands there."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import demo
import pytest
import torch
from digits import DigitsNet, load_digits_data

from quantkit import numerics, plugins
from quantkit.cli import main
from quantkit.errors import MissingDependencyError
from quantkit.interfaces import Calibrator, Pass, Rounding, Target
from quantkit.observer import Observer
from quantkit.recipe import parse_recipe
from quantkit.spec import QuantSpec

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    file.relative_to(ROOT).as_posix()
    for file in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"))
]


#: Pages whose examples learn, measure or build for some seconds.
LONG = {"docs/accuracy.md", "docs/bench.md", "docs/report.md", "docs/roofline.md"}


def _marked(page: str) -> object:
    return pytest.param(page, marks=[pytest.mark.slow] * (page in LONG))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block, in order."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[list[str]]:
    """The arguments of each line of a shell block that calls quantkit."""
    lines = (shlex.split(line, comments=True) for line in block.splitlines())
    yield from (words[1:] for words in lines if words and words[0] == "quantkit")


@pytest.fixture
def plugin_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A second root of the repository, whose folders of plug-ins are looked into as well."""
    folders = {
        "calibrators": "calibrators",
        "recipes": "recipes",
        **{name: f"quantkit/{name}" for name in ("passes", "rounding", "targets")},
    }
    for package, folder in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        module = importlib.import_module(f"quantkit.{package}")
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(tmp_path / folder)])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            package, _, stem = name.rpartition(".")
            del sys.modules[name]
            vars(sys.modules[package]).pop(stem, None)


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES])
def test_every_example_runs(
    page: str, plugin_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    if "demo-out/digits.pt2" in text:
        (tmp_path / "demo-out").mkdir()
        demo.save_inputs(DigitsNet().eval(), load_digits_data(), tmp_path / "demo-out")
    names: dict[str, object] = {"__name__": page}
    try:
        for language, block in blocks(text):
            if title := re.match(r"# (\S+/\S+\.(?:py|yaml))\n", block):
                (plugin_folders / title[1]).write_text(block, encoding="utf-8")
            elif language == "python":
                exec(compile(block, page, "exec"), names)
            elif language == "yaml" and (title := re.match(r"# (\S+\.yaml)\n", block)):
                Path(title[1]).write_text(block, encoding="utf-8")
            elif language == "bash":
                for arguments in commands(block):
                    code = main(arguments)
                    if code == MissingDependencyError.exit_code:
                        pytest.skip(f"quantkit {arguments[0]} needs an SDK that is not here")
                    assert code == 0, f"quantkit {shlex.join(arguments)}"
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_plug_ins_that_the_documentation_shows_keep_their_contracts(plugin_folders: Path) -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```python\n(# (\S+/(\S+)\.py)\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = {}
    for block, path, name in shown:
        (plugin_folders / path).write_text(block, encoding="utf-8")
        folder = Path(path).parent.name
        bases = {
            "calibrators": Calibrator, "passes": Pass, "rounding": Rounding, "targets": Target,
        }  # fmt: skip
        cls = plugins.find(folder, name, bases[folder])
        assert cls() == cls(), "a plug-in is a value"
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert not (cls.__doc__ or "").startswith(f"{cls.__name__}(")
        found[folder] = cls()
    assert len(found) == 4

    observer = Observer(QuantSpec(), found["calibrators"])
    observer(torch.tensor([-10.0, 20.0]))
    assert [bound.item() for bound in observer.range()] == pytest.approx([-9.0, 18.0])
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(axis=0)
    qparams = numerics.choose_qparams(*numerics.tensor_range(weight, spec), spec)
    rounded = found["rounding"].round(weight, qparams)
    assert torch.equal(rounded, numerics.dequantize(numerics.quantize(rounded, qparams), qparams))
    assert (rounded.abs() <= weight.abs() * (1 + 1e-6)).all()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_recipes_named_in_tables_are_there(page: str) -> None:
    named = re.findall(
        r"^\| `(int\w+)` \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert named
    assert set(named) <= set(plugins.names("recipes"))


def test_recipes_in_yaml_blocks_are_valid() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    found = [block for language, block in blocks(text) if language == "yaml"]
    assert found
    for block in found:
        parse_recipe(block, name="mine")


def test_keys_of_recipes_are_all_explained() -> None:
    from quantkit.recipe import Override, PlacementChoice, Recipe, TensorChoice

    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for kind in (Recipe, TensorChoice, PlacementChoice, Override):
        for key in set(kind.model_fields) - {"name"}:
            assert re.search(rf"`(scheme\.)?{key}[`.]", text), f"{kind.__name__}.{key}"
