"""What makes one engine of TensorRT another: its key in the cache, and the facts of its record."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.interfaces import Finding
from quantkit.targets import _tensorrt_findings
from quantkit.targets._engine_files import Order
from quantkit.targets._tensorrt_build import Job
from quantkit.targets._tensorrt_gpu import gpu_name
from quantkit.tensorrt.engine_cache import EngineCache, engine_key
from quantkit.tensorrt.fingerprint import Fingerprint


def order(
    job: Job, output: Path, folder: Path | None, *, trusted: bool
) -> tuple[Order, tuple[Finding, ...]]:
    """What is wanted, and a finding where it cannot come from the cache in ``folder``.

    Args:
        job: the build.
        output: the file to write.
        folder: where engines are kept; ``None`` to keep none.
        trusted: take them from there whoever built them.

    Raises:
        ModelFileError: the weights of the file are not there.
    """
    model = job.source.path
    fingerprint, gpu, options = Fingerprint.of(model), gpu_name(), _options(job)
    plain = Order(
        model=model,
        output=output,
        gpu=gpu or "not seen by PyTorch",
        options=options,
        fingerprint=fingerprint,
    )
    if folder is None:
        return plain, ()
    why = _why_not(job, gpu)
    if why is not None:
        return plain, (_tensorrt_findings.not_cached(model, why),)
    assert gpu is not None
    cached = replace(
        plain,
        cache=EngineCache(folder=folder, trusted=trusted),
        key=engine_key(model, fingerprint, built_by=job.sdk.label, gpu=gpu, options=options),
    )
    return cached, ()


def _why_not(job: Job, gpu: str | None) -> str | None:
    if gpu is None:
        return "PyTorch sees no GPU, so engines of different ones could not be told apart"
    if job.calibration is not None and job.calibration.served is None:
        return "its ranges are not known before it is calibrated, and there is no cache of them"
    return None


def _options(job: Job) -> dict[str, Any]:
    """All that is chosen; not the timing cache, which says what is fast and not what is right."""
    options: dict[str, Any] = {"shapes": dict(job.shapes), **job.settings.plain()}
    calibration = job.calibration
    if calibration is not None:
        ranges = b"" if calibration.served is None else calibration.served
        options["calibrator"] = calibration.kind.algorithm
        options["ranges"] = hashlib.sha256(ranges).hexdigest()
    return options
