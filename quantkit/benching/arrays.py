"""Files of named arrays between the processes: no pickle, and any name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

_NAMES: Final = "names"


def write(path: Path, arrays: Mapping[str, np.ndarray] | Iterable[np.ndarray]) -> None:
    """Write arrays with their names, or with their numbers.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.npz"
        >>> write(path, {"file": np.zeros(2), "a/b": np.ones(1)})
        >>> list(read(path))
        ['file', 'a/b']
    """
    named = arrays if isinstance(arrays, Mapping) else {str(i): x for i, x in enumerate(arrays)}
    numbered = {f"array{i}": value for i, value in enumerate(named.values())}
    names = np.array(list(named), dtype=np.str_)
    np.savez(path, **{_NAMES: names}, **numbered)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `write` wrote, in order."""
    with np.load(path, allow_pickle=False) as archive:
        names = [str(name) for name in archive[_NAMES]]
        return {name: archive[f"array{i}"] for i, name in enumerate(names)}
