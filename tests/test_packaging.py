"""What is built is what is on disk, and nothing besides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

# All that a build reads. `build/` in particular is left out: setuptools would take deleted
# modules from it.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "quantkit", "calibrators", "recipes")


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    with (root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def copy_sources(root: Path, copy: Path) -> None:
    """Copy what a build reads, links as links: a build leaves nothing in the repository."""
    for name in SOURCES:
        if (root / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(root / name, copy / name)


def build(source: Path, kind: str) -> Path:
    """Build one ``sdist`` or ``wheel`` and return it."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module", params=["from the repository", "from an sdist"])
def wheel(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, set[str]]:
    """A wheel, and the names of the files in it."""
    tree = tmp_path_factory.mktemp("tree")
    copy_sources(root, tree)
    if request.param == "from an sdist":
        unpacked = tmp_path_factory.mktemp("sdist")
        with tarfile.open(build(tree, "sdist")) as archive:
            archive.extractall(unpacked, filter="data")
        (tree,) = unpacked.iterdir()
    path = build(tree, "wheel")
    with zipfile.ZipFile(path) as archive:
        return path, set(archive.namelist())


def test_the_packages_on_disk_are_those_in_pyproject(root: Path, pyproject: dict[str, Any]) -> None:
    on_disk = {
        ".".join(Path(folder).relative_to(root).parts)
        for folder, _, files in os.walk(root / "quantkit", followlinks=True)
        if any(file.endswith(".py") for file in files)
    }
    assert set(pyproject["tool"]["setuptools"]["packages"]) == on_disk


def test_every_package_has_an_init_file(root: Path, pyproject: dict[str, Any]) -> None:
    packages = pyproject["tool"]["setuptools"]["packages"]
    missing = [p for p in packages if not (root / p.replace(".", "/") / "__init__.py").is_file()]
    assert missing == []


@pytest.mark.parametrize("name", ["calibrators", "recipes"])
def test_the_folders_at_the_top_are_linked_into_the_package(root: Path, name: str) -> None:
    link = root / "quantkit" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_the_wheel_holds_every_file_of_the_packages(
    wheel: tuple[Path, set[str]], root: Path
) -> None:
    _, names = wheel
    on_disk = {
        (Path(folder) / file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root / "quantkit", followlinks=True)
        for file in files
        if file.endswith((".py", ".yaml", "py.typed", ".jinja", ".css", ".js"))
    }
    in_wheel = {name for name in names if ".dist-info/" not in name}
    assert in_wheel == on_disk


def test_the_wheel_holds_recipes_and_calibrators_inside_quantkit_only(
    wheel: tuple[Path, set[str]],
) -> None:
    _, names = wheel
    assert "quantkit/calibrators/__init__.py" in names
    assert "quantkit/py.typed" in names
    assert any(re.fullmatch(r"quantkit/recipes/\w+\.yaml", name) for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"quantkit"}


def test_the_wheel_holds_the_licence_and_the_command(wheel: tuple[Path, set[str]]) -> None:
    path, _ = wheel
    with zipfile.ZipFile(path) as archive:
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "quantkit = quantkit.__main__:main" in archive.read(entry).decode()
        (licence,) = (n for n in archive.namelist() if n.endswith("LICENSE"))
        assert "Apache License" in archive.read(licence).decode()


def test_plugins_are_found_in_an_unpacked_wheel(
    wheel: tuple[Path, set[str]], tmp_path: Path
) -> None:
    path, names = wheel
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from quantkit import plugins\n"
        "print(plugins.__file__)\n"
        "print(*plugins.names('calibrators'), *map(plugins.recipe_path, plugins.names('recipes')))"
    )
    # -I: neither the working directory nor PYTHONPATH may lend the repository's own files.
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    where, found = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    recipes = sorted(n for n in names if n.endswith(".yaml"))
    calibrators = sorted(
        Path(n).stem for n in names if re.fullmatch(r"quantkit/calibrators/[a-z]\w*\.py", n)
    )
    assert found.split() == [*calibrators, *(str(tmp_path / n) for n in recipes)]


def test_every_direct_dependency_is_pinned(root: Path, pyproject: dict[str, Any]) -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (root / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {normal(name) for name in pins}
    project = pyproject["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    names = {normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in wanted} - {"quantkit"}
    assert names - pinned == set()
    # A local version (`+cpu`) would bind everyone to one build of PyTorch.
    assert [version for version in pins.values() if "+" in version] == []
