"""Names of operators that lead back to the module, made unique: one rule for every way in."""

from __future__ import annotations

from collections import Counter


class Namer:
    """Numbers what has the name of something before it.

    Example:
        >>> namer = Namer()
        >>> [namer.op("fc", "linear", leaf=True) for _ in range(2)], namer.op("", "add", leaf=False)
        (['fc', 'fc_1'], 'add')
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def op(self, path: str, operator: str, *, leaf: bool) -> str:
        """The module's path where the operator is the module, else path and operator."""
        base = path if leaf and path else "/".join(filter(None, (path, operator)))
        return self._number("op", base)

    def unique(self, name: str) -> str:
        """A name for a tensor."""
        return self._number("value", name)

    def _number(self, space: str, base: str) -> str:
        name = base
        # A module may be called ``fc_1`` where ``fc`` runs twice.
        while self._seen[f"{space}:{name}"]:
            name = f"{base}_{self._seen[f'{space}:{base}']}"
            self._seen[f"{space}:{base}"] += 1
        self._seen[f"{space}:{name}"] += 1
        return name
