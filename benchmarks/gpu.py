"""``benchmarks/gpu.sh``: everything that only a GPU can show, in at most ten minutes.

Each section runs in a process of its own with a time limit: what one breaks or delays is told in
its place, and the others still run. The file is written again after each section.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from quantkit.errors import QuantkitError, TargetError

RESULTS = Path(__file__).parent / "results" / "gpu.json"
#: Seconds for all sections together: the ten minutes of a call, less its start and end.
BUDGET = 560.0
_MARK = "result: "


def main() -> int:
    """Run all sections, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all sections")
    parser.add_argument("--only", choices=list(SECTIONS), action="append")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.section:
        print(_MARK + json.dumps(SECTIONS[options.section]()))
        return 0
    try:
        require_gpu()
    except QuantkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    run_all(options.only or list(SECTIONS), options.out, options.budget)
    return 0


def require_gpu() -> None:
    """Tell before any work that nothing could be measured.

    Raises:
        TargetError: PyTorch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise TargetError(
            f"PyTorch {torch.__version__} sees no CUDA device; run this on a machine with an "
            "NVIDIA GPU, with a CUDA build of PyTorch (PYTHON=... names the Python that has it)"
        )


def run_all(sections: list[str], out: Path, budget: float) -> None:
    """Run the sections in turn; each may use what the ones before it left."""
    started = time.monotonic()
    results: dict[str, Any] = {"date": datetime.date.today().isoformat(), "sections": {}}
    for index, name in enumerate(sections):
        left = budget - (time.monotonic() - started)
        limit = left / (len(sections) - index) if name.startswith("bench") else left
        print(f"{name} (at most {max(limit, 0):.0f} s)", file=sys.stderr, flush=True)
        results["sections"][name] = run_section(name, limit)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


def run_section(name: str, limit: float) -> dict[str, Any]:
    """What a section found, or how it ended; and its seconds."""
    if limit <= 0:
        return {"error": "not run: the time was used up by the sections before it", "seconds": 0.0}
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s", "seconds": limit}
    seconds = time.monotonic() - started
    told = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode == 0 and told:
        return {"found": json.loads(told[-1].removeprefix(_MARK)), "seconds": seconds}
    last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
    return {"error": f"ended with {done.returncode}: {last}", "seconds": seconds}


#: FP8 for weights and activations: no recipe of the house has it yet.
_FP8 = """
description: FP8 weights and activations, to measure its speed.
target: tensorrt
scheme:
  weights: {dtype: fp8_e4m3, symmetric: true, per: channel}
  activations: {dtype: fp8_e4m3, symmetric: true, per: tensor}
calibrator: minmax
passes: [fold_batchnorm]
rounding: nearest
"""


def _device() -> dict[str, Any]:
    """The machine, and what the table says that its GPU can do in each runtime."""
    import torch

    from quantkit import hardware

    machine = hardware.detect()
    gpus = [device.gpu for device in machine.gpus.devices]
    seen = torch.cuda.get_device_capability()
    table = [
        {
            "format": str(format),
            "runtime": runtime.label,
            "verdict": str(cell.verdict),
            "why": cell.why,
        }
        for format in hardware.Format
        for runtime in hardware.Runtime
        for cell in [hardware.support(gpus[0], format, runtime)]
    ]
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": f"{seen[0]}.{seen[1]}",
        "table_agrees": gpus[0].compute_capability == seen,
        "driver": machine.gpus.driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "runtimes": machine.runtimes,
        "table": table,
    }


def _probe() -> list[dict[str, Any]]:
    from benchmarks.gpu_probe import probe

    return probe()


def _bench(name: str, device: Literal["cpu", "cuda"] = "cuda") -> dict[str, Any]:
    """Float, FP16, INT8 and FP8 of one model in every runtime that is here, with parity."""
    from benchmarks.gpu_models import MODELS
    from quantkit.benching.bench import bench
    from quantkit.benching.report import Method
    from quantkit.recipe import parse_recipe

    model = next(model for model in MODELS if model.name == name)
    report = bench(
        model.load(),
        ["int8_ptq", parse_recipe(_FP8, name="fp8")],
        data=list(model.calibration()),
        devices=[device],
        batches=[1, 32],
        threads=4,
        method=Method(turns=8, seconds=3.0, timeout_s=120.0),
    )
    print(report, file=sys.stderr)
    found: dict[str, Any] = json.loads(report.to_json())
    for row in found["rows"]:
        del row["turns"]  # thousands of times; their statistics stay
    return found


SECTIONS: dict[str, Callable[[], Any]] = {
    "device": _device,
    "probe": _probe,
    "bench_resnet50": partial(_bench, "resnet50"),
    "bench_mobilenet_v2": partial(_bench, "mobilenet_v2"),
    "bench_bert_base": partial(_bench, "bert_base"),
}

if __name__ == "__main__":
    sys.exit(main())
