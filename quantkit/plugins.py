"""Finds plug-ins: the folder is the registry, the file name is the plug-in's name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from quantkit.errors import RecipeError
from quantkit.interfaces import Calibrator, EngineCalibrator

T = TypeVar("T")


def names(folder: str) -> list[str]:
    """List the plug-ins of one folder; a leading underscore makes a file private.

    Args:
        folder: a folder of ``quantkit``, such as ``calibrators``. In ``recipes`` the plug-ins are
            the YAML files, elsewhere the modules.

    Returns:
        The names, sorted.

    Example:
        >>> "minmax" in names("calibrators")
        True
    """
    if folder == "recipes":
        return sorted(_recipes())
    modules = pkgutil.iter_modules(_package(folder).__path__)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def names_of(folder: str, base: type) -> list[str]:
    """List the plug-ins of one folder that implement ``base``; this imports them all.

    Example:
        >>> from quantkit.interfaces import Calibrator
        >>> set(names_of("calibrators", Calibrator)) < set(names("calibrators"))
        True
    """
    return [name for name in names(folder) if _classes(_module(folder, name), base)]


def find(folder: str, name: str, base: type[T]) -> type[T]:
    """Import one plug-in and return its class.

    Args:
        folder: a folder of ``quantkit``, such as ``calibrators``.
        name: the plug-in's file name, without ``.py``.
        base: what the plug-ins of this folder implement, such as ``Calibrator``.

    Returns:
        The one concrete subclass of ``base`` that the file defines.

    Raises:
        RecipeError: there is no such plug-in, or it is one of another kind than ``base``.
        TypeError: the file does not define exactly one concrete subclass of ``base``.

    Example:
        >>> from quantkit.interfaces import Calibrator
        >>> issubclass(find("calibrators", "minmax", Calibrator), Calibrator)
        True
    """
    if name not in names(folder):
        # "enginecalibrator" is no word for people.
        kind = "calibrator" if folder == "calibrators" else base.__name__.lower()
        raise RecipeError(_unknown(kind, name, names_of(folder, base)))
    module = _module(folder, name)
    unique = _classes(module, base)
    if not unique and folder == "calibrators":
        _refuse_other_kind(name, module)
    if len(unique) != 1:
        classes = ", ".join(member.__name__ for member in unique) or "none"
        raise TypeError(
            f"{module.__file__}: a plug-in file defines exactly one concrete subclass of "
            f"{base.__module__}.{base.__name__}, this one defines {len(unique)} ({classes}); "
            "keep one a file, and start the names of files that are no plug-in with an underscore"
        )
    return unique[0]


def find_any(folder: str, name: str, bases: Sequence[type]) -> type:
    """As `find`, of a folder whose plug-ins implement one of several bases.

    Example:
        >>> from quantkit.interfaces import DataPass, ModelPass, Pass
        >>> find_any("passes", "fold_batchnorm", (Pass, DataPass, ModelPass)).__name__
        'FoldBatchNorm'
    """
    if name not in names(folder):
        raise RecipeError(_unknown(bases[0].__name__.lower(), name, names(folder)))
    module = _module(folder, name)
    base = next((base for base in bases if _classes(module, base)), bases[0])
    return find(folder, name, base)


def recipe_path(name: str) -> Path:
    """Return where the YAML file of a built-in recipe lies.

    Raises:
        RecipeError: there is no such recipe.

    Example:
        >>> recipe_path("int8_ptq").name
        'int8_ptq.yaml'
    """
    recipes = _recipes()
    if name not in recipes:
        raise RecipeError(_unknown("recipe", name, sorted(recipes)))
    return recipes[name]


def _module(folder: str, name: str) -> ModuleType:
    return importlib.import_module(f"{_package(folder).__name__}.{name}")


def _classes(module: ModuleType, base: type[T]) -> list[type[T]]:
    """The concrete subclasses of ``base`` that a module defines itself."""
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and member.__module__ == module.__name__
        and issubclass(member, base)
        and not inspect.isabstract(member)
    ]
    # One class under two names (``Old = New``) is still one class.
    return list(dict.fromkeys(found))


def _refuse_other_kind(name: str, module: ModuleType) -> None:
    """Tell the two kinds of calibrators apart: those of recipes, and those of engine builders."""
    if _classes(module, EngineCalibrator):
        raise RecipeError(
            f"calibrator {name!r} serves an engine builder and finds no ranges for a recipe; use "
            f"`quantkit build --calibrator {name} model.onnx`, or in a recipe `calibrator: entropy`"
        )
    if _classes(module, Calibrator):
        builders = ", ".join(names_of("calibrators", EngineCalibrator))
        raise RecipeError(
            f"calibrator {name!r} is one of recipes, and serves no engine builder; those that do "
            f"are {builders}; or quantize with it (`calibrator: {name}` in a recipe)"
        )


def _package(folder: str) -> ModuleType:
    # Through the import system and not by path: in an editable install on a file system without
    # links, quantkit.calibrators is the package although quantkit/calibrators is no folder.
    return importlib.import_module(f"quantkit.{folder}")


def _recipes() -> dict[str, Path]:
    return {
        file.stem: file
        for folder in _package("recipes").__path__
        for file in Path(folder).glob("*.yaml")
        if not file.name.startswith("_")
    }


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"no {kind} {name!r}; there are: {', '.join(known) or 'none'}{hint}"
