"""``quantkit calibrate --cache``: ranges of ours as a calibration cache that TensorRT 10 reads."""

from __future__ import annotations

import time
from pathlib import Path

from quantkit import __version__, plugins
from quantkit import _cli_model as models
from quantkit import _cli_onnx as onnx_files
from quantkit import _cli_work as work
from quantkit._cli_calibrate import Asked
from quantkit._cli_process import leads
from quantkit._cli_show import Screen, count, size
from quantkit.errors import DataError
from quantkit.interfaces import Calibrator, EngineCalibrator


def write(source: str, cache: Path, version: str, asked: Asked, show: Screen) -> None:
    """The command, from its options to its last line."""
    started = time.perf_counter()
    data_file = _check(source, cache, asked)
    name = next(iter(asked.calibrators), "entropy")
    plugins.find("calibrators", name, Calibrator)
    from quantkit.calibrating import Checkpoint
    from quantkit.migrating import cache_of
    from quantkit.tensorrt.cache import header_version
    from quantkit.tensorrt.fingerprint import Fingerprint
    from quantkit.tensorrt.record import CacheFile
    from quantkit.tensorrt.rows import describe

    number = header_version(version)
    model = onnx_files.load(source, None)
    data = models.open_data(data_file, model)
    checkpoint = None
    if asked.output is not None:
        checkpoint = Checkpoint(path=asked.output, every=asked.every, resume=asked.resume)
    found = cache_of(model, data, calibrator=name, version=number, checkpoint=checkpoint)
    if not leads():
        return
    file = CacheFile(path=cache, fingerprint=Fingerprint.of(model), algorithm=found.algorithm)
    file.save(
        found.format().encode(), data.batch_count,
        tensorrt=f"quantkit {__version__}", data=describe(data),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    show.json({"cache": str(cache), "header": found.header, "calibrator": name,
               "tensors": len(found.bits), "seconds": seconds,
               "output": None if asked.output is None else str(asked.output)})  # fmt: skip
    show.line(f"{count(len(found.bits), 'tensor')}, ranges by {name}, {seconds:.1f} s", "bold")
    show.line(f"Wrote {cache}: {found.header}, {size(cache.stat().st_size)}", "green")
    engine = model.with_suffix(".engine").name
    show.line(
        f"Next: quantkit build {model} -o {engine} --calibrator {_reader(found.algorithm)} "
        f"--cache {cache}", "dim", copied=True,
    )  # fmt: skip


def _check(source: str, cache: Path, asked: Asked) -> Path:
    """Refuse, before any work, what means nothing or cannot be written; the data are returned."""
    if not onnx_files.is_onnx(source):
        raise work.UsageError(
            "--cache names tensors as TensorRT reads them from a file: give the float .onnx file "
            "that it is to build as MODEL"
        )
    others = {
        "--statistics": asked.statistics, "--compare": asked.compare,
        "--pictures": asked.pictures, "--tensor": asked.tensors,
    }  # fmt: skip
    for name, value in others.items():
        if value:
            raise work.UsageError(f"--cache is a run of its own: leave {name} out")
    if len(asked.calibrators) > 1:
        raise work.UsageError("a cache holds the ranges of one calibrator: give one --calibrator")
    if asked.data is None:
        raise DataError("a cache is made from calibration data; give --data DATA.yaml")
    work.require_checkpoint("-o", asked.output, asked.data, None, asked.resume)
    for path in filter(None, (cache, asked.output)):
        work.require_writable(path)
    return asked.data


def _reader(algorithm: str) -> str:
    """The calibrator of engine builders that reads caches of this algorithm."""
    kinds = {
        name: plugins.find("calibrators", name, EngineCalibrator)()
        for name in plugins.names_of("calibrators", EngineCalibrator)
    }
    return next(name for name, kind in kinds.items() if kind.algorithm == algorithm)
