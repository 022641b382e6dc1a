"""Inductor, the compiler behind ``torch.compile``: on CPUs it runs Q/DQ in oneDNN's integers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from quantkit.errors import ModelFileError, TargetError
from quantkit.hardware import named_cpu, weight_bits
from quantkit.interfaces import ExportForm, Finding, Inspection, ModelFormat, Severity, Target
from quantkit.spec import Scheme
from quantkit.targets._inductor_schemes import scheme_findings

if TYPE_CHECKING:
    import numpy as np
    import torch

    from quantkit.model import QuantizedModel
    from quantkit.targets._inductor_packages import Package

Device: TypeAlias = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Inductor(Target):
    """Compiles programs of ``torch.export`` ahead of time, to packages of native code.

    A package runs without the compiler, on a machine of the same kind with the same PyTorch. The
    program is first given the shape that Inductor's patterns want, and what they get wrong is kept
    from them: see ``_inductor_prepare``. On GPUs there are no integer kernels, and nothing here has
    been run on one yet.

    Attributes:
        device: where packages run.
        cpu: the kind of processor it will be deployed on, see ``quantkit.hardware.named_cpu``.
            Code is always compiled for this machine's.
        threads: that a package uses; ``None`` for those that PyTorch uses here.
        trust_engine: run packages that no record says were built here. Loading one runs what is in
            it.
        timeout_s: seconds after which compiling is stopped.

    Example:
        >>> Inductor().reads, Inductor().form
        ('pt2', 'onnxruntime')
    """

    device: Device = "cpu"
    cpu: str = "auto"
    threads: int | None = None
    trust_engine: bool = False
    timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}; or leave it out")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be more than 0, got {self.timeout_s}")
        named_cpu(self.cpu)

    @property
    def reads(self) -> ModelFormat:
        """Programs of ``torch.export``."""
        return "pt2"

    @property
    def form(self) -> ExportForm:
        """uint8 activations: oneDNN's convolutions take no others."""
        return "onnxruntime"

    @property
    def _saturates(self) -> bool:
        return self.device == "cpu" and weight_bits(named_cpu(self.cpu)) < 8

    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What it runs in float of these schemes, or in sums that saturate; it refuses none.

        Example:
            >>> from quantkit.spec import QuantSpec
            >>> alone = Scheme(weights=QuantSpec(axis=0), activations=None)
            >>> [finding.code for finding in Inductor().refusals([alone])]
            ['weight-only']
        """
        said = [
            finding
            for scheme in schemes
            for finding in scheme_findings(scheme, device=self.device, saturates=self._saturates)
        ]
        return list(dict.fromkeys(said))

    def inspect(self, model: Path) -> Inspection:
        """Compile a program in a child process, and tell what each layer became.

        The package is kept in ``engine``.

        Raises:
            ModelFileError: there is no such file, it is no program, or it brings code.
            MissingDependencyError: there is no C++ compiler.
        """
        import torch

        from quantkit.targets._inductor_compile import compile_file
        from quantkit.targets._inductor_findings import inspection_of

        threads = self.threads or torch.get_num_threads()
        compiled = compile_file(
            model, device=self.device, threads=threads, timeout_s=self.timeout_s
        )
        where = named_cpu(self.cpu).name if self.device == "cpu" else self.device
        label = f"inductor, torch {torch.__version__} ({where})"
        return inspection_of(label, model, compiled, saturates=self._saturates)

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the package to ``output``, whole or not at all, and remember that it is ours.

        Raises:
            TargetError: it does not compile, or computes something else.
            ExportError: it cannot be written.
            ModelFileError: as `inspect`.
            MissingDependencyError: there is no C++ compiler.
        """
        from quantkit.files import replacing
        from quantkit.tensorrt.trust import remember

        if output.suffix != ".pt2":
            raise TargetError(f"{output}: PyTorch loads packages that end in .pt2; name it so")
        if output.exists() and model.exists() and output.samefile(model):
            raise TargetError(f"{output} is the program itself; choose another --output")
        inspection = self.inspect(model)
        package = _built(inspection, model)
        remember(_sha256(package), {"file": str(output), "target": inspection.target})
        with replacing(output) as temporary:
            temporary.write_bytes(package)
        return inspection

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs for each batch of named inputs; a program is compiled first.

        Raises:
            TargetError: it does not compile or load, is a package that was not built here, or a
                batch does not fit.
            ModelFileError: as `inspect`.
            MissingDependencyError: a program is given, and there is no C++ compiler.
        """
        run = self.opened(model)
        return [run(batch) for batch in batches]

    def opened(self, model: Path, inspection: Inspection | None = None) -> Package:
        """A program or package loaded once: a function from one batch to its outputs.

        Args:
            model: the file.
            inspection: what `inspect` has told of it; its package is run, and nothing is compiled.

        Raises:
            TargetError: as `run`.
        """
        from quantkit.program.archive import read_archive
        from quantkit.targets._inductor_packages import load

        if inspection is None and read_archive(model).compiled:
            return load(self._trusted(model), model.name, self.device)
        package = _built(inspection or self.inspect(model), model)
        return load(package, model.name, self.device)

    def _trusted(self, package: Path) -> bytes:
        """The bytes of a package that may be loaded."""
        from quantkit.tensorrt.trust import is_known

        try:
            data = package.read_bytes()
        except OSError as error:
            raise ModelFileError(
                f"{package}: cannot be read ({error.strerror}); give a .pt2 file"
            ) from error
        if not self.trust_engine and not is_known(_sha256(data)):
            raise TargetError(
                f"{package} is not loaded: no record says that it was built here (a package is "
                "code: loading it runs what is in it); build it here from its program, or say that "
                "you trust whoever built it: trust_engine=True"
            )
        return data


def compiled(
    model: QuantizedModel | torch.export.ExportedProgram,
    *,
    dynamic: bool | None = None,
    device: Device = "cpu",
) -> Callable[..., Any]:
    """The model under ``torch.compile``, with integer kernels as far as Inductor has them.

    For use in this process; `Inductor.build` writes a file. It compiles at the first call, takes
    what the model takes, and runs without gradients.

    Args:
        model: a quantized model, which does not change, or a program with Q/DQ.
        dynamic: sizes may differ from call to call; ``None``: if they may in the program.
        device: where it runs.

    Raises:
        MissingDependencyError: there is no C++ compiler.
        ExportError: as ``quantkit.program.writing.to_program``.
        TargetError: the program cannot be captured again.
    """
    from quantkit.model import QuantizedModel
    from quantkit.program.writing import to_program
    from quantkit.targets._inductor_jit import Compiled
    from quantkit.targets._inductor_process import require_compiler

    require_compiler()
    program = to_program(model) if isinstance(model, QuantizedModel) else model
    return Compiled.of(program, dynamic=dynamic, device=device)


def _built(inspection: Inspection, model: Path) -> bytes:
    """The package of a program in which nothing is wrong."""
    errors = [f for f in inspection.findings if f.severity is Severity.ERROR]
    if errors or inspection.engine is None:
        raise TargetError(f"{model.name} cannot be built by Inductor: {errors[0]}")
    return inspection.engine


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
