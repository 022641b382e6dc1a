"""Compile a program file with AOTInductor: prepared here, compiled in a child process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import TargetError
from quantkit.graph.plan import Placement
from quantkit.program.reading import read_program
from quantkit.program.writing import save
from quantkit.targets._inductor_packages import METADATA, Signature
from quantkit.targets._inductor_prepare import Layer, prepare
from quantkit.targets._inductor_process import (
    Outcome,
    Request,
    compile_program,
    require_compiler,
)


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What became of a program.

    Attributes:
        layers: its convolutions and products, in order.
        outcome: what the compiler told.
        package: the package's bytes; ``None`` where there is none.
    """

    layers: tuple[Layer, ...]
    outcome: Outcome
    package: bytes | None


def compile_file(model: Path, *, device: str, threads: int, timeout_s: float) -> Compilation:
    """Compile a program.

    Raises:
        ModelFileError: there is no such file, it is no program, or it brings code.
        MissingDependencyError: there is no C++ compiler.
    """
    require_compiler()
    read = read_program(model)
    try:
        metadata = {METADATA: Signature.of(read.program).json()}
        prepared = prepare(read.program, device, left_in_float=_left_in_float(read.plan))
    except TargetError as error:
        return Compilation(layers=(), outcome=Outcome(error=str(error)), package=None)
    with tempfile.TemporaryDirectory(prefix="quantkit-") as folder:
        program, package = Path(folder) / "program.pt2", Path(folder) / "package.pt2"
        save(prepared.program, program, {})
        request = Request(program=program, package=package, threads=threads, metadata=metadata)
        outcome = compile_program(request, timeout_s=timeout_s)
        built = None if outcome.error else package.read_bytes()
    return Compilation(layers=prepared.layers, outcome=outcome, package=built)


def _left_in_float(plan: Placement | None) -> frozenset[str]:
    """The layers that the plan has not quantized."""
    return frozenset(d.op for d in plan.decisions if not d.quantized) if plan else frozenset()
