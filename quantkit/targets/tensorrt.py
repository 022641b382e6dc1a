"""TensorRT 8.5 to 11: engines for this machine's GPU, from Q/DQ or by TensorRT's calibrator."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.hardware import compute_capability, runtime_of
from quantkit.interfaces import (
    EngineCalibrator,
    ExportForm,
    Finding,
    Inspection,
    ModelFormat,
    Severity,
    Target,
)
from quantkit.spec import Scheme
from quantkit.targets import _tensorrt_gpu
from quantkit.targets._shapes import Shapes, check_shapes
from quantkit.tensorrt.buffers import BUFFER_KINDS, BufferKind
from quantkit.tensorrt.settings import BuildOptions, HardwareCompatibility

if TYPE_CHECKING:
    import numpy as np

    from quantkit.targets._engine_run import EngineRunner
    from quantkit.targets._engine_source import Source
    from quantkit.targets._tensorrt_build import Job
    from quantkit.targets._tensorrt_calibration import Calibration
    from quantkit.tensorrt.sdk import Sdk

#: Where neither a GPU is named nor one is here: what no GPU has is refused still.
_NEWEST = (12, 1)


@dataclass(frozen=True, kw_only=True)
class TensorRT(Target):
    """Builds engines with NVIDIA's ``tensorrt``, on the GPU that they are to run on.

    A file with Q/DQ is built as it is written. A float file is calibrated by TensorRT itself
    (before version 11) where ``calibrator`` is set, and built in float where not. Every build runs
    in a child process, which owns the GPU's memory; data for a calibrator is read in this one.

    Attributes:
        compute_capability: of the GPU that engines are for, such as ``8.6``, to refuse what it
            lacks; by default this machine's. An engine is always built for this machine's.
        shapes: of inputs with dynamic dimensions, the smallest, best and largest shape: one
            optimization profile. Default: a first dimension of 1, 8, 32; other dimensions of 64,
            224, 512 in tensors of rank 4 or more, and of 1, 128, 512 in smaller ones.
        calibrator: such as ``TensorRTEntropy2()``, for float files.
        data: what it is calibrated with: a ``DataSpec``, or any iterable of batches. The first
            batch sets the size of all where the model does not; samples that fill no batch at the
            end are left out.
        cache: file of the ranges found: used if it is there (and was made for this very model),
            else written.
        trust_cache: use a cache whatever it was made for.
        buffers: who allocates GPU memory for the data: ``torch``, or ``pycuda`` in PyTorch's
            context.
        workspace: the most GPU memory that one layer may use, in bytes; all of it by default.
        optimization_level: from 0 (built fast) to 5 (built slowly); TensorRT's default is 3.
        version_compatible: later versions of TensorRT may load the engine. It holds code for the
            host then, which is allowed to run only by a target with this option.
        hardware_compatible: other GPUs may run it: ``ampere_plus``, ``same_compute_capability``.
        timing_cache: file of the kernels' timings: read if it is there, and written, so that
            later builds of like layers are faster.
        engine_cache: folder of engines: one that was built before from the same file, with the
            same options, version and GPU, is taken from there.
        trust_engine: load engine files that no record says were built here. Loading an engine
            runs what is in it.
        cuda_graph: run each shape of the inputs as one CUDA graph.
        timeout_s: seconds after which a build is stopped, its calibration included.
        progress: show a progress bar, on a terminal, when a build takes over two seconds.

    Example:
        >>> TensorRT(shapes={"x": ((1, 3), (8, 3), (32, 3))}, workspace=1 << 30).form
        'tensorrt'
    """

    compute_capability: str | None = None
    shapes: Shapes | None = None
    calibrator: EngineCalibrator | None = None
    data: object | None = field(default=None, repr=False, compare=False)
    cache: Path | None = None
    trust_cache: bool = False
    buffers: BufferKind = "torch"
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility | None = None
    timing_cache: Path | None = None
    engine_cache: Path | None = None
    trust_engine: bool = False
    cuda_graph: bool = False
    timeout_s: float = 3600.0
    progress: bool = True

    def __post_init__(self) -> None:
        check_shapes(self.shapes)
        if self.compute_capability is not None:
            compute_capability(self.compute_capability)
        if self.buffers not in BUFFER_KINDS:
            raise ValueError(f"buffers must be {' or '.join(BUFFER_KINDS)}, got {self.buffers!r}")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be more than 0, got {self.timeout_s}")
        if self.calibrator is None:
            given = [name for name in ("data", "cache") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)} given, and no calibrator; name one")
        elif self.data is None and self.cache is None:
            raise ValueError("a calibrator needs data, or a cache that was made from it")
        _ = self._options  # raises for a value that it cannot be

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """Symmetric int8 with zero-point 0."""
        return "tensorrt"

    @property
    def _options(self) -> BuildOptions:
        return BuildOptions(
            workspace=self.workspace,
            optimization_level=self.optimization_level,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
        )

    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What it would refuse, or quietly run in float, of these schemes.

        The rules were found with TensorRT-RTX, which has the same parser.

        Example:
            >>> from quantkit.spec import QuantSpec
            >>> wrong = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec(symmetric=False))
            >>> [finding.code for finding in TensorRT().refusals([wrong])]
            ['asymmetric']
        """
        from quantkit.targets._rtx_schemes import scheme_findings

        major, minor = self._capability() or _NEWEST
        runtime = runtime_of("tensorrt")
        found = [
            f for scheme in schemes for f in scheme_findings(scheme, major * 10 + minor, runtime)
        ]
        return list(dict.fromkeys(found))

    def inspect(self, model: Path) -> Inspection:
        """Build a file, and tell how each layer runs; one for a calibrator is parsed alone.

        Without TensorRT or a GPU only the linter speaks, which is a finding of its own.

        Raises:
            ModelFileError: there is no such file.
        """
        from quantkit.onnx.lint import lint
        from quantkit.targets import _tensorrt_findings
        from quantkit.targets._engine_source import read_source

        source = read_source(model)
        if isinstance(source, Finding):
            return Inspection(target="tensorrt", findings=(source,))
        calibrated = self.calibrator is not None
        known = [*_tensorrt_findings.route(source, calibrated=calibrated)]
        known += lint(model, "tensorrt")
        label = "tensorrt"
        try:
            sdk = self._sdk()
            label = sdk.label
            with tempfile.TemporaryDirectory() as folder:
                engine = None if calibrated else Path(folder) / "engine"
                inspection = self._job(sdk, source).examined(engine)
        except (MissingDependencyError, TargetError) as error:
            known.append(_tensorrt_findings.not_parsed(model, str(error)))
            return Inspection(target=label, findings=tuple(known))
        told = inspection.findings
        refused = {finding.where for finding in told if finding.severity is Severity.ERROR}
        findings = (*told, *(f for f in known if f.where not in refused))
        return replace(inspection, findings=findings)

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the engine to ``output``, its record beside it, and what else was asked for.

        Files are replaced only by whole ones. A calibration cache that was made for another model
        is refused before anything is built; an error in the data ends the build, and no engine is
        written.

        Raises:
            TargetError: the model is refused, there is no GPU, or this TensorRT has not what is
                asked for.
            ModelFileError: there is no such file, or its calibration cache is refused.
            DataError: the calibration data does not fit the model.
            MissingDependencyError: TensorRT or PyCUDA is not installed.
        """
        from quantkit.targets import _engine_files, _rtx_findings
        from quantkit.targets._tensorrt_build import accepted
        from quantkit.targets._tensorrt_calibration import Calibration
        from quantkit.targets._tensorrt_order import order

        for file in (output, self.timing_cache):
            _engine_files.require_folder(file)
        source, known = accepted(model, calibrated=self.calibrator is not None)
        calibration = Calibration.opened(
            self.calibrator,
            model,
            self.data,
            self.cache,
            trusted=self.trust_cache,
            buffers=self.buffers,
        )
        job = self._job(self._sdk(), source, calibration)

        def make(engine: Path) -> tuple[Inspection, str]:
            inspection = job.examined(engine)
            _rtx_findings.refuse_errors(job.sdk.label, model, inspection.findings)
            return inspection, job.sdk.label

        wanted, notes = order(job, output, self.engine_cache, trusted=self.trust_engine)
        built = _engine_files.deliver(wanted, make)
        return replace(built, findings=(*known, *built.findings, *notes))

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs of an ONNX file (built first) or of an engine file, for each batch.

        This needs an NVIDIA GPU; its code has not been run on one yet.

        Raises:
            TargetError: there is no GPU, the engine was not built here and is not trusted, or the
                model or a batch do not fit.
        """
        with self.runner(model) as runner:
            return [runner.arrays(batch) for batch in batches]

    def runner(self, model: Path) -> EngineRunner:
        """What runs an ONNX file (built first) or an engine file on PyTorch's CUDA tensors.

        Raises:
            TargetError: there is no GPU, or the engine was not built here and is not trusted.
        """
        from quantkit.targets._engine_run import EngineRunner
        from quantkit.tensorrt.trust import read_trusted

        is_engine = model.suffix != ".onnx"
        data = read_trusted(model, trusted=self.trust_engine) if is_engine else b""
        _tensorrt_gpu.require_gpu(model.name)
        sdk = self._sdk()
        if not is_engine:
            with tempfile.TemporaryDirectory() as folder:
                engine = Path(folder) / f"{model.stem}.engine"
                self.build(model, engine)
                data = engine.read_bytes()
        return EngineRunner(
            sdk.trt,
            data,
            model.name,
            cuda_graph=self.cuda_graph,
            host_code=self.version_compatible,
        )

    def _job(self, sdk: Sdk, source: Source, calibration: Calibration | None = None) -> Job:
        from quantkit.targets._tensorrt_build import Job

        calibrated = self.calibrator is not None
        return Job(
            sdk=sdk,
            source=source,
            settings=sdk.settings(self._options, calibrated=calibrated, quantized=source.has_qdq),
            shapes=self.shapes or {},
            timing_cache=self.timing_cache,
            calibration=calibration,
            timeout_s=self.timeout_s,
            progress=self.progress,
        )

    def _sdk(self) -> Sdk:
        """The package, if it can do what is asked for on the GPU that is here."""
        from quantkit.tensorrt.sdk import load_sdk

        sdk = load_sdk()
        if self.calibrator is not None:
            sdk.calibrator_base(self.calibrator)
        _tensorrt_gpu.require_built_here(self._capability())
        return sdk

    def _capability(self) -> tuple[int, int] | None:
        named = self.compute_capability
        return _tensorrt_gpu.this_gpu() if named is None else compute_capability(named)
