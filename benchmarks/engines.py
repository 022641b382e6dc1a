"""``python -m benchmarks.engines``: TensorRT-RTX engines of every model for every GPU it names.

Each file is built for SM75, 80, 86, 89 and 120, as it is and with its float part in float16. What
is refused is told in the builder's own words. Nothing runs: that needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report, spine
from benchmarks.machine import machine
from benchmarks.run import RECIPES
from benchmarks.zoo import ALL, MINILM, BenchModel
from quantkit.interfaces import Inspection, Severity
from quantkit.onnx.export import export_onnx
from quantkit.onnx.half import to_half
from quantkit.plugins import recipe_path
from quantkit.recipe import read_recipe
from quantkit.targets.tensorrt_rtx import TensorRTRTX

RESULTS = Path(__file__).parent / "results" / "engines.json"
GPUS = ("7.5", "8.0", "8.6", "8.9", "12.0")
_PROFILE = ((1, 16), (8, 64), (32, 256))


def main() -> None:
    """Build all of them and write what became of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"machine": machine(), "engines": []}
    for model in ALL:
        if not options.only or model.name in options.only:
            results["engines"] += engines(model)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS and not options.only:
        report.write()
    print(json.dumps([row for row in results["engines"] if not row["built"]], indent=1))


def engines(model: BenchModel) -> Iterator[dict[str, Any]]:
    """One row for each file of a model and each GPU."""
    with tempfile.TemporaryDirectory() as name:
        for recipe, precision, path in files(model, Path(name)):
            for gpu in GPUS:
                print(f"{model.name} {recipe} {precision} {gpu}", file=sys.stderr, flush=True)
                row = {"model": model.name, "recipe": recipe, "rest": precision, "gpu": gpu}
                yield row | outcome(build(path, gpu, dynamic=model is MINILM))


def files(model: BenchModel, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """The float model and each recipe of it for TensorRT: in float32, and the rest in float16."""
    module = model.load()
    whole = spine.export_float(model, module, folder / "float.onnx")
    wanted = [n for n in RECIPES[model.name] if read_recipe(recipe_path(n)).target == "tensorrt"]
    for recipe in ("float", *wanted):
        path = whole
        if recipe != "float":
            path = folder / f"{recipe}.onnx"
            export_onnx(spine.quantized(model, recipe, module), path, form="tensorrt")
        yield recipe, "float32", path
        half = path.with_suffix(".half.onnx")
        batches = (inputs for inputs in model.calibration(spine.CALIBRATION_BATCH))
        to_half(path, half, data=batches)
        yield recipe, "float16", half


def build(path: Path, gpu: str, *, dynamic: bool) -> Inspection:
    """What the builder makes of a file for a GPU."""
    shapes = {"input_ids": _PROFILE, "attention_mask": _PROFILE} if dynamic else None
    return TensorRTRTX(compute_capability=gpu, shapes=shapes, progress=False).inspect(path)


def outcome(inspection: Inspection) -> dict[str, Any]:
    """Plain values of an inspection."""
    refused = [str(f) for f in inspection.findings if f.severity is Severity.ERROR]
    formats: dict[str, int] = {}
    for layer in inspection.layers:
        formats[layer.precision] = formats.get(layer.precision, 0) + 1
    return {
        "built": inspection.ok,
        "refused": refused,
        "planned": inspection.planned,
        "covered": inspection.covered,
        "layers": formats if inspection.ok else {},
        "seconds": inspection.seconds,
    }


if __name__ == "__main__":
    main()
