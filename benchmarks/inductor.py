"""``python -m benchmarks.inductor``: what Inductor makes of the real models, and how fast it is.

Each model, in float and by each recipe, is timed by ``quantkit.bench`` in PyTorch, under
``torch.compile``, as a package of AOTInductor, and in ONNX Runtime, the rows taking turns. Beside
that each program is checked: which layers run in integers, and how far what was compiled is from
the simulation, on evaluation data.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quantkit
from benchmarks import spine
from benchmarks.machine import machine
from benchmarks.tables import table
from benchmarks.zoo import ALL, MINILM, BenchModel
from quantkit.benching.report import Method

RESULTS = Path(__file__).parent / "results" / "inductor.json"
TARGETS = ("eager", "torch_compile", "inductor", "onnxruntime")
RECIPES = ("int8_cpu", "int8_ptq")
#: Batches of the evaluation data that programs are compared with the simulation on.
COMPARED = 4


def main() -> None:
    """Measure what was asked for, merge it into the results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--turns", type=int, default=20, help="of each row of the bench")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    for model in ALL:
        if not options.only or model.name in options.only:
            results.setdefault("models", {})[model.name] = measure(model, options.turns)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(render(results)))


def measure(model: BenchModel, turns: int) -> dict[str, Any]:
    """The bench of one model, and the check of each program."""
    module = model.load()
    recipes = (*RECIPES, "int8_weight_only") if model is MINILM else RECIPES
    program = torch.export.export(module, model.example(), dynamic_shapes=model.dynamic_shapes)
    print(f"{model.name}: timing", file=sys.stderr, flush=True)
    bench = quantkit.bench(
        program,
        recipes,
        data=list(model.calibration(spine.CALIBRATION_BATCH)),
        targets=TARGETS,
        devices=["cpu"],
        method=Method(turns=turns),
    )
    report = json.loads(bench.to_json())
    # Without each run's time, of which there are thousands.
    rows = [{k: v for k, v in row.items() if k != "turns"} for row in report["rows"]]
    return {
        "rows": rows,
        "method": {**report["method"], "threads": report["threads"]},
        "checks": {recipe: check(model, module, recipe) for recipe in recipes},
    }


def check(model: BenchModel, module: nn.Module, recipe: str) -> dict[str, Any]:
    """What a program became, and how far it is from the simulation."""
    print(f"{model.name} {recipe}: checking", file=sys.stderr, flush=True)
    qmodel = spine.quantized(model, recipe, module)
    batches = [inputs for inputs, _ in islice(model.evaluation(spine.BATCH, None), COMPARED)]
    with tempfile.TemporaryDirectory() as folder:
        path = quantkit.export_pt2(qmodel, Path(folder) / f"{model.name}.pt2")
        report = quantkit.check(path, "inductor", reference=qmodel, data=batches, min_sqnr=0.0)
        megabytes = path.stat().st_size / 1e6
    ran = Counter((layer.op_type, layer.precision, layer.reason) for layer in report.layers)
    (output,) = report.outputs
    return {
        "megabytes": megabytes,
        "compile_seconds": report.seconds,
        "layers": [[*kind, count] for kind, count in ran.items()],
        "parity_db": output.sqnr,
        "agreement": None if model is MINILM else output.agreement,
        "findings": [str(finding) for finding in report.findings],
    }


def render(results: dict[str, Any]) -> list[str]:
    """Both tables."""
    speeds = ("model", "batch", "runtime", "precision", "median ms", "speed-up", "SQNR dB")
    checks = ("model", "recipe", "in int8", "in float", "parity dB", "agreement", "compiled in s")
    return [*table(speeds, _speeds(results)), "", *table(checks, _checks(results))]


def page(results: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    lines = [
        "## Inductor",
        "",
        "`python -m benchmarks.inductor`; one thread, rows in turns, speed-up over eager of the",
        "same batch in float. *Parity* is simulation against the package, on evaluation data.",
        "",
        *render(results),
        "",
    ]
    return "\n".join(lines)


def _speeds(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, measured in results["models"].items():
        for row in measured["rows"]:
            ratio, quality = row["ratio"] or {}, row["quality"] or {}
            yield (
                name, str(row["batch"]), row["target"], row["precision"],
                row["error"] or _number(row["median_ms"], 2), _number(ratio.get("median"), 2),
                _number(quality.get("sqnr"), 1),
            )  # fmt: skip


def _checks(results: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, measured in results["models"].items():
        for recipe, found in measured["checks"].items():
            ints = sum(count for _, how, _, count in found["layers"] if how == "int8")
            whole = sum(count for *_, count in found["layers"])
            agreement = found["agreement"]
            yield (
                name, recipe, str(ints), str(whole - ints), _number(found["parity_db"], 1),
                "-" if agreement is None else f"{agreement:.1%}",
                _number(found["compile_seconds"], 0),
            )  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
