"""``python -m benchmarks.peers``: quantkit beside other tools, on the same models and data.

Each row is one tool with one setting, in a process of its own, on one thread: quality in points and
SQNR at the outputs against float, seconds and memory. Every file is judged by this Python's ONNX
Runtime in exact mode, on the same evaluation data. A tool that is not installed here is run by
another Python: ``--venvs FOLDER`` holds one virtual environment for each, named after it. A tool
that fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers_page, spine
from benchmarks.machine import machine, peak_mb
from benchmarks.peer_tools import TOOLS, Job, Tool
from benchmarks.zoo import ALL, BenchModel
from quantkit.files import replacing

RESULTS = Path(__file__).parent / "results" / "peers.json"


def main() -> None:
    """Measure the rows that are asked for, merge them into the results, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[m.name for m in ALL], action="append")
    parser.add_argument("--tool", choices=list(TOOLS), action="append")
    parser.add_argument("--setting", action="append", help="only rows of these settings")
    parser.add_argument("--limit", type=int, help="evaluate on so many samples (a quick look)")
    parser.add_argument("--venvs", type=Path, help="one virtual environment for each other tool")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a row may take")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.child:
        _work(*options.child, options.limit)
        return
    if not options.page:
        _measure(options)
    if options.out == RESULTS and options.limit is None:
        peers_page.write(json.loads(RESULTS.read_text(encoding="utf-8")))


def _measure(options: argparse.Namespace) -> None:
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine()
    for model in (m for m in ALL if not options.only or m.name in options.only):
        module = model.load()
        with tempfile.TemporaryDirectory() as folder:
            float_file = spine.export_float(model, module, Path(folder) / "float.onnx")
            judge = _judge(model, module, options.limit)
            measured = results.setdefault("models", {}).setdefault(model.name, {})
            for name, tool in TOOLS.items():
                if options.tool and name not in options.tool:
                    continue
                for setting in tool.settings:
                    if options.setting and setting not in options.setting:
                        continue
                    row = _row(model, name, setting, float_file, judge, options)
                    measured[f"{name}/{setting}"] = row
                    print(model.name, name, setting, json.dumps(row), file=sys.stderr, flush=True)
                    with replacing(options.out) as temporary:
                        temporary.write_text(json.dumps(results, indent=1) + "\n")


Judge = Callable[[torch.Tensor], dict[str, Any]]


def _judge(model: BenchModel, module: torch.nn.Module, limit: int | None) -> Judge:
    """Points and SQNR of outputs, beside those of the float model."""
    outputs, labels = [], []
    with torch.inference_mode():
        for inputs, batch_labels in model.evaluation(spine.BATCH, limit):
            outputs.append(module(*inputs))
            labels.append(batch_labels)
    reference, gold = torch.cat(outputs), torch.cat(labels)
    points = model.metric(reference, gold)

    def judge(values: torch.Tensor) -> dict[str, Any]:
        return {
            "samples": len(gold),
            "points": {"float": points, "quantized": model.metric(values, gold)},
            "sqnr_db": spine.decibels(reference, values),
        }

    return judge


def _row(
    model: BenchModel,
    name: str,
    setting: str,
    float_file: Path,
    judge: Judge,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One tool and setting, in a process with nothing else in its memory; or why it failed."""
    tool = TOOLS[name]
    output = float_file.with_name("quantized.onnx")
    for stale in (output, output.with_suffix(".npy")):
        stale.unlink(missing_ok=True)
    if tool.venv is not None and options.venvs is None:
        return {"failed": "not installed here; give --venvs"}
    python = sys.executable if tool.venv is None else options.venvs / tool.venv / "bin" / "python"
    command = [str(python), "-m", "benchmarks.peers", "--child", model.name, name, setting]
    command += [str(float_file)] + (
        [] if options.limit is None else ["--limit", f"{options.limit}"]
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.timeout,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {options.timeout:.0f} s"}
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    cost: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if tool.simulated:
        values = torch.from_numpy(np.load(output.with_suffix(".npy")))
        cost |= json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        run = spine.deployed(output, exact=True)
        batches = model.evaluation(spine.BATCH, options.limit)
        values = torch.cat([run(*inputs) for inputs, _ in batches])
        cost["megabytes"] = output.stat().st_size / 1e6
        cost |= _quantized_layers(output)
    return judge(values) | cost


#: What moves values and changes none: a layer behind it reads the grid before it.
_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool"}


def _quantized_layers(path: Path) -> dict[str, int]:
    """Of the file's convolutions and products, those whose two inputs are dequantized."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    made_by = {name: node for node in nodes for name in node.output}

    def dequantized(name: str) -> bool:
        node = made_by.get(name)
        while node is not None and node.op_type in _MOVES:
            node = made_by.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    both = [node for node in layers if all(map(dequantized, node.input[:2]))]
    return {"layers": len(layers), "quantized": len(both)}


def _work(model_name: str, name: str, setting: str, float_file: str, limit: int | None) -> None:
    """In the child: quantize, and print what it cost."""
    model = next(m for m in ALL if m.name == model_name)
    torch.set_num_threads(1)
    tool: Tool = TOOLS[name]
    job = Job(
        model=model, module=model.load(), float_file=Path(float_file),
        output=Path(float_file).with_name("quantized.onnx"), setting=setting, limit=limit,
    )  # fmt: skip
    for _ in model.calibration(spine.CALIBRATION_BATCH):
        pass  # what reads the data is loaded, and is no part of the cost
    before = peak_mb()
    start = time.perf_counter()
    after_quantizing = tool.run(job)
    seconds, peak = time.perf_counter() - start, peak_mb()
    if after_quantizing is not None:
        after_quantizing()
    cost = {"version": tool.version, "seconds": seconds, "peak_mb": peak, "before_mb": before}
    print(json.dumps(cost))


if __name__ == "__main__":
    main()
