"""Builds with TensorRT, in a child process, and reads what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quantkit import errors
from quantkit.errors import QuantkitError, TargetError
from quantkit.interfaces import Finding, Inspection, LayerCoverage
from quantkit.targets import _rtx_findings, _tensorrt_findings
from quantkit.targets._engine_coverage import coverage
from quantkit.targets._engine_layers import UNTOLD
from quantkit.targets._engine_process import Builder, Outcome, run_builder
from quantkit.targets._engine_request import Request
from quantkit.targets._engine_source import Source, read_source
from quantkit.targets._rtx_layers import parse_layers
from quantkit.targets._rtx_reasons import static_findings
from quantkit.targets._shapes import Shapes
from quantkit.targets._tensorrt_calibration import Calibrating, Calibration
from quantkit.targets._tensorrt_gpu import device
from quantkit.targets._tensorrt_layers import parse_information
from quantkit.tensorrt.sdk import INSTALL, Sdk
from quantkit.tensorrt.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be built, by what, and how long that may take.

    Attributes:
        sdk: TensorRT, as it is installed.
        source: the file.
        settings: what is set for it.
        shapes: smallest, best and largest shape of dynamic inputs.
        timing_cache: the file of measured kernels; ``None`` to keep none.
        calibration: for a float model; ``None`` for one that is built as it is.
        timeout_s: seconds after which a child process is stopped.
        progress: show a progress bar, on a terminal.
    """

    sdk: Sdk
    source: Source
    settings: Settings
    shapes: Shapes
    timing_cache: Path | None
    calibration: Calibration | None
    timeout_s: float
    progress: bool

    def examined(self, engine: Path | None) -> Inspection:
        """Build into ``engine``, or only parse without one; what came of it, with its errors.

        Raises:
            TargetError: TensorRT does not start, or has no such calibrator.
            DataError: the calibration data does not fit, as raised where it was read.
        """
        outcome, notes = self._run(engine)
        source, name = self.source, self.source.path.name
        findings = _rtx_findings.from_outcome(outcome, source.reader, name, self.timeout_s)
        findings += [*notes, *_tensorrt_findings.timing(outcome.notes)]
        layers, told = self._layers(outcome, engine)
        return Inspection(
            target=self.sdk.label,
            layers=layers,
            findings=(*findings, *told),
            seconds=outcome.seconds,
        )

    def _layers(
        self, outcome: Outcome, engine: Path | None
    ) -> tuple[tuple[LayerCoverage, ...], tuple[Finding, ...]]:
        """How each layer runs, and what is to be known of that."""
        source, calibrated = self.source, self.calibration is not None
        kernels = parse_information(outcome.information) or parse_layers(outcome.layers)
        if outcome.built and not kernels:
            why = "it was parsed, not built" if engine is None else _untold(outcome)
            return (), (_tensorrt_findings.not_covered(source.path, why),)
        layers, floats = coverage(
            source.reader, kernels, built=outcome.built, calibrated=calibrated
        )
        untold = sum(layer.precision == UNTOLD for layer in layers)
        if untold:
            why = f"of {untold} of {len(layers)} layers the engine tells no formats"
            return layers, (*floats, _tensorrt_findings.not_covered(source.path, why))
        return layers, floats

    def _run(self, engine: Path | None) -> tuple[Outcome, tuple[Finding, ...]]:
        calibration = None if engine is None else self.calibration
        builder = Builder(
            module="tensorrt",
            title=self.sdk.label,
            product="TensorRT",
            install=INSTALL,
            device=device(),
        )
        with self.source.named() as named:
            request = Request(
                model=self.source.path,
                # A calibration cache names tensors as TensorRT reads them from the file itself.
                proto=named if calibration is None else None,
                engine=engine,
                settings=self.settings,
                shapes=self.shapes,
                timing_cache=self.timing_cache,
                inspected=True,
                calibrator=None if calibration is None else calibration.calibrator,
            )
            run = partial(run_builder, builder, request, timeout_s=self.timeout_s)
            notes: tuple[Finding, ...] = ()
            if calibration is None:
                outcome = run(progress=self.progress)
            else:
                outcome, notes = self._calibrated(run, calibration)
        if not outcome.version and outcome.ended is None:
            told = f" ({outcome.errors[0]})" if outcome.errors else ""
            raise TargetError(
                f"{self.sdk.label} does not start{told}: it builds only on a machine with an "
                "NVIDIA GPU and its driver; TensorRT-RTX builds on any (--target tensorrt_rtx)"
            )
        return outcome, notes

    def _calibrated(
        self, run: Callable[..., Outcome], calibration: Calibration
    ) -> tuple[Outcome, tuple[Finding, ...]]:
        """The child asks for the data, which is read here; its own bar is that of the data."""
        ends = Calibrating(calibration, self.shapes, self.sdk.label)
        try:
            outcome = run(progress=False, answer=ends.answer)
        finally:
            ends.close()
        if outcome.failed is not None:
            raise _error(*outcome.failed)
        return outcome, ends.notes()


def _error(kind: str, why: str) -> QuantkitError:
    """An error of the child process: quantkit's own as it was, any other as one of the target."""
    own = getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, QuantkitError):
        return own(why)
    return TargetError(
        f"the data for the calibrator does not reach the GPU ({kind}: {' '.join(why.split())}); "
        "free GPU memory, or calibrate in smaller batches"
    )


def accepted(model: Path, *, calibrated: bool) -> tuple[Source, tuple[Finding, ...]]:
    """A file that nothing is known to be wrong about before it is built, and what is slow of it.

    Raises:
        ModelFileError: there is no such file.
        TargetError: something is wrong.
    """
    source = read_source(model)
    if isinstance(source, Finding):
        _rtx_findings.refuse_errors("tensorrt", model, [source])
    assert isinstance(source, Source)  # a finding is an error, raised above
    known = [*_tensorrt_findings.route(source, calibrated=calibrated)]
    known += static_findings(source.reader, ())
    _rtx_findings.refuse_errors("tensorrt", model, known)
    return source, tuple(known)


def _untold(outcome: Outcome) -> str:
    """Why there is no list of kernels for an engine that was built."""
    if outcome.ended is not None:
        return f"the child process ended while the engine was inspected ({outcome.ended})"
    return outcome.notes.get("not-inspected", "its inspector tells no layers")
