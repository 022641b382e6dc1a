"""``python -m benchmarks.recovery``: ``recover`` on EfficientNet-Lite0, and its recipe run again.

It begins with min-max ranges and one scale a tensor of weights, which lose nearly all accuracy. The
128 calibration photos calibrate, the 300 labelled photos are the held-out data. Then the recipe
that was found makes the model anew, and that is measured on the same photos: simulated, and
deployed in ONNX Runtime (exact mode).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import quantkit
from benchmarks import report, spine
from benchmarks.machine import machine
from benchmarks.zoo import LITE0
from quantkit.onnx.export import export_onnx
from quantkit.recipe import Recipe, parse_recipe
from quantkit.recovering.goal import Attempt

RESULTS = Path(__file__).parent / "results" / "recovery.json"
START = Recipe.model_validate(
    {
        "name": "min-max per tensor",
        "scheme": {"weights": {"per": "tensor"}, "activations": {"per": "tensor"}},
        "calibrator": "minmax",
    }
)


def main() -> None:
    """Climb, make the model again, and write what both are worth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    module, held_out = LITE0.load(), list(LITE0.evaluation(spine.BATCH, None))
    found = quantkit.recover(
        module, START, calibration=[x for (x,) in LITE0.calibration(spine.CALIBRATION_BATCH)],
        holdout=[(inputs[0], labels) for inputs, labels in held_out], metric="accuracy",
        max_drop=options.max_drop, time_limit=options.time_limit, example_inputs=LITE0.example(),
        dynamic_shapes=LITE0.dynamic_shapes, keep_model=False, on_attempt=_tell,
    )  # fmt: skip
    print(found.told, file=sys.stderr)
    results = {
        "machine": machine(),
        "found": found.as_json(),
        "yaml": found.to_yaml(),
        "again": _again(found.to_yaml(), module),
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        report.write()


def _tell(attempt: Attempt) -> None:
    value = "" if attempt.measured is None else f"{attempt.measured.value:.2f}"
    print(attempt.step, attempt.change, value, attempt.status, file=sys.stderr, flush=True)


def _again(text: str, module: torch.nn.Module) -> dict[str, Any]:
    """The model that the written recipe makes, on the same photos."""
    qmodel = spine.quantized(LITE0, parse_recipe(text, name="recovered"), module)
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(qmodel, Path(folder) / "model.onnx")
        found = spine.accuracy(LITE0, module, qmodel, path, None)
    points, sqnr = found["points"], found["sqnr_db"]
    return {
        "points": {**{k: points[k] for k in ("float", "simulated")}, "deployed": points["exact"]},
        "sqnr_db": {"simulated": sqnr["simulated"], "deployed": sqnr["exact"]},
    }


if __name__ == "__main__":
    main()
