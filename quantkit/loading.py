"""Models and weights by what a command line can say of them: a file, or a name to import."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from quantkit.errors import ModelFileError
from quantkit.graph.capture import load_program
from quantkit.program.archive import read_archive

_FORMS = "give a .pt2 file of torch.export.save, or package.module:factory"
_PICKLES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".pkl")


def load_model(
    source: str, weights: Path | None = None
) -> nn.Module | torch.export.ExportedProgram:
    """The model of a ``.pt2`` file, or of a factory ``package.module:name``, to be evaluated.

    Args:
        source: ``name`` is a function without arguments, a class, or a module itself; it is
            looked for from the working directory as well.
        weights: what ``load_weights`` reads, for a factory's model.

    Raises:
        ModelFileError: there is no such model, its code fails, or the weights do not fit it.
    """
    if source.endswith(".pt2"):
        if weights is not None:
            raise ModelFileError(f"{source}: holds its own weights; leave {weights} out")
        _require_float(source)
        program = load_program(Path(source))
        require_finite(program, source)
        return program
    module_name, colon, name = source.partition(":")
    if not colon or not name or Path(module_name).suffix in {".py", ".onnx", *_PICKLES}:
        raise ModelFileError(f"{source}: {_misread(source)}; {_FORMS}")
    model = _make(source, _import(source, module_name), name)
    if weights is not None:
        _fill(model, load_weights(weights), weights)
    require_finite(model, source if weights is None else str(weights))
    return model.eval()


def _require_float(source: str) -> None:
    """Refuse a program that is quantized already, and one that brings code."""
    about = read_archive(Path(source))
    if about.compiled:
        raise ModelFileError(f"{source}: a compiled package, not a program; {_FORMS}")
    if about.quantized:
        recipe = about.extra.get("quantkit.recipe")
        made = f"with the recipe {recipe}" if recipe else "by another tool"
        raise ModelFileError(
            f"{source}: quantized already, {made}; give the float model that it was made of, or "
            f"look at it with `quantkit check {source} --target inductor`"
        )


def require_finite(model: nn.Module | torch.export.ExportedProgram, source: str) -> None:
    """Refuse a model that training broke; ``source`` is where its weights come from.

    Raises:
        ModelFileError: a parameter, or a statistic of batch-norm, holds NaN or infinity.

    Example:
        >>> require_finite(nn.Linear(3, 2), "net:make")
    """
    # Other buffers may hold infinity with good reason, such as masks of attention.
    tensors: list[tuple[str, str, Tensor]] = [
        ("parameter", name, value) for name, value in model.named_parameters()
    ]
    tensors += [
        ("buffer", name, value)
        for name, value in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    for kind, name, value in tensors:
        if not value.dtype.is_floating_point or value.is_meta or is_lazy(value):
            continue
        values = value.detach().float() if value.element_size() == 1 else value.detach()
        if bad := int((~values.isfinite()).sum()):
            raise ModelFileError(
                f"{source}: {kind} {name} holds NaN or infinity in {bad} of {value.numel()} "
                "values; give weights of before the training diverged"
            )


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of one of ``torch.save`` that holds nothing else.

    A dictionary under ``state_dict`` is taken out, and the prefix ``module.`` of DataParallel is
    dropped. Code that a pickle brings is never run.

    Raises:
        ModelFileError: there is no such file, or it is of another kind.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give a .safetensors file or a state_dict")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelFileError(
            f"{path}: holds {_one(loaded)}, no weights by name; save model.state_dict() instead"
        )
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelFileError(
            f"{path}: {', '.join(others[:3])} of its {len(loaded)} entries are no tensors; save "
            "model.state_dict() alone, or under the key state_dict"
        )
    if all(key.startswith("module.") for key in loaded):
        return {key.removeprefix("module."): value for key, value in loaded.items()}
    return dict(loaded)


def weight_bytes(model: nn.Module | torch.export.ExportedProgram) -> int:
    """How many bytes the parameters and buffers of a float model take.

    Example:
        >>> weight_bytes(nn.Linear(3, 2))
        32
    """
    # A program's is a property, a module's a method.
    state = model.state_dict() if isinstance(model, nn.Module) else model.state_dict
    return sum(value.nbytes for value in state.values())


def _misread(source: str) -> str:
    suffix = Path(source.partition(":")[0]).suffix
    if suffix == ".py":
        name = f"{Path(source.partition(':')[0]).stem}:{source.partition(':')[2] or 'NAME'}"
        return f"names a file; write {name} in the folder of it"
    if suffix == ".onnx":
        return "is ONNX, which quantize_onnx takes, and this takes PyTorch models"
    if suffix in _PICKLES:
        return "holds weights or a pickle, not a model that can be read safely (--weights takes it)"
    return "names neither a file nor a factory"


def _import(source: str, name: str) -> Any:
    # An installed command, other than `python -m`, does not look into the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelFileError(
                f"{source}: no module {error.name!r}; run from the folder that holds it, or "
                "install it"
            ) from error
        raise ModelFileError(f"{source}: needs {error.name!r}; install it first") from error
    except Exception as error:  # whatever the user's own code raises
        raise ModelFileError(
            f"{source}: importing {name} fails: {_told(error)}; correct it first"
        ) from error


def _make(source: str, module: Any, name: str) -> nn.Module:
    factory = module
    for part in name.split("."):
        if not hasattr(factory, part):
            near = ", ".join(n for n in vars(module) if callable(getattr(module, n)))
            raise ModelFileError(
                f"{source}: no {part!r} there; there are: {near or 'no callables'}"
            )
        factory = getattr(factory, part)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise ModelFileError(
            f"{source}: is {_one(factory)}; name a function that returns the model"
        )
    try:
        model = factory()
    except Exception as error:  # whatever the user's own code raises
        raise ModelFileError(
            f"{source}: {name}() fails: {_told(error)}; it must run without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelFileError(f"{source}: returns {_one(model)}; it must return a torch.nn.Module")
    return model


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: does not fit {type(model).__name__}: {_misfit(model.state_dict(), state)}; "
            "give the weights of this model"
        ) from error


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first tensor that keeps weights from fitting, and how many there are."""
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    shapes = [
        f"{name} has shape {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    told = []
    if missing:
        told.append(f"{len(missing)} of {len(wanted)} tensors are missing, as {missing[0]}")
    if extra:
        told.append(f"{len(extra)} are not of the model, as {extra[0]}")
    return ", and ".join(told + shapes[:1])


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(
            f"{path}: not a safetensors file ({' '.join(str(error).split())}); save it with "
            "safetensors.torch.save_file"
        ) from error


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.load raises almost anything on what it does not know
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"is a pickle that needs {wanted[1]}: reading it would run code that the file brings"
            if wanted
            else f"is no file of weights ({_told(error)[:150]})"
        )
        raise ModelFileError(
            f"{path}: {reason}; where you trust it, load it in Python and write its "
            "model.state_dict() with safetensors.torch.save_file"
        ) from error


def _one(value: object) -> str:
    """The kind of a value with its article: ``an int``, ``a list``."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}"


def _told(error: Exception) -> str:
    """The kind of an error and its message, on one line."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
