"""Torch-TensorRT: TensorRT's engines inside a PyTorch program, which runs what they do not take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import TargetError
from quantkit.hardware import Runtime, compute_capability
from quantkit.interfaces import ExportForm, Finding, Inspection, ModelFormat, Target
from quantkit.spec import Scheme
from quantkit.targets._shapes import Shapes, check_shapes
from quantkit.targets._tensorrt_gpu import this_gpu
from quantkit.targets._torch_tensorrt_options import check_names, operator_names

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from torch.export import ExportedProgram

    from quantkit.model import QuantizedModel
    from quantkit.targets._torch_tensorrt_partition import Partition

#: Where neither a GPU is named nor one is here: what no GPU has is refused still.
_NEWEST = (12, 1)
_NOT_OPTIONS = frozenset({"compute_capability", "shapes", "options", "trust_engine"})


@dataclass(frozen=True, kw_only=True)
class TorchTensorRT(Target):
    """Compiles programs with Torch-TensorRT 2.13, on the GPU that they are to run on.

    Its parts that need a GPU have not been run on one yet.

    Attributes:
        compute_capability: of the GPU that programs are for, such as ``8.6``, to refuse what it
            lacks; by default this machine's. An engine is always built for this machine's.
        shapes: of inputs with dynamic dimensions, the smallest, best and largest shape. Default: a
            first dimension of 1, 8, 32; other dimensions of 64, 224, 512 in tensors of rank 4 or
            more, and of 1, 128, 512 in smaller ones; within what the program allows.
        min_block_size: how many operators TensorRT must be able to take in a row to make an engine
            of them; fewer stay in PyTorch.
        torch_executed_ops: operators that PyTorch is to run, such as ``aten.gelu``.
        require_full_compilation: refuse a program of which PyTorch would have to run anything.
        optimization_level: from 0 (built fast) to 5 (built slowly); TensorRT's default is 3.
        workspace_size: the most GPU memory that one layer may use, in bytes; 0 for all of it.
        hardware_compatible: engines may run on other GPUs, from Ampere on.
        version_compatible: later versions of TensorRT may load the engines.
        immutable_weights: weights cannot be exchanged once the engine is built.
        options: any other of ``torch_tensorrt.dynamo.CompilationSettings``, by name.
        trust_engine: load compiled files that no record says were built here. Loading one runs
            what is in it.

    Example:
        >>> TorchTensorRT(min_block_size=1, options={"use_fp32_accc": True})
        Traceback (most recent call last):
        ValueError: Torch-TensorRT has no option 'use_fp32_accc' and would ignore it; did you mean
        'use_fp32_acc'?
    """

    compute_capability: str | None = None
    shapes: Shapes | None = None
    min_block_size: int = 5
    torch_executed_ops: tuple[str, ...] = ()
    require_full_compilation: bool = False
    optimization_level: int | None = None
    workspace_size: int = 0
    hardware_compatible: bool = False
    version_compatible: bool = False
    immutable_weights: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    trust_engine: bool = False

    def __post_init__(self) -> None:
        check_shapes(self.shapes)
        if self.compute_capability is not None:
            compute_capability(self.compute_capability)
        if self.min_block_size < 1:
            raise ValueError(f"min_block_size must be 1 or more, got {self.min_block_size}")
        if self.optimization_level not in (None, *range(6)):
            raise ValueError(
                f"optimization_level must be from 0 to 5, got {self.optimization_level}"
            )
        if self.workspace_size < 0:
            raise ValueError(f"workspace_size must be 0 or more bytes, got {self.workspace_size}")
        executed = operator_names(self.torch_executed_ops)
        if executed and self.require_full_compilation:
            raise ValueError(
                "torch_executed_ops leaves operators to PyTorch, which require_full_compilation "
                "forbids; set one of them"
            )
        check_names(self.options, own=[f.name for f in fields(self)])

    @property
    def reads(self) -> ModelFormat:
        """Programs of ``torch.export``."""
        return "pt2"

    @property
    def form(self) -> ExportForm:
        """Symmetric int8 with zero-point 0."""
        return "tensorrt"

    @property
    def settings(self) -> dict[str, Any]:
        """What is passed on, by the names that Torch-TensorRT has.

        Example:
            >>> TorchTensorRT(min_block_size=1).settings["min_block_size"]
            1
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_OPTIONS}
        own["torch_executed_ops"] = set(operator_names(self.torch_executed_ops))
        return {**own, **self.options}

    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What TensorRT would refuse, or quietly run in float, of these schemes.

        Example:
            >>> from quantkit.spec import QuantSpec
            >>> wrong = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec(symmetric=False))
            >>> [finding.code for finding in TorchTensorRT().refusals([wrong])]
            ['asymmetric']
        """
        from quantkit.targets._rtx_schemes import scheme_findings

        major, minor = self._capability() or _NEWEST
        runtime, number = Runtime.TORCH_TENSORRT, major * 10 + minor
        found = [f for scheme in schemes for f in scheme_findings(scheme, number, runtime)]
        return list(dict.fromkeys(found))

    def partition(self, model: Path) -> Partition:
        """Which operators of a program become engines: a dry run, or else quantkit's own rules.

        Raises:
            ModelFileError: the file is no program.
            TargetError: the dry run fails.
        """
        return self._partition(model)[0]

    def inspect(self, model: Path) -> Inspection:
        """Tell how a program would be shared out between engines and PyTorch; nothing is built.

        With Torch-TensorRT and a GPU this is its own dry run; else quantkit's rules speak, which
        know its operators by name. ``Inspection.target`` tells which of both it was. Which kernels
        TensorRT would take for a layer in an engine neither can tell.

        Raises:
            ModelFileError: the file is no program.
        """
        from quantkit.targets._torch_tensorrt_shares import failed

        started = time.perf_counter()
        try:
            partition, label, findings = self._partition(model)
        except TargetError as error:
            return Inspection(target="torch_tensorrt", findings=(failed(model, str(error)),))
        return Inspection(
            target=label,
            layers=tuple(partition.layers()),
            findings=(*findings, *partition.findings()),
            seconds=time.perf_counter() - started,
        )

    def build(self, model: Path, output: Path) -> Inspection:
        """Compile a program ahead of time, and write it with its engines to ``output``.

        ``torch.export.load`` reads the file after ``import torch_tensorrt``; it runs on GPUs like
        this one.

        Raises:
            MissingDependencyError: Torch-TensorRT is not installed, or does not go with PyTorch.
            ModelFileError: the file is no program.
            TargetError: there is no GPU, or it cannot be compiled, or nothing of it.
            ExportError: ``output`` cannot be written.
        """
        from quantkit.targets import _torch_tensorrt_files as files
        from quantkit.targets._torch_tensorrt_sdk import load

        sdk, started = load(), time.perf_counter()
        program = self._prepared(files.read_program(model))
        compiled, partition = self._compile(sdk, program)
        findings = files.save(sdk, compiled, output)
        return Inspection(
            target=f"torch_tensorrt {sdk.__version__}",
            layers=tuple(partition.layers()),
            findings=(*findings, *partition.findings()),
            seconds=time.perf_counter() - started,
        )

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs of a program (compiled first) or of a compiled one, for each batch.

        This needs an NVIDIA GPU.

        Raises:
            MissingDependencyError: Torch-TensorRT is not installed, or does not go with PyTorch.
            ModelFileError: the file is no program.
            TargetError: there is no GPU, or a compiled program was not built here and is not
                trusted, or a batch does not fit.
        """
        from quantkit.targets import _torch_tensorrt_files as files
        from quantkit.targets._torch_tensorrt_sdk import load

        sdk = load()
        if files.holds_engines(model):
            program = files.load_compiled(model, trusted=self.trust_engine)
            call: Any = program.module(check_guards=False)
        else:
            program = self._prepared(files.read_program(model))
            call, _ = self._compile(sdk, program)
        spec = program.call_spec.in_spec
        return files.run_batches(call, files.input_names(program), batches, spec)

    def compiled(self, model: QuantizedModel) -> nn.Module:
        """A calibrated model for this GPU, compiled by ``torch.compile`` when it is first called.

        Inputs of another shape may compile it again; `compiled_ahead` takes ``shapes`` instead.

        Raises:
            MissingDependencyError: Torch-TensorRT is not installed, or does not go with PyTorch.
            ExportError: the model is not calibrated.
            TargetError: there is no GPU, or ``torch.compile`` would ignore an option.
        """
        from quantkit.targets._torch_tensorrt_compile import JustInTime
        from quantkit.targets._torch_tensorrt_sdk import check_settings, load

        if self.require_full_compilation or self.shapes:
            name = "shapes" if self.shapes else "require_full_compilation"
            raise TargetError(f"torch.compile would ignore {name}; use compiled_ahead")
        check_settings(load(), self.settings)
        return JustInTime(model, self.settings)

    def compiled_ahead(self, model: QuantizedModel) -> nn.Module:
        """A calibrated model for this GPU, compiled now, for all sizes that ``shapes`` allows.

        Raises:
            MissingDependencyError: Torch-TensorRT is not installed, or does not go with PyTorch.
            ExportError: the model is not calibrated.
            TargetError: there is no GPU, or it cannot be compiled, or nothing of it.
        """
        from quantkit.targets._torch_tensorrt_program import program_of
        from quantkit.targets._torch_tensorrt_sdk import load

        sdk = load()
        module: nn.Module = self._compile(sdk, self._prepared(program_of(model)))[0]
        return module

    def _partition(self, model: Path) -> tuple[Partition, str, list[Finding]]:
        from quantkit.targets._torch_tensorrt_files import read_program
        from quantkit.targets._torch_tensorrt_shares import share_out

        return share_out(read_program(model), self.settings, self._prepared)

    def _prepared(self, program: ExportedProgram) -> ExportedProgram:
        """A program of the sizes wanted, with the operator in it, on the GPU."""
        from quantkit.targets._torch_tensorrt_files import on_gpu, sized
        from quantkit.targets._torch_tensorrt_program import with_operators

        program = sized(program, self.shapes or {})
        with_operators(program)
        return on_gpu(program)

    def _compile(self, sdk: Any, program: ExportedProgram) -> tuple[Any, Partition]:
        """The compiled program, and how it was shared out."""
        from quantkit.targets._torch_tensorrt_dryrun import compile_program, dry_run
        from quantkit.targets._torch_tensorrt_sdk import check_settings

        check_settings(sdk, self.settings)
        partition = dry_run(sdk, program, self.settings)
        if not partition.engines:
            raise TargetError(f"nothing to compile: {partition.findings()[-1]}")
        return compile_program(sdk, program, self.settings), partition

    def _capability(self) -> tuple[int, int] | None:
        """Of the GPU that is named, else of this machine's, else ``None``."""
        named = self.compute_capability
        return this_gpu() if named is None else compute_capability(named)
