"""Who tells how a program is shared out: Torch-TensorRT, or quantkit's rules in its absence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from quantkit.errors import MissingDependencyError, QuantkitError
from quantkit.interfaces import Finding, Severity
from quantkit.targets import _torch_tensorrt_lists as lists
from quantkit.targets import _torch_tensorrt_rules as rules
from quantkit.targets._torch_tensorrt_dryrun import dry_run
from quantkit.targets._torch_tensorrt_partition import Partition
from quantkit.targets._torch_tensorrt_program import with_operators
from quantkit.targets._torch_tensorrt_sdk import check_settings, load


def share_out(
    program: ExportedProgram,
    settings: Mapping[str, Any],
    prepare: Callable[[ExportedProgram], ExportedProgram],
) -> tuple[Partition, str, list[Finding]]:
    """The share, who tells it, and what there is to say of that.

    Args:
        program: with Q/DQ; it may change.
        settings: of a build.
        prepare: for a dry run: sizes, operators, the GPU.

    Raises:
        TargetError: the dry run fails.
    """
    try:
        sdk = load()
    except QuantkitError as error:
        with_operators(program)
        shared = rules.share_out(
            program,
            smallest=settings["min_block_size"],
            executed=settings["torch_executed_ops"],
        )
        label = f"torch_tensorrt (quantkit's rules of {lists.VERSION}, no dry run)"
        return shared, label, [_no_dry_run(error)]
    check_settings(sdk, settings)
    shared = dry_run(sdk, prepare(program), settings)
    return shared, f"torch_tensorrt {sdk.__version__} (its dry run)", []


def failed(model: Path, why: str) -> Finding:
    """A dry run that fails."""
    return Finding(
        severity=Severity.ERROR,
        code="dry-run-failed",
        where=model.name,
        why=f"{why}.",
        fix="Export the program again with the PyTorch that is installed here.",
    )


def _no_dry_run(error: QuantkitError) -> Finding:
    missing = isinstance(error, MissingDependencyError)
    return Finding(
        severity=Severity.INFO,
        code="no-dry-run",
        where="torch_tensorrt",
        why=f"Quantkit's rules speak, since its own dry run cannot be had here: {error}.",
        fix="Install it, on a machine with an NVIDIA GPU."
        if missing
        else "Inspect the program on a machine with an NVIDIA GPU.",
    )
