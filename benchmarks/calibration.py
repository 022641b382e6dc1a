"""``python -m benchmarks.calibration``: what calibration costs, beside others, and what it chooses.

Memory is measured in a process of its own for each way; times that are compared are taken in turn
in one process, or in processes that run one after the other. Writes JSON, and with it the part of
docs/benchmarks.md on calibration.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quantkit
from benchmarks import report
from benchmarks.machine import machine, peak_mb
from benchmarks.spine import BATCH, CALIBRATION_BATCH, accuracy, deployed, export_float
from benchmarks.zoo import ALL, LITE0, RESNET20, BenchModel
from quantkit import numerics, plugins
from quantkit.calibrating import choose
from quantkit.interfaces import Calibrator, Chooser
from quantkit.migrating import cache_of, migrate
from quantkit.model import QuantizedModel
from quantkit.model_calibration import activations, candidates, observe, observers_of
from quantkit.onnx.export import export_onnx
from quantkit.recipe import PlugIn, Recipe, read_recipe
from quantkit.running import SAMPLES_AT_A_TIME
from quantkit.statistics import Histogram
from quantkit.tensorrt.cache import write_cache

RESULTS = Path(__file__).parent / "results" / "calibration.json"
PEERS = {RESNET20.name: 512, LITE0.name: 128}
REPEATS = 5


def main() -> None:
    """Measure what was asked for and merge it into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(PARTS), action="append")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        way, model, images = options.child
        print(json.dumps(_measured(way, _model(model), int(images))))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    for part in options.part or PARTS:
        print(part, file=sys.stderr, flush=True)
        results[part] = PARTS[part]()
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        report.write()
    print(json.dumps({k: results[k] for k in options.part or PARTS}, indent=1))


def one_pass() -> list[dict[str, Any]]:
    """All calibrators from one pass, beside min-max alone and beside a plain forward pass."""
    rows = []
    for images in (512, 5000):
        times = _child("alternating", RESNET20.name, images)
        memory = {
            way: _child(way, RESNET20.name, images)["peak_mb"]
            for way in ("forward", "minmax", "all")
        }
        rows.append({"images": images, **times, "peak_mb": memory})
    return rows


def peers() -> list[dict[str, Any]]:
    """The entropy calibrator of quantkit, by both ways in, and that of ONNX Runtime."""
    ways = ("entropy", "entropy_onnx", "onnxruntime")
    return [
        {"model": name, "images": images, **{way: _child(way, name, images) for way in ways}}
        for name, images in PEERS.items()
    ]


def best() -> dict[str, Any]:
    """SQNR at the outputs on held-out data: each calibrator alone, and the best of each tensor."""
    return {model.name: _best(model) for model in ALL}


def migrated() -> dict[str, Any]:
    """EfficientNet-Lite0 through a calibration cache that is read back, beside direct PTQ."""
    model, module = LITE0, LITE0.load()
    points = {"float": model.score(module)}
    with tempfile.TemporaryDirectory() as folder:
        path = export_float(model, module, Path(folder) / "float.onnx")
        data = list(model.calibration(CALIBRATION_BATCH))
        for calibrator in ("minmax", "entropy", "mse"):
            cache = Path(folder) / f"{calibrator}.cache"
            write_cache(cache, cache_of(path, data, calibrator=calibrator))
            recipe = _recipe("int8_ptq", calibrator)
            ways = {
                "direct": quantkit.quantize(
                    module, recipe, example_inputs=model.example(), calibration=data,
                    dynamic_shapes=model.dynamic_shapes,
                ),
                "migrated": migrate(path, cache).model,
            }  # fmt: skip
            for way, quantized in ways.items():
                file = export_onnx(quantized, Path(folder) / f"{way}.onnx", form="onnxruntime")
                points[f"{calibrator} {way}"] = model.score(deployed(file, exact=True))
    return {"model": model.name, "points": points}


