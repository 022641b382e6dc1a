"""Which rows a bench has, and why it has not others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit import plugins
from quantkit.benching.report import LeftOut
from quantkit.benching.runner import Device, Runner
from quantkit.benching.sources import UnfitError, Variant
from quantkit.hardware import Gpus
from quantkit.onnx.facts import bytes_on_disk

DEVICES: tuple[Device, ...] = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One precision in one runtime on one device: a row for each batch size.

    Attributes:
        target: the runtime.
        device: where it runs.
        precision: its name.
        reference: whether it is the first precision, with which the others are compared.
        half: whether it is told to compute in float16.
        builds: whether something else than the file is deployed.
        file: what it reads.
        file_bytes: of that, with what belongs to it.
    """

    target: str
    device: Device
    precision: str
    reference: bool
    half: bool
    builds: bool
    file: Path
    file_bytes: int

    def __str__(self) -> str:
        """For progress and messages."""
        return f"{self.target} {self.precision}"


def runners(targets: Sequence[str] | None) -> dict[str, Runner]:
    """All runtimes, or those of these names, in the order of their names.

    Raises:
        RecipeError: there is no such runtime.

    Example:
        >>> list(runners(["onnxruntime", "eager"]))
        ['eager', 'onnxruntime']
    """
    names = plugins.names("benching.runners") if targets is None else sorted(set(targets))
    return {name: plugins.find("benching.runners", name, Runner)() for name in names}


def cells(
    variants: Sequence[Variant], runners: dict[str, Runner], devices: Sequence[Device], gpus: Gpus
) -> tuple[list[Cell], list[LeftOut]]:
    """The rows, by device, precision and runtime; and what there is no row of.

    Files are written here, those that some runtime reads.
    """
    found: list[Cell] = []
    left_out: list[LeftOut] = []
    for device in devices:
        here = {}
        for name, runner in runners.items():
            if device not in runner.devices:
                continue
            reason = gpus.why_none if device == "cuda" and not gpus.devices else None
            reason = reason or runner.absent(device)
            if reason is None:
                here[name] = runner
            else:
                left_out.append(LeftOut(target=name, device=device, precision=None, reason=reason))
        for number, variant in enumerate(variants):
            if variant.precision.half and device == "cpu":
                continue  # processors have no float16 that is faster
            for made in _of_variant(variant, here, device, reference=number == 0):
                if isinstance(made, Cell):
                    found.append(made)
                else:
                    left_out.append(made)
    return found, left_out


def _of_variant(
    variant: Variant, runners: dict[str, Runner], device: Device, *, reference: bool
) -> Iterator[Cell | LeftOut]:
    precision = variant.precision
    for name, runner in runners.items():
        if runner.reads in variant.formats:
            reason = runner.refuses(precision, device)
        else:
            reason = f"reads .{runner.reads} files, and there is none"
        if reason is None:
            try:
                file = variant.file(runner.reads, runner.form, half=runner.half)
            except UnfitError as error:
                reason = str(error)
        if reason is not None:
            yield LeftOut(target=name, device=device, precision=precision.name, reason=reason)
            continue
        yield Cell(
            target=name, device=device, precision=precision.name, reference=reference,
            half=precision.half, builds=runner.builds, file=file, file_bytes=bytes_on_disk(file),
        )  # fmt: skip
