"""The sizes of dynamic inputs that an engine is built for, as the user gives them."""

from __future__ import annotations

from collections.abc import Mapping

#: The smallest, best and largest shape of each input with dynamic dimensions.
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def check_shapes(shapes: Shapes | None) -> None:
    """Raise ``ValueError`` unless each input has three shapes of one length."""
    for name, sizes in (shapes or {}).items():
        if len(sizes) != 3 or len({len(size) for size in sizes}) != 1:
            raise ValueError(
                f"shapes of {name!r} must be three shapes of one length (smallest, best, "
                f"largest), got {sizes!r}"
            )
