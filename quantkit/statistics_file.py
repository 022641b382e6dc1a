"""Statistics as a file: safetensors, bound to the model they are of, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantkit.errors import ModelFileError
from quantkit.files import replacing
from quantkit.histogram import FINEST
from quantkit.observer import Observer

#: The form of the file; another is refused.
FORMAT = "quantkit.statistics/1"
_ABOUT = "quantkit"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run that statistics are of.

    Attributes:
        samples: how many it has seen.
        parts: how many parts of the data, where it was not done; ``None`` where it saw all.
        data: what data they are, in words that a run to resume must have as well.
    """

    samples: int
    parts: int | None = None
    data: str = ""

    def __post_init__(self) -> None:
        if not (type(self.samples) is int and type(self.data) is str and self.samples >= 0):
            raise ValueError(f"not the account of a run: {self}")
        if self.parts is not None and not (type(self.parts) is int and self.parts >= 0):
            raise ValueError(f"parts must be a count or absent, got {self.parts!r}")


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of tensors with their names, types and shapes.

    Example:
        >>> fingerprint([("w", torch.zeros(2))])[:8] == fingerprint([("w", torch.ones(2))])[:8]
        False
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, observers: Mapping[str, Observer], model: str, run: Run) -> None:
    """Write what observers have seen; an earlier file stays until the new one is whole.

    Args:
        path: of the file.
        observers: by the names of their tensors.
        model: the fingerprint of the model that they observe.
        run: what was seen.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{key}": value.detach().cpu().contiguous().clone()
        for name, observer in observers.items()
        for key, value in observer.state.items()
    }
    about = {
        "format": FORMAT,
        "model": model,
        "run": asdict(run),
        "statistics": {name: _kept(o) for name, o in observers.items()},
        "tensors": fingerprint(sorted(tensors.items())),
    }
    with replacing(path) as temporary:
        # One entry: of several safetensors changes the order, and equal files would differ.
        save_file(tensors, temporary, metadata={_ABOUT: json.dumps(about)})


def load(path: Path, observers: Mapping[str, Observer], model: str, data: str) -> Run:
    """Read into the observers what ``save`` wrote of the same model and data, to go on from it.

    Raises:
        ModelFileError: the file is not readable, damaged, of another model, tensors or data; the
            observers are then as they were.
    """
    run, states = read(path, observers, model)
    if run.data != data:
        raise ModelFileError(
            f"{path}: of other data than those given; resume with the same data, or without "
            "--resume to begin anew"
        )
    for name, observer in observers.items():
        for key, value in observer.state.items():
            value.copy_(states[name][key])
    return run


def load_merged(paths: Sequence[Path], observers: Mapping[str, Observer], model: str) -> int:
    """Read several files of the same model as if one run had seen all their data.

    Returns:
        How many samples they are of.

    Raises:
        ModelFileError: as `load`; or a file is given twice, or of a run that was not done.
    """
    resolved = [path.resolve() for path in paths]
    if twice := next(
        (p for p, r in zip(paths, resolved, strict=True) if resolved.count(r) > 1), None
    ):
        raise ModelFileError(f"{twice}: given twice; give each file of statistics once")
    read_all = [read(path, observers, model) for path in paths]
    for path, (run, _) in zip(paths, read_all, strict=True):
        if run.parts is not None:
            raise ModelFileError(
                f"{path}: of a run that was not done (it had seen {run.samples} samples); finish "
                "it with --resume first"
            )
    for name, observer in observers.items():
        observer.reset()
        for _, states in read_all:
            own = {key: value.to(observer.state[key].device) for key, value in states[name].items()}
            for statistic in observer.statistics:
                statistic.merge(observer.state, own)
    return sum(run.samples for run, _ in read_all)


def read(
    path: Path, observers: Mapping[str, Observer], model: str
) -> tuple[Run, dict[str, dict[str, Tensor]]]:
    """The states in a file by tensor, checked against the observers that they are for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path}: no such file; give one that quantkit calibrate wrote"
        ) from error
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{path}: not a file of statistics, or cut short ({error}); give one that quantkit "
            "calibrate wrote"
        ) from error
    if _ABOUT not in metadata:
        raise ModelFileError(f"{path}: holds no statistics; give a file that calibrate wrote")
    try:
        about = json.loads(metadata[_ABOUT])
        if about["format"] != FORMAT:
            raise ModelFileError(
                f"{path}: its form is {about['format']!r}, not {FORMAT!r}; collect the statistics "
                "again with this version of quantkit calibrate"
            )
        run = Run(**about["run"])
        kept = {str(name): list(map(str, has)) for name, has in about["statistics"].items()}
    except ModelFileError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: damaged: its head cannot be read ({error!r}); collect the statistics again"
        ) from error
    if (problem := _misfit(about, kept, tensors, observers, model)) is not None:
        raise ModelFileError(f"{path}: {problem}")
    states: dict[str, dict[str, Tensor]] = {}
    for name, observer in observers.items():
        states[name] = {key: tensors[f"{name}/{key}"] for key in observer.state}
        if (problem := _damage(states[name])) is not None:
            raise ModelFileError(f"{path}: damaged: {name} {problem}; collect the statistics again")
    return run, states


def _misfit(
    about: Mapping[str, object],
    kept: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Tensor],
    observers: Mapping[str, Observer],
    model: str,
) -> str | None:
    """Why statistics are not those that the observers of a model want."""
    if about.get("tensors") != fingerprint(sorted(tensors.items())):
        return "damaged: its sum does not match; collect the statistics again"
    if about.get("model") != model:
        return (
            "made for another model, or by a recipe with other passes: the weights differ; collect "
            "statistics of this one with quantkit calibrate"
        )
    if odd := sorted(kept.keys() ^ observers.keys()):
        where = "the file" if odd[0] in kept else "the model under this recipe"
        return f"{odd[0]} is only in {where}; use the recipe that the statistics were made with"
    for name, observer in observers.items():
        lacking = [s for s in _kept(observer) if s not in kept[name]]
        if lacking:
            return (
                f"holds no {lacking[0]} of {name}, which the calibrator reads, but "
                f"{', '.join(kept[name])}; collect them with quantkit calibrate and this recipe"
            )
        for key, value in observer.state.items():
            found = tensors.get(f"{name}/{key}")
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                form = None if found is None else (found.dtype, tuple(found.shape))
                return f"{name}/{key} is {form}, not {(value.dtype, tuple(value.shape))}"
    return None


def _kept(observer: Observer) -> list[str]:
    return [repr(statistic) for statistic in observer.statistics]


def _damage(state: Mapping[str, Tensor]) -> str | None:
    """What no run could have written."""
    low, high = state["minimum"], state["maximum"]
    empty = (low == torch.inf) & (high == -torch.inf)
    if bool(((low > high) & ~empty).any()):
        return "has a minimum above its maximum"
    counts, exponent = state.get("counts"), state.get("exponent")
    if counts is None or exponent is None:
        return None
    if bool((counts < 0).any()):
        return "has negative counts"
    if bool(((exponent < FINEST) | (exponent > 128)).any()):
        return "has bins of a width that no float32 has"
    if bool(((counts.sum(dim=1) == 0) != empty).any()):
        return "has a range without counts, or counts without a range"
    return None
