"""TensorRT-RTX: NVIDIA's engine builder that works on any machine, with or without a GPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantkit.errors import MissingDependencyError, TargetError
from quantkit.hardware import Runtime
from quantkit.interfaces import ExportForm, Finding, Inspection, ModelFormat, Target
from quantkit.spec import Scheme
from quantkit.targets._shapes import Shapes, check_shapes

if TYPE_CHECKING:
    import numpy as np

    from quantkit.targets._engine_layers import Kernel
    from quantkit.targets._engine_process import Outcome
    from quantkit.targets._engine_source import Source

INSTALL: Final = 'pip install "quantkit[rtx]"'

#: Members of ``tensorrt_rtx.ComputeCapability`` (1.7.1): there is none for 9.0 and 10.0.
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True, kw_only=True)
class TensorRTRTX(Target):
    """Builds engines with TensorRT-RTX and reads from the builder what runs in low precision.

    Every build runs in a child process: a few networks crash the builder. Int8 kernels were seen
    in what the builder makes; how fast they run on a GPU has not been measured.

    Attributes:
        compute_capability: of the GPU to build for: ``8.6``, ``86`` or ``SM86``.
        shapes: of inputs with dynamic dimensions, the smallest, best and largest shape. Default:
            a first dimension of 1, 8, 32; other dimensions of 64, 224, 512 in tensors of rank 4
            or more, and of 1, 128, 512 in smaller ones.
        trust_engine: run engine files that no record says were built here. Loading an engine runs
            what is in it.
        timeout_s: seconds after which a build is stopped.
        progress: show a progress bar, on a terminal, when a build takes over two seconds.

    Example:
        >>> TensorRTRTX(compute_capability="SM89").compute_capability
        '8.9'
    """

    compute_capability: str = "8.6"
    shapes: Shapes | None = None
    trust_engine: bool = False
    timeout_s: float = 600.0
    progress: bool = True

    def __post_init__(self) -> None:
        digits = self.compute_capability.upper().removeprefix("SM").replace(".", "")
        known = {name.replace(".", ""): name for name in CAPABILITIES}
        if digits not in known:
            raise ValueError(
                f"compute_capability {self.compute_capability!r} is no target of TensorRT-RTX; "
                f"choose one of {', '.join(CAPABILITIES)}"
            )
        object.__setattr__(self, "compute_capability", known[digits])
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be more than 0, got {self.timeout_s}")
        check_shapes(self.shapes)

    @property
    def reads(self) -> ModelFormat:
        """ONNX."""
        return "onnx"

    @property
    def form(self) -> ExportForm:
        """Symmetric int8 with zero-point 0."""
        return "tensorrt"

    @property
    def _sm(self) -> str:
        return "SM" + self.compute_capability.replace(".", "")

    @property
    def _label(self) -> str:
        return f"tensorrt_rtx ({self._sm})"

    def refusals(self, schemes: Iterable[Scheme]) -> list[Finding]:
        """What it would refuse, or quietly run in float, of these schemes.

        Example:
            >>> from quantkit.spec import QuantSpec
            >>> wrong = Scheme(weights=QuantSpec(axis=0), activations=QuantSpec(symmetric=False))
            >>> [finding.code for finding in TensorRTRTX().refusals([wrong])]
            ['asymmetric']
        """
        from quantkit.targets._rtx_schemes import scheme_findings

        sm = int(self.compute_capability.replace(".", ""))
        rtx = Runtime.TENSORRT_RTX
        found = [f for scheme in schemes for f in scheme_findings(scheme, sm, rtx)]
        return list(dict.fromkeys(found))

    def inspect(self, model: Path) -> Inspection:
        """Build an ONNX file in a child process and report how each layer runs.

        Raises:
            ModelFileError: there is no such file.
            MissingDependencyError: TensorRT-RTX is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._examine(model, Path(folder) / "engine")[0]

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the engine to ``output``, which is replaced only by a whole one, and its record.

        Raises:
            TargetError: the model is refused, or would give wrong results.
            ModelFileError: there is no such file.
            MissingDependencyError: TensorRT-RTX is not installed.
        """
        from quantkit.targets._engine_files import Order, deliver, require_folder
        from quantkit.targets._rtx_findings import refuse_errors

        require_folder(output)

        def make(engine: Path) -> tuple[Inspection, str]:
            inspection, version = self._examine(model, engine)
            refuse_errors(self._label, model, inspection.findings)
            return inspection, f"tensorrt_rtx {version}"

        self._require_sdk()
        options = {"shapes": dict(self.shapes or {})}
        order = Order(model=model, output=output, gpu=self._sm, options=options)
        return deliver(order, make)

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs of an ONNX file (built first) or of an engine file, for each batch.

        This needs an NVIDIA GPU; its code has not been run on one yet.

        Raises:
            TargetError: there is no GPU, the engine was not built here and is not trusted, or the
                model, the GPU or a batch do not fit.
        """
        from quantkit.targets._engine_run import run_engine
        from quantkit.targets._tensorrt_gpu import require_gpu
        from quantkit.tensorrt.trust import read_trusted

        is_engine = model.suffix != ".onnx"
        data = read_trusted(model, trusted=self.trust_engine) if is_engine else b""
        require_gpu(model.name)
        self._require_sdk()
        import tensorrt_rtx as trt

        if not is_engine:
            with tempfile.TemporaryDirectory() as folder:
                engine = Path(folder) / f"{model.stem}.engine"
                self.build(model, engine)
                data = engine.read_bytes()
        return run_engine(trt, data, model.name, batches)

    def kernels(self, model: Path) -> tuple[Kernel, ...]:
        """The kernels of the engine that an ONNX file becomes, in the order in which they run.

        Raises:
            TargetError: the file is refused.
            ModelFileError: there is no such file.
            MissingDependencyError: TensorRT-RTX is not installed.
        """
        from quantkit.targets import _rtx_layers
        from quantkit.targets._engine_source import read_source

        self._require_sdk()
        source = read_source(model)
        if isinstance(source, Finding):
            raise TargetError(f"{model.name} cannot be built by TensorRT-RTX: {source}")
        with tempfile.TemporaryDirectory() as folder:
            outcome = self._built(source, Path(folder) / "engine")
        if not outcome.built:
            raise TargetError(
                f"TensorRT-RTX builds no engine of {model.name}; `quantkit check` tells why"
            )
        return _rtx_layers.parse_layers(outcome.layers)

    @staticmethod
    def _require_sdk() -> None:
        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise MissingDependencyError(f"TensorRT-RTX is not installed: {INSTALL}")

    def _examine(self, model: Path, engine: Path) -> tuple[Inspection, str]:
        """What became of a build, and the version of the SDK."""
        from quantkit.targets import _rtx_findings, _rtx_layers, _rtx_reasons
        from quantkit.targets._engine_coverage import coverage
        from quantkit.targets._engine_source import read_source

        self._require_sdk()
        source = read_source(model)
        if isinstance(source, Finding):
            return Inspection(target=self._label, findings=(source,)), ""
        outcome = self._built(source, engine)
        layers, floats = coverage(
            source.reader,
            _rtx_layers.parse_layers(outcome.layers),
            built=outcome.built,
            own=lambda node: _rtx_reasons.by_operator(node, self._sm),
        )
        errors = _rtx_findings.from_outcome(outcome, source.reader, model.name, self.timeout_s)
        wrong = _rtx_reasons.static_findings(source.reader, {finding.where for finding in errors})
        inspection = Inspection(
            target=self._label,
            layers=layers,
            findings=(*errors, *wrong, *floats),
            seconds=outcome.seconds,
        )
        return inspection, outcome.version

    def _built(self, source: Source, engine: Path) -> Outcome:
        from quantkit.targets._engine_process import Builder, run_builder
        from quantkit.targets._engine_request import Request
        from quantkit.tensorrt.settings import DETAILED, Settings

        builder = Builder(
            module="tensorrt_rtx",
            title=f"TensorRT-RTX {self._sm}",
            product="TensorRT-RTX",
            install=INSTALL,
        )
        with source.named() as named:
            request = Request(
                model=source.path,
                proto=named,
                engine=engine,
                # Without a target the builder does not check what the GPU has, and fp8 builds for
                # anything.
                settings=Settings(choices=DETAILED, compute_capability=self._sm),
                shapes=self.shapes or {},
            )
            return run_builder(builder, request, timeout_s=self.timeout_s, progress=self.progress)
