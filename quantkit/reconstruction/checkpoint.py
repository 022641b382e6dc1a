"""The blocks that a rounding has done, in a file: a run that was ended goes on behind the last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

import quantkit
from quantkit import distributed
from quantkit.batches import Call
from quantkit.errors import ModelFileError
from quantkit.files import replacing
from quantkit.interfaces import BlockRounding, LayerRounding
from quantkit.model import QuantizedModel
from quantkit.reconstruction.block import own_quantizers
from quantkit.reconstruction.blocks import Span
from quantkit.reconstruction.layers import own_weight
from quantkit.reconstruction.stream import Pieces
from quantkit.statistics_file import fingerprint

#: The form of the file; another is refused.
FORMAT = "quantkit.rounding/1"
_ABOUT = "quantkit"
_ANEW = "or remove the file to begin anew"

#: What a run must share with the one that was ended, causes before what follows from them.
_OTHER = {
    "quantkit": "another version of quantkit",
    "rounding": "another rounding, or other settings of it",
    "data": "other calibration data",
    "model": "another model, or another plan for it",
    "weights": "other float weights",
    "grids": "other grids, as another calibrator or other statistics give",
}


@dataclass(frozen=True, kw_only=True)
class RoundedBlocks:
    """What was learned of each block, and the file that has it.

    Attributes:
        path: of the file, which is written anew after each block.
        about: what the result depends on, see `account`.
        blocks: the tensors of each block that is done, see `learned_tensors`.
    """

    path: Path
    about: Mapping[str, str]
    blocks: list[dict[str, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def restore(self, number: int, tensors: Mapping[str, Tensor]) -> bool:
        """Put what was learned of a block into the model, if it was; whether it was."""
        if number >= len(self.blocks):
            return False
        for key, value in tensors.items():
            value.copy_(self.blocks[number][key])
        return True

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep the next block, and write the file."""
        self.blocks.append({key: value.detach().cpu().clone() for key, value in tensors.items()})
        self.save()

    def save(self) -> None:
        """Write the file; the one before stays until it is whole, and on the disk."""
        from safetensors.torch import save_file

        if not distributed.place().leads:
            return  # all processes of a group learn the same
        tensors = {
            f"{number}/{key}": value.contiguous()
            for number, block in enumerate(self.blocks)
            for key, value in block.items()
        }
        head = {
            "format": FORMAT,
            "about": dict(self.about),
            "blocks": len(self.blocks),
            "tensors": fingerprint(sorted(tensors.items())),
        }
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, metadata={_ABOUT: json.dumps(head)})
            with temporary.open("rb") as written:
                os.fsync(written.fileno())  # else a power failure may leave an empty file


def account(
    model: QuantizedModel, rounding: LayerRounding | BlockRounding, calls: Sequence[Call]
) -> dict[str, str]:
    """All that the result of a rounding depends on, most of it as hashes.

    Args:
        model: calibrated, not rounded.
        rounding: with its settings.
        calls: what it learns from.
    """
    plan = replace(model.plan, recipe="")  # a name, which chooses nothing
    structure = f"{plan.to_json()}\n{model.graph.code}"
    inputs = (
        (f"{number} {name}", value)
        for number, (args, kwargs) in enumerate(calls)
        for name, value in (*enumerate(args), *kwargs.items())
    )
    return {
        "quantkit": quantkit.__version__,
        "rounding": repr(rounding),
        "data": fingerprint(inputs),
        "model": hashlib.sha256(structure.encode()).hexdigest(),
        "weights": fingerprint(model.float_state()),
        "grids": fingerprint(_grids(model)),
    }


def learned_tensors(pieces: Pieces, span: Span) -> dict[str, Tensor]:
    """All tensors of a model that a rounding may change in a block, by name: not copies."""
    found: dict[str, Tensor] = {}
    grids = own_quantizers(pieces, span)
    for layer in span.layers:
        assert layer.weight is not None
        found[f"weight {layer.name}"] = own_weight(layer)
        if layer.bias is not None:
            found[f"bias {layer.name}"] = layer.bias
        grids[layer.weight.name] = layer.weight
    for name, grid in grids.items():
        found[f"scale {name}"], found[f"zero-point {name}"] = grid.scale, grid.zero_point
        if grid.lowest is not None:
            found[f"lowest {name}"] = grid.lowest
    return found


def begun(
    path: Path, about: Mapping[str, str], expected: Sequence[Mapping[str, Tensor]]
) -> RoundedBlocks:
    """The blocks that the file holds, or none, and then a file that says so.

    Args:
        path: of the file.
        about: see `account`; that of the file must be the same.
        expected: of all blocks the tensors that the model has; they stay as they are.

    Raises:
        ExportError: the file cannot be written.
        ModelFileError: it is not readable, damaged, or of a run of other choices; it is then as it
            was.
    """
    if not path.exists():
        none = RoundedBlocks(path=path, about=about)
        none.save()  # before any work is done in vain
        return none
    theirs, blocks = _read(path)
    for name, other in _OTHER.items():
        if theirs.get(name) != about[name]:
            raise ModelFileError(f"{path}: of a run with {other}; give the same, {_ANEW}")
    forms = [_forms(block) for block in expected]
    if [_forms(block) for block in blocks] != forms[: len(blocks)]:
        raise ModelFileError(f"{path}: its blocks are not those of this model; remove the file")
    return RoundedBlocks(path=path, about=about, blocks=blocks)


def _read(path: Path) -> tuple[Mapping[str, str], list[dict[str, Tensor]]]:
    """What a file is about, and the tensors of its blocks."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        head = json.loads(metadata[_ABOUT])
        form, about = head["format"], dict(head["about"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path}: no checkpoint of a rounding, or cut short ({error!r}); give one that "
            f"quantize wrote, another path, {_ANEW}"
        ) from error
    if form != FORMAT:
        raise ModelFileError(f"{path}: its form is {form!r}, not {FORMAT!r}; give another, {_ANEW}")
    try:
        if head["tensors"] != fingerprint(sorted(tensors.items())):
            raise ValueError("its sum does not match")
        blocks: list[dict[str, Tensor]] = [{} for _ in range(head["blocks"])]
        for key, value in tensors.items():
            number, _, name = key.partition("/")
            blocks[int(number)][name] = value
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); remove the file to begin anew") from error
    return about, blocks


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {key: (value.dtype, value.shape) for key, value in tensors.items()}


def _grids(model: QuantizedModel) -> Iterator[tuple[str, Tensor]]:
    for name, quantizer in model.quantizers.items():
        if quantizer.calibrated:
            yield f"{name} scale", quantizer.scale
            yield f"{name} zero-point", quantizer.zero_point
