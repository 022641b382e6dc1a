"""Which positions of a batch of sequences are padding, by the mask that comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def real_positions(inputs: Mapping[str, Any]) -> Tensor | None:
    """Where the samples of a call have tokens, ``(samples, positions)`` bool; ``None`` for no mask.

    The mask is the input whose name says so, as Hugging Face's ``attention_mask`` does: two
    dimensions, 1 for a token and 0 for padding.

    Args:
        inputs: of one call, by name.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> real_positions({"input_ids": mask * 7, "attention_mask": mask}).tolist()
        [[True, True, False], [True, True, True]]
        >>> real_positions({"input_ids": mask}) is None
        True
    """
    for name, value in inputs.items():
        if "mask" not in name or not isinstance(value, Tensor) or value.dim() != 2:
            continue
        if value.is_floating_point() or value.is_complex():
            continue
        real = value.bool()
        if bool((real == value).all()) and bool(real.any()):
            return real
    return None


def without_padding(x: Tensor, real: Tensor | None) -> Tensor:
    """Of ``(samples, positions, features)`` what is no padding, ``(count, features)``.

    Tensors of other shapes, and without a mask, come back as they are.

    Example:
        >>> import torch
        >>> x = torch.arange(6.0).view(1, 3, 2)
        >>> without_padding(x, torch.tensor([[True, False, True]])).tolist()
        [[0.0, 1.0], [4.0, 5.0]]
    """
    if real is None or x.dim() != 3 or x.shape[:2] != real.shape:
        return x
    return x[real.to(x.device)]
