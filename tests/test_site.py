"""The documentation as a site: it builds without a warning, and holds what it promises."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import quantkit
from quantkit import plugins

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("quantkit", "calibrators")


@pytest.fixture(scope="module", autouse=True)
def hooks() -> None:
    """MkDocs finds what its hook imports beside it; so do the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "_hooks"))
        for name in ("doc_api", "doc_messages", "doc_recipes", "doc_hook"):
            importlib.import_module(name)


def hook(name: str) -> ModuleType:
    return sys.modules[name]


def source() -> str:
    files = (file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class Resources(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        fetched = given.get("src") or (given.get("href") if tag == "link" else None)
        if fetched and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(fetched)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_has_every_page(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    assert len(pages) > 30
    assert [str(page) for page in sorted(pages) if not (site / page).is_file()] == []


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    for page in pages:
        reader = Resources()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.found, page
        outside = [found for found in reader.found if re.match(r"(https?:)?//", found)]
        assert outside == [], page
    styles = "".join(f.read_text(encoding="utf-8") for f in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*\)|@import", styles) == []


@pytest.mark.slow
def test_every_public_name_is_in_the_api_reference(site: Path) -> None:
    text = "".join(f.read_text(encoding="utf-8") for f in (site / "api").glob("*.html"))
    missing = [
        name for name, home in quantkit._HOMES.items() if f'id="quantkit.{home}.{name}"' not in text
    ]
    assert missing == []


@pytest.mark.slow
def test_no_mark_of_a_table_is_left_and_examples_are_code(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "generated: " not in text, page
        assert "<blockquote>\n<blockquote>" not in text, f"{page}: >>> read as a quotation"


def test_every_code_of_a_finding_is_on_the_page_of_findings() -> None:
    table = hook("doc_messages").finding_table()
    codes = set(re.findall(r'code=f?"([a-z0-9]+(?:-[a-z0-9]+)+)"', source()))
    assert len(codes) > 70
    assert [code for code in sorted(codes) if f"| `{code}` |" not in table] == []
    assert "`fp8-hardware`" in table


@pytest.mark.parametrize("file", ["test_lint.py", "test_onnxruntime.py", "test_tensorrt_rtx.py"])
def test_codes_that_tests_meet_are_on_the_page_of_findings(file: str) -> None:
    (path,) = ROOT.glob(f"tests/**/{file}")
    known = {message.code for message in hook("doc_messages").findings()}
    text = path.read_text(encoding="utf-8")
    met = set(re.findall(r'code == "([a-z0-9]+(?:-[a-z0-9]+)+)"', text))
    met |= set(re.findall(r'codes\(.*\) == \{?\[?"([a-z0-9]+(?:-[a-z0-9]+)+)"', text))
    assert met <= known | {"fp8-hardware"}


def test_a_finding_is_read_however_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = hook("doc_messages")
    tree = messages.ast.parse(
        "def warn(code, why): return Finding(code=code, why=why)\n"
        "warn('by-place', 'It is so.')\n"
        "Finding(code='by-name', why=f'Its {x} is so.', fix='Do so.')\n"
        "why = 'it is told above'\n"
        "def rule(): return 'in-tuple', why\n"
        "Finding(code=f\"{form}-{'one' if a else 'two'}\", why='It is so.')\n"
    )
    monkeypatch.setattr(messages, "_trees", lambda: (("made.py", tree),))
    found = {message.code: message.texts for message in messages.findings()}
    assert found == {
        "by-place": ("It is so.",),
        "by-name": ("Its … is so.", "Do so."),
        "in-tuple": ("it is told above",),
        "<form>-one": ("It is so.",),
        "<form>-two": ("It is so.",),
    }


def test_every_class_of_error_is_on_the_page_of_errors() -> None:
    table = hook("doc_messages").error_tables()
    for name in ("RecipeError", "DataError", "CaptureError", "ExportError", "TargetError"):
        assert f"### {name}\n" in table
    assert "no {" not in table
    assert len(re.findall(r"^\| ", table, re.MULTILINE)) > 200


def test_the_recipe_reference_has_every_key_and_every_plug_in() -> None:
    recipes = hook("doc_recipes")
    keys = recipes.keys()
    for model in recipes.KEYS.values():
        for key in set(model.model_fields) - {"name"}:
            row = re.search(rf"^\| `{key}` \| (.*) \| (.*) \| (.*) \|$", keys, re.MULTILINE)
            assert row, f"{model.__name__}.{key}"
            assert row[1], f"{model.__name__}.{key}: what it takes is not told"
    text = recipes.plug_ins() + recipes.recipes()
    names = [name for folder in (*recipes.FOLDERS, "recipes") for name in plugins.names(folder)]
    assert [name for name in names if f"### {name}\n" not in text] == []


def test_every_public_name_is_in_one_area() -> None:
    api = hook("doc_api")
    areas = [*api.AREAS, api.REST]
    assert sorted(name for area in areas for name in api.names(area)) == sorted(quantkit._HOMES)
    assert [area for area in areas if not api.names(area)] == []
    files = {file.stem for file in (ROOT / "docs" / "api").glob("*.md")}
    assert files == {*areas, "index"}


def test_links_and_citations_are_put_right_for_the_site() -> None:
    pages = hook("doc_hook")
    assert pages.linked("[a](../CONTRIBUTING.md#tests)", "x.md") == "[a](contributing.md#tests)"
    assert pages.linked("[a](docs/qat.md#b)", "changes.md") == "[a](qat.md#b)"
    assert pages.cited("x [2].\n\n## Sources\n") == "x [\\[2\\]](#sources).\n\n## Sources\n"
    assert pages.cited("x [2], y[3].") == "x [2], y[3]."
    assert pages.titled("[qat.md](qat.md#b), [a](qat.md)") == (
        "[Training a quantized model](qat.md#b), [a](qat.md)"
    )
    with pytest.raises(KeyError, match="nothing"):
        pages.filled("<!-- generated: nothing -->")


def test_the_comparison_is_what_was_measured() -> None:
    import json

    from benchmarks import peers_page

    results = json.loads((ROOT / "benchmarks/results/peers.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/comparison.md").read_text(encoding="utf-8") == peers_page.render(results)
    changed = json.loads(json.dumps(results))
    row = next(iter(changed["models"]["resnet20"].values()))
    row["sqnr_db"] += 1.0
    assert peers_page.render(changed) != peers_page.render(results)


def test_troubleshooting_says_of_each_symptom_what_to_do() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    symptoms = text.split("\n### ")[1:]
    assert len(symptoms) >= 20
    assert [part.splitlines()[0] for part in symptoms if "- **Change**: " not in part] == []
    known = {message.code for message in hook("doc_messages").findings()}
    named = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", text)) - {"fp8-hardware"}
    assert len(named) > 40
    assert named - known == set()
