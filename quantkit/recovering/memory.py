"""What a run has measured, in a file, so that one that was ended goes on without repeating it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from quantkit.errors import ModelFileError
from quantkit.files import replacing
from quantkit.recipe import Recipe
from quantkit.recovering.goal import Measured
from quantkit.recovering.steps import Candidate

#: The form of the file; another is refused.
FORMAT = "quantkit.recovery/1"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Measurements by what was measured; kept in a file where there is one.

    Attributes:
        about: what they are of: the model, the data and the metric, as fingerprints.
        path: the file, written after each measurement; ``None`` for none.
        measured: by the key of the candidate.
        rankings: layers, the most sensitive first, by the key of the recipe.
    """

    about: Mapping[str, str]
    path: Path | None = None
    measured: dict[str, Measured] = field(default_factory=dict)
    rankings: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def get(self, candidate: Candidate) -> Measured | None:
        """What was measured of a candidate."""
        return self.measured.get(key_of(candidate.recipe, candidate.trained))

    def put(self, candidate: Candidate, measured: Measured) -> None:
        """Keep a measurement."""
        self.measured[key_of(candidate.recipe, candidate.trained)] = measured
        self.save()

    def save(self) -> None:
        """Write the file; the one before stays until it is whole."""
        if self.path is None:
            return
        content = {
            "format": FORMAT,
            "about": dict(self.about),
            "measured": {key: asdict(value) for key, value in self.measured.items()},
            "rankings": self.rankings,
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")


def recalled(about: Mapping[str, str], path: Path | None, *, resume: bool) -> Memory:
    """The memory of a run: what its file holds where it resumes, else none.

    Raises:
        ModelFileError: the file cannot be read, or is of another model, other data or another
            metric.
    """
    if path is None or not resume or not path.exists():
        return Memory(about=about, path=path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        theirs = dict(content["about"])
        measured = {key: Measured(**value) for key, value in content["measured"].items()}
        rankings = {k: tuple(map(tuple, v)) for k, v in content["rankings"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path}: no checkpoint of recover ({error}); give one that it wrote, or remove it"
        ) from error
    for name, value in about.items():
        if theirs.get(name) != value:
            raise ModelFileError(
                f"{path}: is of a run with another {name}; give the same, or remove the file"
            )
    return Memory(about=about, path=path, measured=measured, rankings=rankings)


def key_of(recipe: Recipe, trained: bool = False) -> str:
    """A hash of all that a recipe chooses; its name and description choose nothing.

    Example:
        >>> mine = Recipe.model_validate({"name": "mine", "scheme": {}})
        >>> key_of(mine) == key_of(mine.model_copy(update={"name": "yours"}))
        True
    """
    data = recipe.model_dump(mode="json", exclude={"name", "description"})
    # Settings of training choose nothing where nothing trains.
    if not trained:
        del data["training"]
    text = json.dumps([data, trained], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
