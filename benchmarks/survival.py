"""``python -m benchmarks.survival``: what each algorithm gains over its baseline, and its cost.

Every row is a recipe, quantized in a process of its own (so that its peak of memory is its own) and
deployed in ONNX Runtime in exact mode: quality in points and SQNR at the outputs against float, on
the same evaluation data; seconds and megabytes of ``quantize``. Baselines are rows like the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import report, spine
from benchmarks.machine import machine, peak_mb
from benchmarks.survival_rows import ROWS, Row
from benchmarks.zoo import ALL, BenchModel
from quantkit.onnx.export import export_onnx

RESULTS = Path(__file__).parent / "results" / "survival.json"


def main() -> None:
    """Measure the rows that are asked for and merge them into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--row", action="append", help="only rows of these names")
    parser.add_argument("--limit", type=int, help="evaluate on so many samples (a quick look)")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "ROW"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        print(json.dumps(_measure(*options.child, options.limit)))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    for model in ALL:
        if options.only and model.name not in options.only:
            continue
        rows = results.setdefault("models", {}).setdefault(model.name, {})
        for row in ROWS[model.name]:
            if options.row and row.name not in options.row:
                continue
            rows[row.name] = _in_child(model, row, options.limit)
            print(model.name, row.name, json.dumps(rows[row.name]), file=sys.stderr, flush=True)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS and options.limit is None:
        report.write()


def _in_child(model: BenchModel, row: Row, limit: int | None) -> dict[str, Any]:
    """One row, in a process with nothing else in its memory."""
    command = [sys.executable, "-m", "benchmarks.survival", "--child", model.name, row.name]
    if limit is not None:
        command += ["--limit", str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value | {"baseline": row.baseline, "kind": row.kind}


def _measure(name: str, row_name: str, limit: int | None) -> dict[str, Any]:
    model = next(m for m in ALL if m.name == name)
    row = next(r for r in ROWS[name] if r.name == row_name)
    module = model.load()
    for _ in model.calibration(spine.CALIBRATION_BATCH):
        pass  # what reads the data is loaded, and is no part of the cost
    before = peak_mb()
    start = time.perf_counter()
    qmodel = spine.quantized(model, row.recipe(), module)
    seconds = time.perf_counter() - start
    cost: dict[str, float] = {"seconds": seconds, "peak_mb": peak_mb(), "before_mb": before}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(qmodel, path, form=row.form)
        size = path.stat().st_size / 1e6
        quality = _quality(model, module, path, limit)
    cost["threads"] = torch.get_num_threads()
    return quality | {"cost": cost, "megabytes": size, "recipe": row.recipe().to_yaml()}


def _quality(
    model: BenchModel, module: torch.nn.Module, path: Path, limit: int | None
) -> dict[str, Any]:
    run = spine.deployed(path, exact=True)
    outputs: dict[str, list[torch.Tensor]] = {"float": [], "deployed": []}
    labels = []
    with torch.inference_mode():
        for inputs, batch_labels in model.evaluation(spine.BATCH, limit):
            labels.append(batch_labels)
            outputs["float"].append(module(*inputs))
            outputs["deployed"].append(run(*inputs))
    whole = {key: torch.cat(parts) for key, parts in outputs.items()}
    gold = torch.cat(labels)
    return {
        "samples": len(gold),
        "points": {key: model.metric(values, gold) for key, values in whole.items()},
        "sqnr_db": spine.decibels(whole["float"], whole["deployed"]),
    }


if __name__ == "__main__":
    main()
