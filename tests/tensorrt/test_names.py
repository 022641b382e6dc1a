"""Every name of `tensorrt` that quantkit uses is one that NVIDIA's bindings have."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import qdq_models as nets
import real_tensorrt
from qdq_models import save

Bindings = Callable[[int], Path]
VERSIONS = [10, 11]
GONE = "# gone in 11"


def names(folder: Path, scenario: str, *arguments: str) -> Any:
    return real_tensorrt.run(folder, "tensorrt_names.py", scenario, *arguments)


@pytest.fixture(scope="module")
def stub(root: Path) -> dict[str, dict[str, bool]]:
    """The members of each class of the stub; whether each is there in 11 as well."""
    text = (root / "typings" / "tensorrt" / "__init__.pyi").read_text()
    lines = text.splitlines()
    found: dict[str, dict[str, bool]] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        stays = GONE not in lines[node.lineno - 1]
        members = found.setdefault(node.name, {"": stays})
        for item in node.body:
            for name in _names(item):
                members[name] = stays and GONE not in lines[item.lineno - 1]
    return found


def _names(item: ast.stmt) -> list[str]:
    if isinstance(item, ast.FunctionDef):
        listed = [item.name]
    elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
        listed = [item.target.id]
    elif isinstance(item, ast.Assign):
        listed = [target.id for target in item.targets if isinstance(target, ast.Name)]
    else:
        listed = []
    return [name for name in listed if not name.startswith("__")]


@pytest.mark.parametrize("major", VERSIONS)
def test_the_stub_has_what_the_bindings_have(
    bindings: Bindings, stub: dict[str, dict[str, bool]], major: int
) -> None:
    assert len(stub) > 20
    real = names(bindings(major), "names", *stub)
    for name, members in stub.items():
        wanted = major < 11 or members[""]
        assert (real[name] is not None) == wanted, name
        for member, stays in members.items():
            there = real[name] is not None and member in ("", *real[name])
            assert there == (major < 11 or stays), f"{name}.{member}"


@pytest.mark.parametrize(
    ("major", "flags"),
    [
        (
            10,
            {
                "False False": [["STRONGLY_TYPED"], ["VERSION_COMPATIBLE"]],
                "False True": [["STRONGLY_TYPED"], ["VERSION_COMPATIBLE"]],
                "True False": [[], ["INT8", "VERSION_COMPATIBLE"]],
                "True True": [[], ["INT8", "VERSION_COMPATIBLE"]],
            },
        ),
        (
            11,
            {
                "False False": [[], ["VERSION_COMPATIBLE"]],
                "False True": [[], ["VERSION_COMPATIBLE"]],
            },
        ),
    ],
)
def test_every_setting_of_a_build_is_there(
    bindings: Bindings, major: int, flags: dict[str, Any]
) -> None:
    assert names(bindings(major), "settings") == {"absent": [], "flags": flags}


@pytest.mark.parametrize("major", VERSIONS)
def test_the_logger_and_the_monitor_extend_the_real_classes(bindings: Bindings, major: int) -> None:
    assert names(bindings(major), "listeners") == [
        {"event": "error", "text": "it broke"},
        {"event": "layers", "text": "Layers:\nName: a"},
        {"event": "phase", "name": "tune", "steps": 3},
        {"event": "step", "name": "tune", "step": 0},
    ]


def test_a_build_without_tensorrt_itself_does_not_start_and_says_so(
    bindings: Bindings, tmp_path: Path
) -> None:
    """In the child process, which finds the bindings of 11; `test_contract` does so with 10."""
    save(nets.conv_relu_conv(), tmp_path)
    told = names(bindings(11), "build", str(tmp_path))
    assert told.startswith("tensorrt 11.4.0 does not start")
    assert "NVIDIA GPU" in told


def test_calibrators_are_there_in_10_and_gone_in_11(bindings: Bindings) -> None:
    assert names(bindings(10), "calibrator") == "IInt8EntropyCalibrator2"
    told = names(bindings(11), "calibrator")
    assert told.startswith("tensorrt 11.4.0 has no IInt8EntropyCalibrator2")
    assert "quantkit migrate" in told
