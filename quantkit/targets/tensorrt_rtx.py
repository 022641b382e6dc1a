"""TensorRT-RTX: NVIDIA's engine builder that works on any machine, with or without a GPU."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.errors import MissingDependencyError, ModelFileError, TargetError
from quantkit.interfaces import (
    ExportForm,
    Finding,
    Inspection,
    LayerCoverage,
    ModelFormat,
    Severity,
    Target,
)
from quantkit.spec import Scheme
from quantkit.targets._rtx_findings import refuse_errors
from quantkit.targets._shapes import Shapes, check_shapes

if TYPE_CHECKING:
    import numpy as np

    from quantkit.targets._rtx_graph import ComputeNode, GraphReader
    from quantkit.targets._rtx_layers import Kernel
    from quantkit.targets._rtx_process import Outcome

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
        timeout_s: seconds after which a build is stopped.
        progress: show a progress bar, on a terminal, when a build takes over two seconds.

    Example:
        >>> TensorRTRTX(compute_capability="SM89").compute_capability
        '8.9'
    """

    compute_capability: str = "8.6"
    shapes: Shapes | None = None
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
        found = [f for scheme in schemes for f in scheme_findings(scheme, sm)]
        return list(dict.fromkeys(found))

    def inspect(self, model: Path) -> Inspection:
        """Build an ONNX file in a child process and report how each layer runs.

        Raises:
            ModelFileError: there is no such file.
            MissingDependencyError: TensorRT-RTX is not installed.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._examine(model, Path(folder) / "engine")

    def build(self, model: Path, output: Path) -> Inspection:
        """Write the engine to ``output``, which is replaced only by a whole engine.

        Raises:
            TargetError: the model is refused, or would give wrong results.
            ModelFileError: there is no such file.
            MissingDependencyError: TensorRT-RTX is not installed.
        """
        if not output.parent.is_dir():
            raise TargetError(f"cannot write {output}: its folder does not exist; make it first")
        partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
        try:
            inspection = self._examine(model, partial)
            refuse_errors(self._label, model, inspection.findings)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        return inspection

    def run(
        self, model: Path, batches: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """The outputs of an ONNX file (built first) or of an engine file, for each batch.

        This needs an NVIDIA GPU; its code has not been run on one yet.

        Raises:
            TargetError: there is no GPU, or the model, the GPU or a batch do not fit.
        """
        import torch

        if not torch.cuda.is_available():
            raise TargetError(
                f"cannot run {model.name}: running a TensorRT-RTX engine needs an NVIDIA GPU, and "
                "PyTorch sees none; inspect and build work here, and the target onnxruntime runs "
                "the ONNX file on a CPU"
            )
        from quantkit.targets._rtx_run import run_engine

        self._require_sdk()
        import tensorrt_rtx as trt

        if model.suffix != ".onnx":
            return run_engine(trt, model, batches)
        with tempfile.TemporaryDirectory() as folder:
            engine = Path(folder) / f"{model.stem}.engine"
            self.build(model, engine)
            return run_engine(trt, engine, batches)

    @staticmethod
    def _require_sdk() -> None:
        from quantkit.targets._rtx_process import INSTALL

        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise MissingDependencyError(f"TensorRT-RTX is not installed: {INSTALL}")

    def _examine(self, model: Path, engine: Path) -> Inspection:
        from google.protobuf.message import (  # type: ignore[import-untyped]  # it has no stubs
            DecodeError,
        )

        from quantkit.targets import _rtx_findings, _rtx_graph, _rtx_reasons

        self._require_sdk()
        if not model.is_file():
            raise ModelFileError(f"no ONNX file {model}; export one with quantkit.export_onnx")
        try:
            proto, renamed = _rtx_graph.load(model)
        except DecodeError as error:
            return Inspection(
                target=self._label, findings=(_rtx_findings.unreadable(model, str(error)),)
            )
        reader = _rtx_graph.GraphReader(proto)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / "named.onnx" if renamed else None
            if named is not None:
                named.write_bytes(proto.SerializeToString())
            outcome = self._run_builder(model, named, engine)
        layers, floats = self._coverage(reader, outcome)
        errors = _rtx_findings.from_outcome(outcome, reader, model.name, self.timeout_s)
        wrong = _rtx_reasons.static_findings(reader, {finding.where for finding in errors})
        return Inspection(
            target=self._label,
            layers=tuple(layers),
            findings=(*errors, *wrong, *floats),
            seconds=outcome.seconds,
        )

    def _run_builder(self, model: Path, named: Path | None, engine: Path) -> Outcome:
        from quantkit.targets._rtx_process import Request, run_builder

        request = Request(
            model=model,
            proto=named,
            capability=self._sm,
            shapes=self.shapes or {},
            engine=engine,
        )
        return run_builder(request, timeout_s=self.timeout_s, progress=self.progress)

    def _coverage(
        self, reader: GraphReader, outcome: Outcome
    ) -> tuple[list[LayerCoverage], list[Finding]]:
        """How each layer runs, and a finding for each that runs in float against the plan."""
        from quantkit.targets._rtx_layers import kernel_for, parse_layers, precision
        from quantkit.targets._rtx_reasons import why_float

        kernels = parse_layers(outcome.layers)
        layers: list[LayerCoverage] = []
        findings: list[Finding] = []
        for node in reader.compute_nodes:
            kernel = kernel_for(kernels, node.name)
            runs = "none"
            if kernel is not None:
                runs = precision(
                    kernel,
                    quantized_weight=node.quantized_weight,
                    float_weight=node.float_weight,
                )
            reason = node.reason or _why_not_quantized(node, outcome, kernel)
            if kernel is not None and node.quantized and _falls_short(node, runs):
                reason, fix = why_float(node, self._sm)
                findings.append(_runs_in_float(node, runs, reason, fix))
            layers.append(
                LayerCoverage(
                    node=node.name,
                    op_type=node.op_type,
                    quantized=node.quantized,
                    precision=runs,
                    kernel="" if kernel is None else kernel.name,
                    reason=reason,
                )
            )
        return layers, findings


def _why_not_quantized(node: ComputeNode, outcome: Outcome, kernel: Kernel | None) -> str:
    if not outcome.built:
        return "the engine was not built"
    if kernel is None:
        return "the builder removed it: its result is constant or unused"
    return "" if node.quantized else "not quantized in the file"


def _runs_in_float(node: ComputeNode, precision: str, reason: str, fix: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        code="runs-in-float",
        where=node.name,
        why=f"The file wants it in low precision, but it runs in {precision}: {reason}.",
        fix=fix,
    )


def _falls_short(node: ComputeNode, precision: str) -> bool:
    """Whether a layer runs in float, or reads activations in float that the file quantizes."""
    if precision.endswith(" weights"):
        return node.left.dequantize is not None or node.left.behind
    return precision.startswith(("float", "bfloat"))
