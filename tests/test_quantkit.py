"""The public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit


def promised(root: Path) -> dict[str, str]:
    """The names that type checkers are told of, and the module that each comes from."""
    tree = ast.parse((root / "quantkit" / "__init__.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    return {
        alias.asname: (statement.module or "").removeprefix("quantkit.")
        for statement in imports
        for alias in statement.names
        if alias.asname is not None
    }


def test_type_checkers_and_the_interpreter_know_the_same_names(root: Path) -> None:
    assert promised(root) == quantkit._HOMES


def test_every_public_name_is_there_and_documented(root: Path) -> None:
    for name in promised(root):
        assert getattr(quantkit, name).__doc__, name
        assert name in dir(quantkit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = quantkit.quantise  # type: ignore[attr-defined]


def test_importing_quantkit_imports_no_pytorch() -> None:
    code = "import sys, quantkit; print('torch' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_check_is_the_function_whatever_was_imported_before() -> None:
    import quantkit.checking

    assert quantkit.check is quantkit.checking.check
