"""What a training run needs to go on as if it had not been ended, in one file."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.errors import ModelFileError
from quantkit.files import replacing

#: Raised with the layout of the file.
VERSION = 1

#: What reading another file raises: a tensor by itself, say, has no entries.
_NO_CHECKPOINT = (
    OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError,
    ValueError,
)  # fmt: skip


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values, atomically."""
    with replacing(path) as temporary:
        torch.save({"version": VERSION, **state}, temporary)


def load(path: Path, made_for: Mapping[str, Any]) -> dict[str, Any]:
    """Read what `save` wrote, for a run of the same choices; nothing in it is executed.

    Args:
        path: of the file.
        made_for: entries that must be the same in it.

    Raises:
        ModelFileError: it is not there, not readable, or of another run.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version = state["version"]
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such file; train without resume first") from error
    except _NO_CHECKPOINT as error:
        raise ModelFileError(
            f"{path}: no checkpoint of finetune ({type(error).__name__}); give one, or another path"
        ) from error
    if version != VERSION:
        raise ModelFileError(f"{path}: of version {version}, not {VERSION}; train from the start")
    for key, value in made_for.items():
        if state.get(key) != value:
            raise ModelFileError(
                f"{path}: of a run with another {key}; resume with the same, or remove the file"
            )
    return state


def random_state(data: object) -> dict[str, Any]:
    """The state of every generator that data and dropout draw from.

    Args:
        data: a ``DataLoader`` may have a generator of its own.
    """
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    own = getattr(data, "generator", None)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(k) for k in keys], position, has_gauss, cached],
        "python": [version, list(internal), gauss],
        "data": own.get_state() if isinstance(own, torch.Generator) else None,
    }


def restore_random_state(state: Mapping[str, Any], data: object) -> None:
    """Set what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    own = getattr(data, "generator", None)
    if isinstance(own, torch.Generator) and state["data"] is not None:
        own.set_state(state["data"])


def copy_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state that further training does not change."""
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in state.items()}
