"""The sizes of dynamic inputs that an engine is built for, as the user gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

#: The smallest, best and largest shape of one input.
Profile: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

#: The smallest, best and largest shape of each input with dynamic dimensions.
Shapes: TypeAlias = Mapping[str, Profile]

#: Smallest, best and largest size of a dynamic dimension where the user gives none.
BATCH = (1, 8, 32)
SEQUENCE = (1, 128, 512)
IMAGE = (64, 224, 512)


def default_profile(shape: Sequence[int]) -> Profile:
    """The sizes to build for where a dimension is dynamic (negative).

    The first dimension is taken for a batch (1, 8, 32); others of a tensor of rank 4 or more for
    the side of an image (64, 224, 512); the rest for a sequence (1, 128, 512).

    Example:
        >>> default_profile([-1, 3, 224, 224])
        ((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))
    """
    inner = IMAGE if len(shape) >= 4 else SEQUENCE
    low, best, high = (
        tuple(
            size if size >= 0 else (BATCH if i == 0 else inner)[k] for i, size in enumerate(shape)
        )
        for k in range(3)
    )
    return low, best, high


def check_shapes(shapes: Shapes | None) -> None:
    """Raise ``ValueError`` unless each input has three shapes of one length, in order of size."""
    for name, sizes in (shapes or {}).items():
        if len(sizes) != 3 or len({len(size) for size in sizes}) != 1:
            raise ValueError(
                f"shapes of {name!r} must be three shapes of one length (smallest, best, "
                f"largest), got {sizes!r}"
            )
        if any(not 0 <= low <= best <= high for low, best, high in zip(*sizes, strict=True)):
            raise ValueError(
                f"shapes of {name!r} must grow from the smallest to the largest, got {sizes!r}"
            )
