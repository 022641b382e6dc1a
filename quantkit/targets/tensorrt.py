"""TensorRT 8.5 to 11: engines for this machine's GPU, from Q/DQ or by TensorRT's calibrator."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import DataError, MissingDependencyError, TargetError
from quantkit.files import replacing
from quantkit.hardware import compute_capability
from quantkit.interfaces import (
    EngineCalibrator,
    ExportForm,
    Finding,
    Inspection,
    ModelFormat,
    Target,
)
from quantkit.spec import Scheme
from quantkit.targets._shapes import Shapes, check_shapes
from quantkit.tensorrt.buffers import BUFFER_KINDS, BufferKind

if TYPE_CHECKING:
    import numpy as np

    from quantkit.targets._tensorrt_calibration import Calibration
    from quantkit.tensorrt.sdk import Sdk

#: Seen with TensorRT-RTX, and not so with TensorRT, which has INT8 convolutions for Turing.
_RTX_ONLY = frozenset({"turing-convolutions"})
#: Where neither a GPU is named nor one is here: what no GPU has is refused still.
_NEWEST = (12, 1)


@dataclass(frozen=True, kw_only=True)
class TensorRT(Target):
    """Builds engines with NVIDIA's ``tensorrt``, on the GPU that they are to run on.

    A file with Q/DQ is built as it is written. A float file is calibrated by TensorRT itself
    (before version 11) where ``calibrator`` is set, and built in float where not.

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

    Example:
        >>> TensorRT(shapes={"x": ((1, 3), (8, 3), (32, 3))}).form
        'tensorrt'
    """

    compute_capability: str | None = None
    shapes: Shapes | None = None
    calibrator: EngineCalibrator | None = None
    data: object | None = field(default=None, repr=False, compare=False)
    cache: Path | None = None
    trust_cache: bool = False
    buffers: BufferKind = "torch"

    def __post_init__(self) -> None:
        check_shapes(self.shapes)
        if self.compute_capability is not None:
            compute_capability(self.compute_capability)
        if self.buffers not in BUFFER_KINDS:
            raise ValueError(f"buffers must be {' or '.join(BUFFER_KINDS)}, got {self.buffers!r}")
        if self.calibrator is None:
            given = [name for name in ("data", "cache") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{' and '.join(given)} given, and no calibrator; name one")
        elif self.data is None and self.cache is None:
            raise ValueError("a calibrator needs data, or a cache that was made from it")

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """Symmetric int8 with zero-point 0."""
        return "tensorrt"

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
        found = [f for scheme in schemes for f in scheme_findings(scheme, major * 10 + minor)]
        return [f for f in dict.fromkeys(found) if f.code not in _RTX_ONLY]

    def inspect(self, model: Path) -> Inspection:
        """What the linter and TensorRT's parser say of a file; nothing is built.

        Without TensorRT or a GPU the parser says nothing, which is a finding of its own.

        Raises:
            ModelFileError: there is no such file.
        """
        from quantkit.onnx.lint import lint
        from quantkit.targets import _tensorrt_findings
        from quantkit.targets._rtx_findings import from_outcome
        from quantkit.targets._tensorrt_build import parse

        reader = _tensorrt_findings.read(model)
        if isinstance(reader, Finding):
            return Inspection(target="tensorrt", findings=(reader,))
        findings = [
            *_tensorrt_findings.route(reader, model, calibrated=self.calibrator is not None),
            *lint(model, "tensorrt"),
        ]
        label = "tensorrt"
        try:
            sdk = self._sdk()
            label = sdk.label
            told = from_outcome(parse(sdk, model), reader, model.name, 0.0)
            refused = {finding.where for finding in told}
            findings = [*told, *(f for f in findings if f.where not in refused)]
            findings.append(_tensorrt_findings.not_covered(model))
        except (MissingDependencyError, TargetError) as error:
            findings.append(_tensorrt_findings.not_parsed(model, str(error)))
        return Inspection(target=label, findings=tuple(findings))

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the engine to ``output``, and the ranges that were calibrated to ``cache``.

        Both are replaced only by whole files. A cache that was made for another model is refused
        before anything is built; an error in the data is raised after the build, and no engine
        is written.

        Raises:
            TargetError: the model is refused, there is no GPU, or this TensorRT has no calibrator.
            ModelFileError: there is no such file, or its cache is refused.
            DataError: the calibration data does not fit the model.
            MissingDependencyError: TensorRT or PyCUDA is not installed.
        """
        from quantkit.targets import _rtx_findings, _tensorrt_findings
        from quantkit.targets._tensorrt_build import Request, build_engine

        if not output.parent.is_dir():
            raise TargetError(f"cannot write {output}: its folder does not exist; make it first")
        reader = _tensorrt_findings.read(model)
        route = (
            [reader]
            if isinstance(reader, Finding)
            else list(
                _tensorrt_findings.route(reader, model, calibrated=self.calibrator is not None)
            )
        )
        _rtx_findings.refuse_errors("tensorrt", model, route)
        assert not isinstance(reader, Finding)  # an unreadable file is an error, refused above
        calibration = self._calibration(model)
        sdk = self._sdk()
        request = Request(
            model=model,
            quantized=_tensorrt_findings.has_qdq(reader),
            shapes=self.shapes or {},
            calibration=calibration,
        )
        built = build_engine(sdk, request)
        errors = _rtx_findings.from_outcome(built.outcome, reader, model.name, 0.0)
        _rtx_findings.refuse_errors(sdk.label, model, errors)
        assert built.engine is not None  # no engine is an error, refused above
        with replacing(output) as temporary:
            temporary.write_bytes(built.engine)
        return Inspection(
            target=sdk.label,
            findings=(*route, *built.findings, _tensorrt_findings.not_covered(model)),
            seconds=built.outcome.seconds,
        )

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs of an ONNX file, which is built first, for each batch.

        An engine file is not taken: loading one runs what is in it, whoever made it.

        Raises:
            TargetError: there is no GPU, or the model or a batch do not fit.
        """
        import torch

        if model.suffix != ".onnx":
            raise TargetError(
                f"{model.name} is no ONNX file; give the file that the engine is built from: "
                "loading an engine runs what is in it"
            )
        if not torch.cuda.is_available():
            raise TargetError(
                f"cannot run {model.name}: running a TensorRT engine needs an NVIDIA GPU, and "
                "PyTorch sees none; the target onnxruntime runs the ONNX file on a CPU"
            )
        from quantkit.targets._rtx_run import run_engine

        with tempfile.TemporaryDirectory() as folder:
            engine = Path(folder) / f"{model.stem}.engine"
            self.build(model, engine)
            return run_engine(self._sdk().trt, engine, batches)

    def _sdk(self) -> Sdk:
        """The package, if it can do what is asked for on the GPU that is here."""
        from quantkit.tensorrt.sdk import load_sdk

        sdk = load_sdk()
        if self.calibrator is not None:
            sdk.calibrator_base(self.calibrator)
        here = _this_gpu()
        if here is not None and self._capability() != here:
            raise TargetError(
                f"TensorRT builds for the GPU of this machine, of compute capability "
                f"{here[0]}.{here[1]}, and {self.compute_capability} was asked for; build on such "
                "a machine, or use the target tensorrt_rtx"
            )
        return sdk

    def _capability(self) -> tuple[int, int] | None:
        named = self.compute_capability
        return _this_gpu() if named is None else compute_capability(named)

    def _calibration(self, model: Path) -> Calibration | None:
        """The calibrator's data and cache, checked before anything is built."""
        from quantkit.targets._tensorrt_calibration import Calibration
        from quantkit.tensorrt.fingerprint import Fingerprint
        from quantkit.tensorrt.record import CacheFile

        if self.calibrator is None:
            return None
        cache = None
        if self.cache is not None:
            cache = CacheFile(
                path=self.cache,
                fingerprint=Fingerprint.of(model),
                algorithm=self.calibrator.algorithm,
                trusted=self.trust_cache,
            )
        served = None if cache is None else cache.load()
        if self.data is None and served is None:
            raise DataError(f"{self.cache} is not there, and no data is given; give data")
        return Calibration(
            kind=self.calibrator, data=self.data, cache=cache, served=served, buffers=self.buffers
        )


def _this_gpu() -> tuple[int, int] | None:
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None
