"""``python -m benchmarks.run``: measure everything, write JSON, then docs/benchmarks.md from it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from benchmarks import report, spine
from benchmarks.machine import machine
from benchmarks.zoo import ALL, LITE0, MINILM, RESNET20, BenchModel
from quantkit.onnx.export import export_onnx

RESULTS = Path(__file__).parent / "results" / "spine.json"

RECIPES: dict[str, tuple[str, ...]] = {
    RESNET20.name: ("int8_ptq", "int8_asymmetric", "int8_cpu"),
    LITE0.name: ("int8_ptq", "int8_asymmetric", "int8_cpu"),
    MINILM.name: ("int8_ptq", "int8_weight_only", "int8_cpu"),
}


def main() -> None:
    """Measure what was asked for and merge it into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--limit", type=int, help="evaluate on so many samples (a quick look)")
    parser.add_argument("--skip-cost", action="store_true")
    parser.add_argument("--cost-child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.cost_child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(spine.cost(options.cost_child, Path(folder))))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    if not options.skip_cost:
        results["cost"] = [_cost(images) for images in (512, 5000)]
    for model in ALL:
        if not options.only or model.name in options.only:
            results.setdefault("models", {})[model.name] = _model(model, options.limit)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS and options.limit is None:
        report.write()
    print(report.render(results))


def _model(model: BenchModel, limit: int | None) -> dict[str, Any]:
    module = model.load()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        float_path = spine.export_float(model, module, Path(folder) / f"{model.name}.onnx")
        for recipe in RECIPES[model.name]:
            print(f"{model.name} {recipe}", file=sys.stderr, flush=True)
            qmodel = spine.quantized(model, recipe, module)
            path = Path(folder) / f"{model.name}.{recipe}.onnx"
            export_onnx(qmodel, path, form="onnxruntime")
            row = spine.accuracy(model, module, qmodel, path, limit)
            row["megabytes"] = [p.stat().st_size / 1e6 for p in (float_path, path)]
            row["layers"] = [len(qmodel.plan.quantized), len(qmodel.plan.decisions)]
            if qmodel.recipe.target == "tensorrt":
                engine = path.with_suffix(".tensorrt.onnx")
                export_onnx(qmodel, engine, form="tensorrt")
                row["coverage"] = spine.coverage(engine)
            row["speed"] = spine.speed(model, float_path, path)
            results[recipe] = row
    return results


def _cost(images: int) -> dict[str, Any]:
    """In a process of its own, with nothing else in its memory."""
    command = [sys.executable, "-m", "benchmarks.run", "--cost-child", str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


if __name__ == "__main__":
    main()
