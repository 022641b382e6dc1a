"""Read a program with Q/DQ back, and what quantkit wrote into its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from quantkit.errors import ModelFileError
from quantkit.graph.capture import load_program
from quantkit.graph.plan import Placement
from quantkit.onnx.facts import FileFacts
from quantkit.program import operators  # noqa: F401  (registers what programs hold)
from quantkit.program.archive import Archive, read_archive


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """A program and what its file says of it.

    Attributes:
        program: on the CPU.
        recipe: the recipe that made it; ``None`` where quantkit did not write the file.
        plan: what was quantized and why; ``None`` likewise.
    """

    program: torch.export.ExportedProgram
    recipe: str | None
    plan: Placement | None


def read_program(path: Path) -> ProgramFile:
    """The program of a ``.pt2`` file.

    Raises:
        ModelFileError: it is no such file, or brings code; see `archive`.

    Example:
        >>> read_program(Path("none.pt2"))
        Traceback (most recent call last):
        quantkit.errors.ModelFileError: none.pt2: no such file; give a .pt2 file
    """
    about = read_archive(path)
    if about.compiled:
        raise ModelFileError(
            f"{path}: a compiled package, not a program; give the .pt2 file that it was built from"
        )
    return ProgramFile(
        program=load_program(path),
        recipe=about.extra.get("quantkit.recipe"),
        plan=_plan(about.extra.get("quantkit.plan")),
    )


def is_quantized(about: Archive) -> bool:
    """Whether Q/DQ stands in the program of a file, whoever wrote it."""
    return about.quantized


def inputs_of(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The names of its inputs, in order."""
    return tuple(str(name) for name in program.graph_signature.user_inputs)


def read_facts(path: Path) -> FileFacts:
    """What a ``.pt2`` file tells of itself, as an ONNX file does.

    Raises:
        ModelFileError: as `read_program`.
    """
    read = read_program(path)
    return FileFacts(
        recipe=read.recipe,
        plan=read.plan,
        layer_of={},  # layers have the plan's names
        inputs=inputs_of(read.program),
        outputs=tuple(str(name) for name in read.program.graph_signature.user_outputs),
    )


def _plan(text: str | None) -> Placement | None:
    """The embedded plan; none where another version of quantkit wrote another form."""
    try:
        return None if text is None else Placement.from_json(text)
    except (ValueError, KeyError, TypeError):
        return None