def _named(names: tuple[str, ...] = ()) -> dict[str, Calibrator]:
    """Calibrators with their default settings; all that find ranges by themselves."""
    kinds = {
        name: plugins.find("calibrators", name, Calibrator)
        for name in names or plugins.names_of("calibrators", Calibrator)
    }
    return {name: kind() for name, kind in kinds.items() if not issubclass(kind, Chooser)}


def _recipe(name: str, calibrator: str) -> Recipe:
    """A recipe with another calibrator."""
    read = read_recipe(plugins.recipe_path(name))
    return read.model_copy(update={"calibrator": PlugIn(name=calibrator)})


PARTS: dict[str, Callable[[], Any]] = {
    "one_pass": one_pass,
    "peers": peers,
    "best": best,
    "migrated": migrated,
}


def _best(model: BenchModel) -> dict[str, Any]:
    module = model.load()
    qmodel = _prepared(model, module)
    named = _named()
    kept = dict.fromkeys([Histogram(), *(s for c in named.values() for s in c.statistics)])
    observe(qmodel, model.calibration(CALIBRATION_BATCH), keep=kept)
    quantizers = activations(qmodel)
    sets = {
        "calibration": list(model.calibration(BATCH)),
        "evaluation": [x for x, _ in model.evaluation(BATCH, None)],
    }
    wanted = {name: _outputs(module, inputs) for name, inputs in sets.items()}
    sqnr: dict[str, dict[str, float]] = {name: {} for name in sets}
    for calibrator, grids in zip(named, candidates(quantizers, tuple(named.values())), strict=True):
        for quantizer, qparams in zip(quantizers, grids, strict=True):
            quantizer.set_qparams(qparams)
        qmodel.simulate()
        for name, inputs in sets.items():
            sqnr[name][calibrator] = numerics.sqnr(wanted[name], _outputs(qmodel, inputs))
    start = time.perf_counter()
    chosen = quantkit.quantize(
        module, "int8_best", example_inputs=model.example(),
        calibration=model.calibration(CALIBRATION_BATCH), dynamic_shapes=model.dynamic_shapes,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    # Its grids in the same model as those of the others, which has biases as they were.
    for quantizer, other in zip(quantizers, activations(chosen), strict=True):
        quantizer.set_qparams(other.qparams)
    for name, inputs in sets.items():
        sqnr[name]["best"] = numerics.sqnr(wanted[name], _outputs(qmodel, inputs))
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(chosen, Path(folder) / "best.onnx", form="onnxruntime")
        points = accuracy(model, module, chosen, path, None)["points"]
    return {
        "sqnr_db": sqnr, "best_seconds": seconds, "threads": torch.get_num_threads(),
        "points": points,
    }  # fmt: skip


def _outputs(module: nn.Module, inputs: list[tuple[Tensor, ...]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([module(*x) for x in inputs])


def _measured(way: str, model: BenchModel, images: int) -> dict[str, Any]:
    """One way of calibrating in this process: seconds, and the peak of its memory."""
    torch.set_num_threads(2)
    before, seconds = WAYS[way](model, images)
    return {**seconds, "before_mb": before, "peak_mb": peak_mb()}


def _forward(model: BenchModel, images: int) -> tuple[float, dict[str, Any]]:
    module, batches = model.load(), list(_batches(model, images))
    before = peak_mb()
    start = time.perf_counter()
    with torch.inference_mode():
        for (x,) in batches:
            for part in x.split(SAMPLES_AT_A_TIME):
                module(part)
    return before, {"seconds": time.perf_counter() - start}


def _ours(*names: str) -> Callable[[BenchModel, int], tuple[float, dict[str, Any]]]:
    def measure(model: BenchModel, images: int) -> tuple[float, dict[str, Any]]:
        module, batches = model.load(), list(_batches(model, images))
        before = peak_mb()
        qmodel = _prepared(model, module)
        return before, {"seconds": _calibrate(qmodel, batches, names)}

    return measure


def _alternating(model: BenchModel, images: int) -> tuple[float, dict[str, Any]]:
    """Min-max alone and all calibrators, in turn; the ratio of each pair, and its spread."""
    module, batches = model.load(), list(_batches(model, images))
    before, everything = peak_mb(), tuple(_named())
    pairs = []
    for _ in range(REPEATS + 1):
        one = _calibrate(_prepared(model, module), batches, ("minmax",))
        pairs.append((one, _calibrate(_prepared(model, module), batches, everything)))
    pairs = pairs[1:]  # the first runs cold
    ratios = sorted(b / a for a, b in pairs)
    return before, {
        "calibrators": everything,
        "minmax_s": statistics.median(a for a, _ in pairs),
        "all_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios), "ratios": [ratios[0], ratios[-1]],
    }  # fmt: skip


def _calibrate(
    qmodel: QuantizedModel, batches: list[tuple[Tensor, ...]], names: tuple[str, ...]
) -> float:
    """Seconds of one pass and of every calibrator's search."""
    named = _named(names)
    kept = dict.fromkeys(s for c in named.values() for s in c.statistics)
    start = time.perf_counter()
    observe(qmodel, batches, keep=kept)
    for calibrator in named.values():
        choose(observers_of(activations(qmodel)), calibrator)
    return time.perf_counter() - start


def _ours_onnx(model: BenchModel, images: int) -> tuple[float, dict[str, Any]]:
    from quantkit.workflow_onnx import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        path, batches = _float_file(model, Path(folder)), list(_batches(model, images))
        before = peak_mb()
        start = time.perf_counter()
        quantize_onnx(path, "int8_entropy", calibration=batches)
        return before, {"seconds": time.perf_counter() - start}


def _onnxruntime(model: BenchModel, images: int) -> tuple[float, dict[str, Any]]:
    """ONNX Runtime's own, as ``quantize_static`` runs it: the calibration alone."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Iterator[dict[str, np.ndarray[Any, Any]]]) -> None:
            self.feeds = feeds

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        path, batches = _float_file(model, Path(folder)), list(_batches(model, images))
        parts = (p for (x,) in batches for p in x.split(SAMPLES_AT_A_TIME))
        before = peak_mb()
        start = time.perf_counter()
        calibrator = create_calibrator(
            path, calibrate_method=CalibrationMethod.Entropy,
            augmented_model_path=str(path.with_suffix(".augmented.onnx")),
        )  # fmt: skip
        calibrator.collect_data(Reader({"x": part.numpy()} for part in parts))
        calibrator.compute_data()
        return before, {"seconds": time.perf_counter() - start}


WAYS: dict[str, Callable[[BenchModel, int], tuple[float, dict[str, Any]]]] = {
    "forward": _forward,
    "minmax": _ours("minmax"),
    "all": _ours(),
    "alternating": _alternating,
    "entropy": _ours("entropy"),
    "entropy_onnx": _ours_onnx,
    "onnxruntime": _onnxruntime,
}


def _prepared(model: BenchModel, module: nn.Module) -> QuantizedModel:
    return quantkit.prepare(
        module, "int8_ptq", example_inputs=model.example(), dynamic_shapes=model.dynamic_shapes
    )


def _float_file(model: BenchModel, folder: Path) -> Path:
    return export_float(model, model.load(), folder / f"{model.name}.onnx")


def _batches(model: BenchModel, images: int) -> Iterator[tuple[Tensor, ...]]:
    """So many calibration images, over and over those that there are."""
    whole = torch.cat([x for (x,) in model.calibration(CALIBRATION_BATCH)])
    rounds = math.ceil(images / len(whole))
    for part in whole.repeat(rounds, 1, 1, 1)[:images].split(CALIBRATION_BATCH):
        yield (part,)


def _model(name: str) -> BenchModel:
    return next(model for model in ALL if model.name == name)


def _child(way: str, model: str, images: int) -> dict[str, Any]:
    """In a process of its own, with nothing else in its memory."""
    command = [sys.executable, "-m", "benchmarks.calibration", "--child", way, model, str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


if __name__ == "__main__":
    main()
