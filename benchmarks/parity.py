"""``python -m benchmarks.parity``: the parity gate on the real models, and faults planted in them.

Each model is quantized and exported, and its file is compared with the float and the simulated
model layer by layer, as ``quantkit check --state`` does it. Then a fault is planted at every
activation of a file in turn (another zero-point in its DQ, another scale, no Q/DQ at all), and
counted is how many are found, and how many are named by the tensor that they are in.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import quantkit
from benchmarks import faults, report, spine
from benchmarks.machine import machine
from benchmarks.zoo import LITE0, MINILM, RESNET20, BenchModel
from quantkit.layer_parity import LayerParity, compare_layers, float_twin
from quantkit.model import QuantizedModel
from quantkit.onnx.export import export_onnx
from quantkit.onnx.taps import Taps

RESULTS = Path(__file__).parent / "results" / "parity.json"
#: Which files are compared, in the form of their recipe.
FILES: tuple[tuple[BenchModel, str], ...] = (
    (RESNET20, "int8_ptq"),
    (RESNET20, "int8_cpu"),
    (RESNET20, "int8_accurate"),
    (LITE0, "int8_ptq"),
    (MINILM, "int8_ptq"),
)
#: In whose file faults are planted.
PLANTED = {"resnet20"}
SAMPLES = 64
FAULTS: dict[str, Callable[[onnx.ModelProto, str], None]] = {
    "zero-point 3 off in DQ": faults.move_zero_point,
    "scale 10 % off": lambda proto, tensor: faults.stretch(proto, tensor, 1.1),
    "no Q/DQ": faults.drop,
}


def main() -> None:
    """Compare, plant, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"machine": machine(), "files": []}
    for model, recipe in FILES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(model, recipe, Path(folder))
        print(json.dumps(row), file=sys.stderr, flush=True)
        results["files"].append(row)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        report.write()


def measure(model: BenchModel, recipe: str, folder: Path) -> dict[str, Any]:
    """One file: how far each step is from its simulation, and how long the check took."""
    module = model.load()
    qmodel = spine.quantized(model, recipe, module)
    path = export_onnx(qmodel, folder / "model.onnx")
    data = list(model.calibration(spine.CALIBRATION_BATCH))
    twin = float_twin(module, qmodel, data)
    target = "onnxruntime" if qmodel.recipe.target == "onnxruntime" else "tensorrt_rtx"
    started = time.perf_counter()
    checked = quantkit.check(
        path, target if model is RESNET20 else "onnxruntime", reference=module, simulated=qmodel,
        floating=twin, data=data, layer_samples=SAMPLES,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    found = checked.layer_parity
    assert found is not None
    row = {
        "model": model.name,
        "recipe": recipe,
        "target": checked.target,
        "samples": sum(len(batch[0]) for batch in data),
        "check_seconds": seconds,
        "layer_seconds": found.seconds,
        **_figures(found),
    }
    if model.name in PLANTED:
        row["planted"] = _plant(qmodel, path, data)
    return row


def _figures(found: LayerParity) -> dict[str, Any]:
    told = [t.simulated.sqnr for t in found.tensors if t.simulated is not None]
    return {
        "tensors": len(found.tensors),
        "departs": found.departs,
        "findings": [finding.code for finding in found.findings],
        "own_db": min(t.own.sqnr for t in found.tensors),
        "deployed_db": min(t.deployed.sqnr for t in found.tensors),
        "simulated_db": min(told),
        "with_float": len(told),
    }


def _plant(qmodel: QuantizedModel, path: Path, data: list[Any]) -> dict[str, Any]:
    """Each fault at every activation of the file in turn."""
    taps = [tap.name for tap in Taps(onnx.load(path)).taps if tap.kind == "activation"]
    results: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        found = named = 0
        for tensor in taps:
            proto = onnx.load(path)
            fault(proto, tensor)
            faulty = path.with_name("faulty.onnx")
            onnx.save(proto, faulty)
            errors = compare_layers(faulty, qmodel, data, samples=8).findings
            found += bool(errors)
            # Of one that is padded for a layer, "relu for conv2", the tensor is named.
            names = {tensor, tensor.partition(" for ")[0]}
            named += any(error.where in names for error in errors)
        results[name] = {"planted": len(taps), "found": found, "named": named}
    return results


if __name__ == "__main__":
    main()
