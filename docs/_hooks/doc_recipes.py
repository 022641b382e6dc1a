"""The recipe reference: every key of a recipe and every plug-in, from the code itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from quantkit import plugins, recipe
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
from quantkit.training_choice import TrainingChoice

#: Where each value of a recipe stands in the file.
KEYS: dict[str, type[BaseModel]] = {
    "The file": recipe.Recipe,
    "scheme": recipe.SchemeChoice,
    "scheme.weights and scheme.activations": recipe.TensorChoice,
    "placement": recipe.PlacementChoice,
    "overrides": recipe.Override,
    "A plug-in": recipe.PlugIn,
    "training": TrainingChoice,
}

#: The folders of plug-ins, and what theirs implement.
FOLDERS: dict[str, tuple[type, ...]] = {
    "calibrators": (Calibrator, EngineCalibrator),
    "passes": (Pass, DataPass, ModelPass),
    "rounding": (Rounding, LayerRounding, BlockRounding),
    "targets": (Target,),
}


def keys() -> str:
    """A table for each value that a recipe holds, in Markdown."""
    return "\n\n".join(_section(title, model) for title, model in KEYS.items())


def plug_ins() -> str:
    """Every plug-in of every folder, with its settings and their defaults, in Markdown."""
    parts = []
    for folder, bases in FOLDERS.items():
        parts.append(f"## {folder.capitalize()}")
        parts += [_plug_in(folder, name, bases) for name in plugins.names(folder)]
    return "\n\n".join(parts)


def recipes() -> str:
    """Every recipe as its file stands, in Markdown."""
    parts = []
    for name in plugins.names("recipes"):
        path = plugins.recipe_path(name)
        text = path.read_text(encoding="utf-8").strip()
        about = recipe.read_recipe(path).description
        parts.append(f"### {name}\n\n{about}\n\n```yaml\n{text}\n```")
    return "\n\n".join(parts)


def attributes(kind: type) -> dict[str, str]:
    """What the section *Attributes* of a class's docstring says of each, on one line.

    Example:
        >>> attributes(recipe.PlacementChoice)["concat"][:14]
        '``separate`` g'
    """
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def _section(title: str, model: type[BaseModel]) -> str:
    about = _about(model)
    said = attributes(model)
    schema = model.model_json_schema()
    rows = [
        (f"`{key}`", _kind(value), _default(value, key, schema), _cell(said.get(key, "")))
        for key, value in schema["properties"].items()
        if not (model is recipe.Recipe and key == "name")
    ]
    lines = [f"### {title}", "", about, ""]
    return "\n".join([*lines, *_table(("key", "values", "default", "meaning"), rows)])


def _plug_in(folder: str, name: str, bases: Sequence[type]) -> str:
    cls = plugins.find_any(folder, name, bases)
    said = attributes(cls)
    base = next(base for base in bases if issubclass(cls, base))
    lines = [f"### {name}", "", f"*{base.__name__}.* {_about(cls)}"]
    rows = [
        (f"`{item.name}`", _field_default(item), _cell(said.get(item.name, "")))
        for item in dataclasses.fields(cls)
    ]
    if rows:
        lines += ["", *_table(("setting", "default", "meaning"), rows)]
    return "\n".join(lines)


def _about(kind: type) -> str:
    """The docstring up to its first section."""
    text = inspect.getdoc(kind) or ""
    about = re.split(r"^(?:Attributes|Example|Raises|Args|Returns):\n", text, flags=re.MULTILINE)
    return about[0].strip()


def _kind(value: dict[str, Any]) -> str:
    """What a key takes, from its JSON schema."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(part) for part in value["anyOf"]))
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        title = next(title for title, model in KEYS.items() if model.__name__ == name)
        return f"[keys](#{_anchor(title)})"
    if "enum" in value:
        return ", ".join(f"`{option}`" for option in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if value.get("type") == "array":
        return f"a list of {_kind(value['items'])}"
    names = {
        "string": "text", "integer": "a whole number", "number": "a number", "null": "`null`",
        "boolean": "`true`, `false`", "object": "names and values",
    }  # fmt: skip
    return names[value["type"]] + _bounds(value)


def _anchor(title: str) -> str:
    """What the site makes of a heading, such as ``a-plug-in``."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _bounds(value: dict[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to",
             "exclusiveMaximum": "below"}  # fmt: skip
    said = [f"{word} {value[key]:g}" for key, word in words.items() if key in value]
    return f" {' '.join(said)}" if said else ""


def _default(value: dict[str, Any], key: str, schema: dict[str, Any]) -> str:
    if key in schema.get("required", ()):
        return "required"
    default = value.get("default")
    if isinstance(default, dict):
        return "its defaults"
    return _shown(default)


def _field_default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        return _shown(item.default)
    if item.default_factory is not dataclasses.MISSING:
        return _shown(item.default_factory())
    return "required"


def _shown(value: object) -> str:
    if value is None or value in ("", (), [], {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{getattr(item, 'name', item)}`" for item in value)
    return _cell(f"`{value}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
